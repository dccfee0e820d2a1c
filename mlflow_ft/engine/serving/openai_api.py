"""Models over HTTP: MLflow's own scoring routes, and OpenAI's, so that its clients work."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST
from mlflow.pyfunc import PyFuncModel, scoring_server

from mlflow_ft.engine.serving import chat_model, departures, request_fields
from mlflow_ft.engine.serving.loaded_models import Served, UnknownModelError, Watch, settled

log = logging.getLogger(__name__)


class Scored:
    """The models as MLflow's scoring server calls them: one answer, or a list of answers to several requests."""

    def __init__(self, served: Served, stopping: threading.Event) -> None:
        self.served, self.stopping = served, stopping

    def predict(self, model_input: Any, params: Any = None) -> Any:
        requests = chat_model.as_requests(model_input, params)
        try:
            answers = [self.served.answer(request, watch=_ending(self.stopping)) for request in requests]
        except UnknownModelError as error:
            raise MlflowException(error.message, error_code=RESOURCE_DOES_NOT_EXIST) from error
        return answers[0] if len(answers) == 1 else answers


def make_app(served: Served, signature: ModelSignature, stopping: threading.Event) -> FastAPI:
    """The routes of `mlflow models serve` (/invocations, /ping, /health, /version), /v1/chat/completions, /v1/models.

    Unfinished answers end when `stopping` is set.
    """
    pyfunc = PyFuncModel(model_meta=Model(signature=signature), model_impl=Scored(served, stopping))
    app: FastAPI = scoring_server.init(pyfunc)
    app.add_middleware(departures.Departures)
    started = int(time.time())

    @app.get("/v1/models")
    async def models() -> Response:
        return JSONResponse({"object": "list", "data": [_model(name, started) for name in served.names]})

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        try:
            return JSONResponse(_model(served.name_of({"model": name}), started))
        except UnknownModelError as error:
            return _refusal(error)

    @app.post("/v1/chat/completions")
    async def completions(request: Request) -> Response:
        try:
            chat_request = _read(await request.body())
            if served.scores:
                raise chat_model.refused("this is a reward model, which does not generate answers; use /invocations")
            if chat_request.pop("stream", None):
                return await _streamed(served, chat_request, stopping)
            return JSONResponse(await asyncio.to_thread(served.answer, chat_request, watch=_ending(stopping)))
        except Exception as error:  # every error is answered in OpenAI's format
            return _refusal(error)

    return app


def _model(name: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": "mlflow-ft"}


def _read(body: bytes) -> dict[str, Any]:
    """A request without null values, for `ChatModel.complete`.

    Raises:
        MlflowException: it is not a JSON object, or uses an unsupported feature.
    """
    try:
        request = json.loads(body)
    except ValueError as error:
        raise chat_model.refused(f"the request is not valid JSON: {error}") from error
    if not isinstance(request, dict):
        raise chat_model.refused("the request is not a JSON object")
    request = {key: value for key, value in request.items() if value is not None}
    request_fields.check(request)
    if request.get("response_format", {"type": "text"}) != {"type": "text"}:
        raise chat_model.refused("`response_format` supports only text")
    if (choice := request.pop("tool_choice", "auto")) not in ("auto", "none"):
        raise chat_model.refused(f"`tool_choice` is {choice!r}; only auto and none are supported")
    if choice == "none":
        request.pop("tools", None)
    if isinstance(request.get("messages"), list):
        request["messages"] = [_as_text(turn) for turn in request["messages"]]
    return request


def _as_text(turn: Any) -> Any:
    """A message with its list of text parts joined into one text, as in training data."""
    parts = turn.get("content") if isinstance(turn, dict) else None
    if not isinstance(parts, list):
        return turn
    if not all(_is_text(part) for part in parts):
        raise chat_model.refused("a part of a message is not text; only text is supported")
    return {**turn, "content": "\n".join(part["text"] for part in parts)}


def _is_text(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)


def _ending(stopping: threading.Event) -> Watch:
    """Ends the answer of the current request when its client leaves, or the server stops."""
    gone = departures.of_request()
    return lambda _: gone.is_set() or stopping.is_set()


async def _streamed(served: Served, request: dict[str, Any], stopping: threading.Event) -> Response:
    """The answer as server-sent events; errors in the request are raised before the first of them."""
    usage = bool((request.pop("stream_options", None) or {}).get("include_usage"))
    pieces = _pieces(served, request, stopping)
    first = await anext(pieces)
    events = _events(first, pieces, name=served.name_of(request), usage=usage)
    return StreamingResponse(events, media_type="text/event-stream")


async def _pieces(
    served: Served, request: dict[str, Any], stopping: threading.Event
) -> AsyncIterator[str | dict[str, Any]]:
    """The text of an answer, piece by piece as a thread generates it, then the whole answer."""
    loop, queue, gone = asyncio.get_running_loop(), asyncio.Queue[Any](), departures.of_request()

    def send(event: Any) -> bool:
        loop.call_soon_threadsafe(queue.put_nowait, event)
        return gone.is_set() or stopping.is_set()

    def work() -> None:
        try:
            send(served.answer(request, watch=send))
        except Exception as error:  # raised again where the answer is awaited
            send(error)

    writing = loop.run_in_executor(None, work)
    sent = ""
    try:
        while not isinstance(item := await queue.get(), dict):
            if isinstance(item, Exception):
                raise item
            text = settled(item, request.get("stop"))
            if text.startswith(sent) and text != sent:
                yield text[len(sent) :]
                sent = text
        if rest := item["choices"][0]["message"]["content"].removeprefix(sent):
            yield rest
        await writing
        yield item
    finally:
        gone.set()


async def _events(
    first: str | dict[str, Any], pieces: AsyncIterator[str | dict[str, Any]], *, name: str, usage: bool
) -> AsyncIterator[str]:
    head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": "chat.completion.chunk", "created": int(time.time())}
    head["model"] = name

    def event(delta: dict[str, Any], finish_reason: str | None = None) -> str:
        return _event(head | {"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]})

    yield event({"role": "assistant", "content": ""})
    try:
        piece = first
        while isinstance(piece, str):
            yield event({"content": piece})
            piece = await anext(pieces)
        yield event({}, piece["choices"][0]["finish_reason"])
        if usage:
            yield _event(head | {"choices": [], "usage": piece["usage"]})
    except Exception as error:  # too late for another status code
        log.exception("an answer failed part-way")
        yield _event(_problem(str(error), "server_error"))
    yield "data: [DONE]\n\n"


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value)}\n\n"


def _refusal(error: Exception) -> Response:
    if isinstance(error, UnknownModelError):
        return JSONResponse(_problem(error.message, "invalid_request_error", "model_not_found"), status_code=404)
    if isinstance(error, MlflowException) and error.get_http_status_code() < 500:
        return JSONResponse(_problem(error.message, "invalid_request_error"), error.get_http_status_code())
    log.error("a request failed", exc_info=error)
    return JSONResponse(_problem("the model failed; see the server's log", "server_error"), status_code=500)


def _problem(message: str, kind: str, code: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}

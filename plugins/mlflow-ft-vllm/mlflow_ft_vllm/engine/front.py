"""The address that clients use: it routes a request to its model's vLLM, with what the model was trained with.

The routes are vLLM's own (OpenAI's), /invocations, /ping, /health, /version as in `mlflow models serve`, and /metrics.
vLLM's other routes, such as those that load adapters, are not reachable.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx2
import mlflow
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from mlflow_ft_vllm.engine.process import VllmProcess
from mlflow_ft_vllm.engine.targets import Target, Targets, UnknownModelError

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
OURS = ("chat_template", "chat_template_kwargs", "mm_processor_kwargs")
"""Fields that would change the prompt from that of training."""
CONNECT_SECONDS = 10
KEPT_HEADERS = ("content-type", "x-request-id")
GATEWAY, TIMEOUT, UNAVAILABLE, NO_SUCH_MODEL, WRONG, CLOSED = 502, 504, 503, 404, 400, 499


class Front:
    """The connections to the vLLM processes."""

    def __init__(self, targets: Targets, timeout: float) -> None:
        self.targets, self.timeout = targets, timeout
        self.started = int(time.time())
        self._clients: dict[VllmProcess, httpx2.AsyncClient] = {}

    def client(self, process: VllmProcess) -> httpx2.AsyncClient:
        if process not in self._clients:
            for ended in [known for known in self._clients if known.ended]:
                del self._clients[ended]
            self._clients[process] = httpx2.AsyncClient(
                transport=httpx2.AsyncHTTPTransport(
                    uds=str(process.socket), limits=httpx2.Limits(max_connections=None)
                ),
                base_url="http://vllm",
                timeout=httpx2.Timeout(self.timeout, connect=CONNECT_SECONDS),
            )
        return self._clients[process]

    async def close(self) -> None:
        """Close all connections."""
        for client in self._clients.values():
            await client.aclose()

    async def chat(self, request: Request) -> Response:
        return await self.forward(request, CHAT)

    async def text(self, request: Request) -> Response:
        return await self.forward(request, TEXT)

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._shown(name) for name in self.targets.names]})

    async def model(self, request: Request) -> Response:
        name = request.path_params["name"]
        if (target := self.targets.find(name)) is None:
            return problem(f"there is no model {name!r}", NO_SUCH_MODEL, "model_not_found")
        return JSONResponse(self._shown(target.model.name))

    def _shown(self, name: str) -> dict[str, Any]:
        about = {"id": name, "object": "model", "created": self.started, "owned_by": "mlflow-ft"}
        return about | {"root": self.targets.by_name[name].id}

    async def health(self, request: Request) -> Response:
        ended = any(target.process.ended for target in self.targets.by_name.values())
        return PlainTextResponse("vLLM has ended\n" if ended else "\n", UNAVAILABLE if ended else 200)

    async def version(self, request: Request) -> Response:
        return PlainTextResponse(mlflow.__version__)

    async def metrics(self, request: Request) -> Response:
        """VLLM's own, of the first model's process."""
        client = self.client(next(iter(self.targets.by_name.values())).process)
        try:
            answer = await client.get("/metrics")
        except httpx2.TransportError as error:
            return problem(f"vLLM does not answer: {error}", GATEWAY, kind="server_error")
        return Response(answer.content, answer.status_code, media_type=answer.headers.get("content-type"))

    async def forward(self, request: Request, path: str) -> Response:
        """Send a request on, and its answer back as it comes."""
        try:
            body = json.loads(await request.body())
        except ValueError as error:
            return problem(f"the request is not valid JSON: {error}", WRONG)
        if not isinstance(body, dict):
            return problem("the request is not a JSON object", WRONG)
        if ours := [field for field in OURS if body.get(field)]:
            return problem(f"`{ours[0]}` cannot be set: prompts are written as in training", WRONG)
        async with AsyncExitStack() as stack:
            try:
                target = stack.enter_context(self.targets.taken(body.get("model")))
            except UnknownModelError:
                known = ", ".join(self.targets.names)
                text = f"there is no model {body['model']!r}; available models: {known}"
                return problem(text, NO_SUCH_MODEL, "model_not_found")
            return await self._answer(request, path, as_trained(body, target, chat=path == CHAT), target, stack)

    async def _answer(
        self, request: Request, path: str, body: dict[str, Any], target: Target, stack: AsyncExitStack
    ) -> Response:
        client = self.client(target.process)
        try:
            sent = client.send(client.build_request("POST", path, json=body), stream=True)
            answer = await unless_gone(request, sent)
        except httpx2.TimeoutException:
            return problem(f"no answer within {self.timeout:g} s", TIMEOUT, kind="server_error")
        except httpx2.TransportError as error:
            return problem(f"vLLM does not answer: {error}", GATEWAY, kind="server_error")
        if answer is None:
            return Response(status_code=CLOSED)
        stack.push_async_callback(answer.aclose)
        return Relayed(answer, stack.pop_all())


class Relayed(StreamingResponse):
    """An answer of vLLM as it comes; when it ends, or the client goes, vLLM's work on it ends."""

    def __init__(self, answer: httpx2.Response, stack: AsyncExitStack) -> None:
        kept = {name: answer.headers[name] for name in KEPT_HEADERS if name in answer.headers}
        super().__init__(answer.aiter_raw(), answer.status_code, kept)
        self._stack = stack

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async with self._stack:
            await super().__call__(scope, receive, send)


async def unless_gone(request: Request, sent: Any) -> httpx2.Response | None:
    """The answer to a request that was sent on; None, and the sending is cancelled, if its client goes before."""
    answer, gone = asyncio.ensure_future(sent), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)
        return await answer if answer.done() else None
    finally:
        answer.cancel() if not answer.done() else None
        gone.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def as_trained(body: dict[str, Any], target: Target, *, chat: bool) -> dict[str, Any]:
    """A request as vLLM must get it to answer as the trained model does."""
    given = {key: value for key, value in body.items() if value is not None}
    if "max_completion_tokens" in given:
        given["max_tokens"] = given.pop("max_completion_tokens")
    if chat and given.get("tools"):
        given.setdefault("tool_choice", "none")  # shown to the model; its answer is text, as in training
    always = target.trained.always(chat=chat)
    ends = list(dict.fromkeys((*given.get("stop_token_ids", ()), *always["stop_token_ids"])))
    return {**target.trained.defaults(chat=chat), **given, **always, "stop_token_ids": ends, "model": target.id}


def problem(text: str, status: int, code: str | None = None, *, kind: str = "invalid_request_error") -> Response:
    """An error in OpenAI's format."""
    return JSONResponse({"error": {"message": text, "type": kind, "param": None, "code": code}}, status)


def make_app(targets: Targets, *, timeout: float) -> Starlette:
    """The routes. `timeout`: seconds that vLLM may be silent during an answer."""
    front = Front(targets, timeout)

    @asynccontextmanager
    async def closing(app: Starlette) -> AsyncIterator[None]:
        yield
        await front.close()

    routes = [
        Route(CHAT, front.chat, methods=["POST"]),
        Route("/invocations", front.chat, methods=["POST"]),
        Route(TEXT, front.text, methods=["POST"]),
        Route("/v1/models", front.models),
        Route("/v1/models/{name:path}", front.model),
        Route("/ping", front.health),
        Route("/health", front.health),
        Route("/version", front.version),
        Route("/metrics", front.metrics),
    ]
    return Starlette(routes=routes, lifespan=closing)

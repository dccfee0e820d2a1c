"""The page on which people choose the better of two answers, and the requests that it makes."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Protocol

from fastapi import BackgroundTasks, Depends, FastAPI, Header, HTTPException
from fastapi.middleware import Middleware
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel

from mlflow_ft.engine.serving import guard
from mlflow_ft.errors import FineTuneError


class Voting(Protocol):
    """The votes. Every method gives what is shown next, and raises FineTuneError where it has changed nothing.

    What it gives has a `notice` where another tab was faster, so that nothing was changed.
    """

    def view(self) -> Mapping[str, Any]: ...

    def vote(self, number: int, choice: str) -> Mapping[str, Any]: ...

    def undo(self, number: int) -> Mapping[str, Any]: ...

    def finish(self) -> Mapping[str, Any]:
        """The result, with the names."""


class Ballot(BaseModel):
    """A choice; `pair` is the number that the page was given."""

    pair: int
    choice: Literal["left", "right", "equal", "skipped"]


class Undone(BaseModel):
    """The pair whose vote is taken back: the last one."""

    pair: int


def make_app(voting: Voting, *, own_token: str, stopping: threading.Event) -> FastAPI:
    """The page `/?token=TOKEN`, and `/state`, `/vote`, `/undo`, `/finish`, which need the token in `X-Token`.

    A vote that another tab has overtaken is answered with status 409 and what is next; one that could not be kept with
    503 and the reason. `stopping` is set when the result has been sent.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, middleware=[Middleware(guard.Guard)])
    checked = [Depends(_check_of(own_token))]

    @app.get("/")
    def page(token: str = "") -> Response:
        return (
            guard.page("vote.html", {"token": token})
            if _same(token, own_token)
            else guard.page("unknown.html", {}, status=403)
        )

    @app.get("/state", dependencies=checked)
    def state() -> Response:
        return _answered(voting.view)

    @app.post("/vote", dependencies=checked)
    def vote(ballot: Ballot) -> Response:
        return _answered(lambda: voting.vote(ballot.pair, ballot.choice))

    @app.post("/undo", dependencies=checked)
    def undo(undone: Undone) -> Response:
        return _answered(lambda: voting.undo(undone.pair))

    @app.post("/finish", dependencies=checked)
    def finish(afterwards: BackgroundTasks) -> Response:
        response = _answered(voting.finish)
        if response.status_code == 200:
            afterwards.add_task(stopping.set)
        response.background = afterwards
        return response

    return app


def _check_of(own: str) -> Callable[[str], None]:
    def check(x_token: Annotated[str, Header()] = "") -> None:
        if not _same(x_token, own):
            raise HTTPException(403, "the token is not that of this comparison")

    return check


def _same(token: str, own: str) -> bool:
    return secrets.compare_digest(token.encode(), own.encode())


def _answered(call: Callable[[], Mapping[str, Any]]) -> Response:
    try:
        answer = dict(call())
    except FineTuneError as error:
        return JSONResponse({"error": str(error)}, status_code=503)
    return JSONResponse(answer, status_code=409 if answer.get("notice") else 200)

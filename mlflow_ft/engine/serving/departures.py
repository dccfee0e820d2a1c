"""Whether the client of a request is still there: an answer that nobody reads is not written to its end.

A client that asks again after a timeout would otherwise wait for its own earlier requests.
"""

from __future__ import annotations

import asyncio
import threading
from contextvars import ContextVar
from typing import Any

LEFT = "http.disconnect"
"""ASGI's word for a client that has left."""

_gone: ContextVar[threading.Event] = ContextVar("_gone")


def of_request() -> threading.Event:
    """Set when the client of the current request has left, or got its response; for its handler, and its threads."""
    return _gone.get(threading.Event())


class Departures:
    """Notices that a client leaves.

    `Request.is_disconnected` cannot, behind a middleware of the kind that MLflow's scoring server has.
    """

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass the request on, and wait for the client to leave."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        gone, read, left = threading.Event(), asyncio.Event(), asyncio.Event()
        _gone.set(gone)

        async def arriving() -> Any:
            message = await receive()
            if message["type"] == LEFT:
                gone.set()
                left.set()
            elif not message.get("more_body"):
                read.set()
            return message

        async def body() -> Any:
            if not read.is_set():
                return await arriving()
            await left.wait()
            return {"type": LEFT}

        async def leaving() -> None:
            await read.wait()
            while not left.is_set():
                await arriving()

        watching = asyncio.create_task(leaving())
        try:
            await self._app(scope, body, send)
        finally:
            gone.set()
            watching.cancel()

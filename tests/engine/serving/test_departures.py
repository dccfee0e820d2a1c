"""A handler learns that its client has left, by the event and as ASGI tells it."""

from __future__ import annotations

import asyncio
from typing import Any

from mlflow_ft.engine.serving.departures import Departures, of_request

BODY: dict[str, Any] = {"type": "http.request", "body": b"a", "more_body": False}
LEFT: dict[str, Any] = {"type": "http.disconnect"}


async def told(*messages: dict[str, Any]) -> tuple[list[dict[str, Any]], bool]:
    """What a handler receives of these messages, and whether the event was set before it ended."""
    coming = list(messages)
    received: list[dict[str, Any]] = []
    gone = False

    async def receive() -> dict[str, Any]:
        if not coming:
            await asyncio.Event().wait()
        return coming.pop(0)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal gone
        received.extend([await receive() for _ in messages])
        gone = of_request().is_set()

    await asyncio.wait_for(Departures(app)({"type": "http"}, receive, None), timeout=10)
    return received, gone


def test_a_client_that_leaves_is_noticed() -> None:
    assert asyncio.run(told(BODY, LEFT)) == ([BODY, LEFT], True)
    assert asyncio.run(told(BODY | {"more_body": True}, BODY, LEFT))[1]
    assert asyncio.run(told(BODY | {"more_body": True}, LEFT))[1], "while it sends"


def test_a_client_that_waits_is_there() -> None:
    assert asyncio.run(told(BODY)) == ([BODY], False)


def test_outside_of_a_request_nobody_has_left() -> None:
    assert not of_request().is_set()

"""Slow calls at the same time, which a signal ends at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TypeVar

ItemT = TypeVar("ItemT")
ValueT = TypeVar("ValueT")

LOOK = 0.5  #: seconds between two looks for a signal: one that arrives just before a wait does not end it


def over(call: Callable[[ItemT], ValueT], items: Sequence[ItemT], *, workers: int) -> list[ValueT]:
    """What a call returns for each item, in their order; the first exception is raised.

    After a signal (or an exception) no call is begun, and none is waited for. A `ThreadPoolExecutor` waits for those in
    progress: here, for minutes, requests that are repeated.
    """
    waiting: SimpleQueue[tuple[int, ItemT]] = SimpleQueue()
    ended: SimpleQueue[tuple[int, Future[ValueT]]] = SimpleQueue()
    for place in enumerate(items):
        waiting.put(place)

    def work() -> None:
        with suppress(Empty):
            while True:
                number, item = waiting.get_nowait()
                outcome: Future[ValueT] = Future()
                try:
                    outcome.set_result(call(item))
                except Exception as error:  # any error of the call is raised by `result` where it is waited for
                    outcome.set_exception(error)
                ended.put((number, outcome))

    for number in range(min(workers, len(items))):
        threading.Thread(target=work, name=f"judge-{number}", daemon=True).start()
    values: dict[int, ValueT] = {}
    try:
        while len(values) < len(items):
            try:
                number, outcome = ended.get(timeout=LOOK)
            except Empty:
                continue
            values[number] = outcome.result()
    finally:
        with suppress(Empty):
            while True:
                waiting.get_nowait()
    return [values[number] for number in range(len(items))]

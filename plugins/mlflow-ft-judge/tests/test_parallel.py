"""Questions that are asked at the same time end with a signal, and with an error."""

from __future__ import annotations

import signal
import threading

import pytest
from mlflow_ft_judge.engine import evaluating, parallel
from mlflow_ft_judge.testing import fair


@pytest.mark.parametrize("interrupts", [True, False], ids=["during the wait", "just before the wait"])
def test_a_signal_ends_the_judging_without_waiting_for_replies(serve, subject_of, interrupts):
    released, asked = threading.Event(), threading.Event()
    late = threading.Timer(60, released.set)

    def silent(body):
        if not asked.is_set():
            asked.set()
            late.start()
            # A signal that another thread gets does not end the wait of the main thread, and so looks like one that
            # arrives just before it.
            signal.pthread_kill(threading.main_thread().ident if interrupts else threading.get_ident(), signal.SIGUSR1)
        released.wait()
        return fair(body)

    class Stopped(BaseException):
        pass

    def stop(number, frame):
        raise Stopped

    before = signal.signal(signal.SIGUSR1, stop)
    judge = serve(silent)
    subject, _ = subject_of("tuned", ["good"] * 9, ["bad"] * 9)
    try:
        with pytest.raises(Stopped):
            evaluating.evaluate(subject, judge.options(timeout=60.0, workers=2, pairwise=False))
        assert not released.is_set(), "it waited for the replies"
    finally:
        signal.signal(signal.SIGUSR1, before)
        late.cancel()
        released.set()
    assert len(judge.bodies) <= 2, "nothing was asked after the signal"


def test_values_come_in_the_order_of_the_items():
    turn = threading.Barrier(3)

    def call(item):
        turn.wait(10)  # three at a time
        return item * 2

    assert parallel.over(call, range(9), workers=3) == [0, 2, 4, 6, 8, 10, 12, 14, 16]
    assert parallel.over(call, [], workers=3) == []


def test_an_error_is_raised_and_nothing_is_begun_after_it():
    begun, raised = [], threading.Event()

    def call(item):
        begun.append(item)
        if item:
            raised.wait(10)
        raise LookupError(item)

    with pytest.raises(LookupError, match="0"):
        parallel.over(call, range(9), workers=1)
    raised.set()
    for thread in threading.enumerate():
        if thread.name.startswith("judge-"):
            thread.join(10)
    assert begun in ([0], [0, 1])

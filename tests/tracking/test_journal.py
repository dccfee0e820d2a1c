from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from mlflow_ft.tracking.journal import Entry, Journal, SendRefusedError


class Receiver:
    """Accepts entries, or fails a given number of times."""

    def __init__(self, failures: int = 0) -> None:
        self.failures = failures
        self.got: list[Entry] = []
        self.sizes: list[int] = []

    def __call__(self, batch: Sequence[Entry]) -> None:
        if self.failures:
            self.failures -= 1
            raise ConnectionError("away")
        self.sizes.append(len(batch))
        self.got += batch


def numbers(count: int, start: int = 0) -> list[Entry]:
    return [{"n": start + n} for n in range(count)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.jsonl"


def test_everything_arrives_in_order_in_batches_of_500(path: Path) -> None:
    receiver = Receiver()
    Journal(path, receiver, background=False).append(*numbers(1201))

    journal = Journal(path, receiver)

    assert journal.close(10) == 0
    assert receiver.got == numbers(1201)
    assert receiver.sizes == [500, 500, 201]
    assert path.with_name("journal.jsonl.sent").read_text() == "1201"


def test_the_sender_backs_off_from_1_to_30_seconds_and_starts_again_at_1(path: Path) -> None:
    slept: list[float] = []
    receiver = Receiver(failures=7)
    journal = Journal(path, receiver, sleep=slept.append)
    journal.append({"n": 0})
    assert journal.flush(10)
    receiver.failures = 1
    journal.append({"n": 1})

    assert journal.close(10) == 0
    assert slept == [1, 2, 4, 8, 16, 30, 30, 1]
    assert receiver.got == numbers(2)


def test_append_does_not_wait_for_a_sender_that_hangs(path: Path) -> None:
    release = threading.Event()
    journal = Journal(path, lambda batch: release.wait(30) and None)

    for entry in numbers(50):
        journal.append(entry)  # would take 30 s

    assert len(path.read_text().splitlines()) == 50
    assert not journal.flush(0.05)
    release.set()
    assert journal.close(10) == 0


def test_close_counts_what_is_left_and_a_later_process_sends_only_that(path: Path) -> None:
    first, second = Receiver(), Receiver()
    journal = Journal(path, first)
    journal.append(*numbers(3))
    assert journal.flush(10)
    first.failures = 1000
    journal.append(*numbers(2, start=3))
    assert journal.close(0.2) == 2

    assert Journal(path, second, background=False).replay() == 2
    assert second.got == numbers(2, start=3)
    assert Journal(path, second, background=False).pending == 0


class SlowToRead(Journal):
    """Its sender comes late to what is next, as on a busy machine."""

    def _next_batch(self) -> list[bytes]:
        time.sleep(0.1)
        return super()._next_batch()


def test_nothing_reads_the_journal_once_it_is_closed(path: Path) -> None:
    others = set(threading.enumerate())
    journal = SlowToRead(path, Receiver())
    journal.append({"n": 0})

    assert journal.close(10) == 0
    path.unlink()  # the run removes its folder next
    assert set(threading.enumerate()) <= others


def test_waiting_ends_only_after_a_time_without_progress(path: Path) -> None:
    pace = threading.Event()

    def slowly(batch: Sequence[Entry]) -> None:
        pace.wait(0.2)

    Journal(path, slowly, background=False).append(*numbers(2000))
    journal = Journal(path, slowly)

    assert journal.close(0.5) == 0  # takes 0.8 s, but moves every 0.2 s


def test_a_line_that_a_crash_cut_is_dropped_and_the_next_one_is_whole(path: Path) -> None:
    Journal(path, Receiver(), background=False).append(*numbers(2))
    with path.open("a") as file:
        file.write('{"n": 2, "val')
    receiver = Receiver()
    journal = Journal(path, receiver, background=False)
    journal.append({"n": 3})

    assert journal.replay() == 3
    assert receiver.got == [{"n": 0}, {"n": 1}, {"n": 3}]


def test_a_broken_line_in_the_middle_is_left_out(path: Path) -> None:
    path.write_text('{"n": 0}\n{"n": 1\n{"n": 2}\n')
    receiver = Receiver()

    assert Journal(path, receiver, background=False).replay() == 3
    assert receiver.got == [{"n": 0}, {"n": 2}]


def test_a_lost_count_sends_again_rather_than_leaving_out(path: Path) -> None:
    Journal(path, Receiver(), background=False).append(*numbers(3))
    for count in ("", "99", "x"):
        path.with_name("journal.jsonl.sent").write_text(count)
        receiver = Receiver()
        assert Journal(path, receiver, background=False).replay() == 3
        assert receiver.got == numbers(3)


def test_replay_raises_what_send_raises_and_keeps_the_rest(path: Path) -> None:
    journal = Journal(path, Receiver(failures=1), background=False)
    journal.append(*numbers(2))

    with pytest.raises(ConnectionError):
        journal.replay()
    assert journal.pending == 2


def test_a_sender_that_is_refused_tries_once_more_at_the_close_and_gives_up(path: Path) -> None:
    tried = threading.Event()
    batches: list[int] = []

    def send(batch: Sequence[Entry]) -> None:
        batches.append(len(batch))
        tried.set()
        raise SendRefusedError("401")

    journal = Journal(path, send)
    journal.append({"n": 1})
    assert tried.wait(20)
    assert journal.close(10) == 1
    assert batches == [1, 1]

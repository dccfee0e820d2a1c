"""A journal on disk, delivered by a background thread: its entries survive an outage, a crash and a kill.

    journal.jsonl         one JSON object per line, fsynced before `append` returns
    journal.jsonl.sent    the number of delivered lines, replaced atomically

Only the file decides what is still to be delivered; memory holds just a position in it. A crash after a delivery but
before it is counted sends those lines twice, so the receiver must accept duplicates (MLflow does).
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

Entry = Mapping[str, Any]
Send = Callable[[Sequence[Entry]], None]

BATCH = 500
"""Most entries that are sent at once."""
FIRST_DELAY = 1.0
LONGEST_DELAY = 30.0
REFUSED_DELAY = 300.0
CLOSING_DELAY = 0.5
log = logging.getLogger(__name__)


class SendRefusedError(Exception):
    """Raised by `send` where trying again soon is useless: the next attempt is minutes later, or at the close."""


class Journal:
    """Keep entries in a file and deliver them in order through `send`, which raises if it fails.

    Opening a journal left by an earlier process continues it: undelivered entries are sent first. The sender calls
    `sleep` with the seconds to wait between two attempts; the default returns early when the journal is closed.
    """

    def __init__(
        self,
        path: Path,
        send: Send,
        *,
        background: bool = True,
        batch: int = BATCH,
        sleep: Callable[[float], object] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path = path
        self._send = send
        self._most = batch
        self._sleep = sleep
        self._clock = clock
        self._closing = threading.Event()
        self._closed = threading.Event()
        self._refused = False
        self._changed = threading.Condition()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        _drop_cut_line(path)
        self._sent, self._offset = _place(path)
        self._thread = threading.Thread(target=self._deliver, name="mlflow-ft-journal", daemon=True)
        if background:
            self._thread.start()

    @property
    def pending(self) -> int:
        """Number of entries not delivered yet."""
        with self.path.open("rb") as file:
            file.seek(self._offset)
            return sum(1 for _ in file)

    def append(self, *entries: Entry) -> None:
        """Write the entries to disk, without waiting for their delivery.

        Raises:
            OSError: the disk is full or gone.
        """
        text = "".join(json.dumps(entry) + "\n" for entry in entries)
        with self._changed, self.path.open("ab", buffering=0) as file:
            file.write(text.encode())
            os.fsync(file.fileno())
            self._changed.notify_all()

    def replay(self) -> int:
        """Deliver everything now, in this thread, and return the number of entries; raises what `send` raises."""
        count = 0
        while lines := self._batch():
            self._send_lines(lines)
            count += len(lines)
        return count

    def flush(self, timeout: float) -> bool:
        """Wait until everything is delivered, or until `timeout` seconds pass without progress."""
        with self._changed:
            sent, since = self._sent, self._clock()
            while self._has_pending():
                if self._sent != sent:
                    sent, since = self._sent, self._clock()
                left = since + timeout - self._clock()
                if left <= 0 or self._refused or not self._thread.is_alive():
                    return False
                self._changed.wait(left)
            return True

    def close(self, timeout: float) -> int:
        """Retry more often, give up after `timeout` seconds without progress, and return the undelivered count."""
        self._closing.set()
        with self._changed:
            self._changed.notify_all()
        self.flush(timeout)
        self._closed.set()
        pending = self.pending
        if not pending:  # the sender may still be about to read the file, which the caller removes next
            self._join_sender(timeout)
        return pending

    def _join_sender(self, timeout: float) -> None:
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(timeout)

    def _deliver(self) -> None:
        delay, failing = FIRST_DELAY, ""
        while (lines := self._next_batch()) and not self._closed.is_set():
            closing = self._closing.is_set()
            try:
                self._send_lines(lines)
            except Exception as error:  # whatever the error, the sender tries again
                refused = isinstance(error, SendRefusedError)
                if failing != type(error).__name__ and (refused or not failing):
                    log.warning("cannot deliver metrics (%s); they are kept in %s", error, self.path)
                failing = type(error).__name__
                if refused and closing:
                    self._give_up()
                    return
                self._pause(REFUSED_DELAY if refused else delay)
                delay = min(2 * delay, LONGEST_DELAY)
            else:
                if failing:
                    log.warning("the tracking server accepts metrics again")
                delay, failing = FIRST_DELAY, ""

    def _give_up(self) -> None:
        """Let `flush` return: the entries stay in the file."""
        with self._changed:
            self._refused = True
            self._changed.notify_all()

    def _pause(self, delay: float) -> None:
        if self._sleep:
            self._sleep(delay)
        elif self._closing.wait(delay):  # a caller waits in `close`: try often, but do not spin
            time.sleep(CLOSING_DELAY)

    def _next_batch(self) -> list[bytes]:
        """Wait for entries; return an empty list when the journal is closed and everything is delivered."""
        with self._changed:
            while not (lines := self._batch()) and not self._closing.is_set():
                self._changed.wait()
            return lines

    def _has_pending(self) -> bool:
        return self.path.stat().st_size > self._offset

    def _batch(self) -> list[bytes]:
        with self.path.open("rb") as file:
            file.seek(self._offset)
            return [line for line in islice(file, self._most) if line.endswith(b"\n")]

    def _send_lines(self, lines: Sequence[bytes]) -> None:
        entries = [entry for line in lines if (entry := _parse(line)) is not None]
        if entries:
            self._send(entries)
        with self._changed:
            _write_sent(self.path, self._sent + len(lines))
            self._sent += len(lines)
            self._offset += sum(map(len, lines))
            self._changed.notify_all()


def _parse(line: bytes) -> Entry | None:
    try:
        entry = json.loads(line)
    except ValueError:  # a full disk may have cut a line in the middle of the file
        entry = None
    if not isinstance(entry, dict):
        log.warning("skipping an invalid line of the journal: %r", line[:80])
        return None
    return entry


def _drop_cut_line(path: Path) -> None:
    content = path.read_bytes()
    complete = content.rfind(b"\n") + 1
    if complete != len(content):
        log.warning("%s: dropping the last line, which a crash cut short", path)
        os.truncate(path, complete)


def _place(path: Path) -> tuple[int, int]:
    """The number of delivered lines, and the offset of the first undelivered one."""
    try:
        sent = int(_sent_path(path).read_text())
    except (FileNotFoundError, ValueError):  # sending twice is harmless, skipping is not
        return 0, 0
    with path.open("rb") as file:
        lines = [len(line) for line in islice(file, sent)]
    return (sent, sum(lines)) if len(lines) == sent else (0, 0)


def _sent_path(path: Path) -> Path:
    return path.with_name(path.name + ".sent")


def _write_sent(path: Path, number: int) -> None:
    aside = path.with_name(path.name + ".sent.new")
    aside.write_text(str(number))
    aside.replace(_sent_path(path))

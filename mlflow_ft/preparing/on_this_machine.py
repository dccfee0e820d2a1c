"""A pass over rows on this machine: this process reads, converts and writes; for many rows others do the rest.

That is tokens, proof and checks; and reading and converting, if a file has a row on each line. With one core, or a
check that cannot be joined (`JoiningCollector`), this process does everything.
"""

from __future__ import annotations

import gc
import os
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_ft import processes
from mlflow_ft.config.schema import ChecksSection, DataSection
from mlflow_ft.data import pieces, store
from mlflow_ft.data.pieces import Piece, Size
from mlflow_ft.data.quality import Quality
from mlflow_ft.errors import DataError
from mlflow_ft.preparing import batches
from mlflow_ft.preparing.batches import Batch, Recipe, Sources, Worked
from mlflow_ft.preparing.one_pass import OpenedSource, Tally
from mlflow_ft.progress import Bar
from mlflow_ft.records import Check

if TYPE_CHECKING:
    from concurrent.futures import Future

    from mlflow_ft.engine.tokens.masking import Encoder

ALONE = 4_000
"""Rows that this process does before others are worth starting, which takes seconds; it goes on meanwhile."""
LARGE = 2**24
"""Bytes of files from which others start at once."""
BYTES = 2**20
"""The size of a piece of a file, in bytes: a second of work, or less."""
MOST_HELPERS = 16
RARELY = (100_000, 50, 100)
"""Thresholds of Python's search for reference cycles: rows are many objects, and none."""


def pass_of(checks: Sequence[Check] | None, limits: ChecksSection) -> Callable[..., Tally]:
    """The pass on this machine, with these checks."""
    return partial(run, checks=checks, limits=limits)


def run(
    opened: Sequence[OpenedSource],
    settings: DataSection,
    *,
    encoder: Encoder,
    quality: Quality | None,
    file: Path,
    bar: Bar,
    checks: Sequence[Check] | None,
    limits: ChecksSection,
    helpers: int | None = None,
) -> Tally:
    """Prepare every row and write those that can be learned from to `file`.

    Raises:
        DataError: as the sources raise it, or another process was killed.
    """
    count = _helpers() if helpers is None else helpers
    sources = Sources(opened=opened, settings=settings, rows=store.BATCH)
    here = partial(batches.work, settings=settings, encoder=encoder, quality=quality)
    recipe = partial(batches.recipe, settings, encoder, checks, limits)
    done = _worked(sources, here, recipe, quality, count)
    with _collecting_rarely():
        return batches.write_all(_joined(done, quality), file, encoder, bar)


def _joined(done: Generator[Worked], quality: Quality | None) -> Generator[Worked]:
    """The results, with what other processes have checked added to the checks of this one."""
    with closing(done):
        for worked in done:
            if quality is not None and worked.quality is not None:
                quality.join(worked.quality)
            yield worked


@contextmanager
def _collecting_rarely() -> Iterator[None]:
    """Search for reference cycles less often: that took a fifth of the time."""
    usual = gc.get_threshold()
    gc.set_threshold(*RARELY)
    try:
        yield
    finally:
        gc.set_threshold(*usual)


def _helpers() -> int:
    """How many other processes have a core; the work of this one is little."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MOST_HELPERS, cores) if cores > 1 else 0


def _to_read(sources: Sources) -> Iterator[Batch | Piece]:
    """All rows in order: pieces of files that any process can read, and the rows of other files, in batches."""
    sizes = deque[Size]()
    cut = pieces.cut([one.source for one in sources.opened], size=BYTES)
    for piece in pieces.placed(cut, iter(sizes.popleft, None)):
        if piece.span:
            yield piece
            sizes.append(pieces.measure(sources.opened[piece.source].source, piece))
            continue
        rows = 0
        for batch in sources.read(piece):
            rows += batch.tally.rows
            yield batch
        sizes.append(Size(rows=rows, lines=0))


def _size(sources: Sources) -> int:
    """Bytes of the files that are read as a whole."""
    if sources.settings.max_rows is not None:
        return 0
    files = [file.path for one in sources.opened for file in one.source.files]
    return sum(file.stat().st_size for file in files if file)


def _worked(
    sources: Sources,
    here: Callable[[Batch], Worked],
    recipe: Callable[[], Recipe],
    quality: Quality | None,
    count: int,
) -> Generator[Worked]:
    """The results of every batch, in order: by this process until the others have started."""
    parts, to_do = 0, _to_read(sources)
    alone = 0 if _size(sources) >= LARGE else ALONE
    with ExitStack() as stack:
        helpers: Helpers | None = None
        for task in to_do:
            if not helpers and count and parts >= alone and (quality is None or quality.joins):
                helpers = stack.enter_context(Helpers(recipe(), sources, count))
            if helpers and helpers.ready:
                yield from helpers.work(chain([task], to_do))
                return
            for worked in map(here, sources.batches(task)):
                yield worked
                parts += worked.tally.parts


class Helpers:
    """Other processes, which start when the context is entered, and end with it."""

    def __init__(self, recipe: Recipe, sources: Sources, count: int) -> None:
        from joblib.externals.loky import get_reusable_executor  # its workers do not run the main program again

        self._count = count
        given = (recipe, sources, os.getpid())
        self._executor = get_reusable_executor(max_workers=count, initializer=_start, initargs=given, timeout=60)
        self._started: list[Future[None]] = [self._executor.submit(_prepare) for _ in range(count)]

    def __enter__(self) -> Helpers:
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.shutdown(wait=True, kill_workers=True)

    @property
    def ready(self) -> bool:
        """Whether one of them can work."""
        return any(started.done() for started in self._started)

    def work(self, to_do: Iterator[Batch | Piece]) -> Generator[Worked]:
        """The results of batches, in order; only a few of them wait.

        Raises:
            DataError: as the sources raise it, or a process was killed.
        """
        from joblib.externals.loky.process_executor import TerminatedWorkerError

        pending: deque[Future[list[Worked]]] = deque()
        try:
            for task in to_do:
                pending.append(self._executor.submit(_work, task))
                if len(pending) > 2 * self._count:
                    yield from pending.popleft().result()
            while pending:
                yield from pending.popleft().result()
        except TerminatedWorkerError as error:
            raise DataError(
                "a process that prepares rows was killed",
                hint=f"the machine may lack memory for {self._count} of them; `taskset -c 0` before the command starts "
                "none",
            ) from error


_given: tuple[Recipe, Sources] | None = None
"""Set in another process."""


def _start(recipe: Recipe, sources: Sources, parent: int) -> None:
    global _given
    processes.when_orphaned(parent, partial(os._exit, 1))  # else it waits for ever for a process that was killed
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there are as many processes as cores
    gc.set_threshold(*RARELY)
    _given = recipe, sources


def _prepare() -> None:
    """Import what the first batch needs."""
    assert _given is not None
    batches.encoder_of(_given[0])


def _work(task: Batch | Piece) -> list[Worked]:
    assert _given is not None
    recipe, sources = _given
    return [batches.work_elsewhere(recipe, batch) for batch in sources.batches(task)]

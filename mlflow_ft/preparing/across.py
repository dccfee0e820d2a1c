"""A pass over rows on several machines: read, converted, tokenised, proved and checked in batches of consecutive rows.

This process writes what can be learned from. Of the checks, each batch keeps what it has seen on the machine that saw
it, until one finding is made of all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_ft.config.schema import ChecksSection, DataSection
from mlflow_ft.data import pieces
from mlflow_ft.data.pieces import Piece, Size
from mlflow_ft.data.quality import Quality
from mlflow_ft.preparing import batches
from mlflow_ft.preparing.batches import Batch, Recipe, Sources, Worked
from mlflow_ft.preparing.one_pass import OpenedSource, Tally
from mlflow_ft.progress import Bar
from mlflow_ft.records import Check
from mlflow_ft.values import Handle, Machines

if TYPE_CHECKING:
    from mlflow_ft.engine.tokens.masking import Encoder

ROWS = 5_000
"""Rows of a batch: seconds of work, and some megabytes."""
BYTES = 16 * 2**20
"""The size of a piece of a file that can be read in pieces."""


def measure(sources: Sources, piece: Piece) -> Iterator[Size]:
    """How many rows are in a piece."""
    yield pieces.measure(sources.opened[piece.source].source, piece)


def read(sources: Sources, piece: Piece) -> Iterator[Batch]:
    """The rows of a piece in batches."""
    return sources.read(piece)


def _results(worked: Worked) -> Worked:
    return replace(worked, quality=None)


def _quality(worked: Worked) -> Quality | None:
    return worked.quality


def pass_of(machines: Machines, checks: Sequence[Check] | None, limits: ChecksSection) -> Callable[..., Tally]:
    """The pass on several machines, with these checks."""
    return partial(run, machines=machines, checks=checks, limits=limits)


def run(
    opened: Sequence[OpenedSource],
    settings: DataSection,
    *,
    encoder: Encoder,
    quality: Quality | None,
    file: Path,
    bar: Bar,
    machines: Machines,
    checks: Sequence[Check] | None,
    limits: ChecksSection,
) -> Tally:
    """Prepare every row and write those that can be learned from to `file`."""
    sources = Sources(opened=opened, settings=settings, rows=ROWS)
    recipe: Recipe = batches.recipe(settings, encoder, checks, limits)
    files = [file.path for source in opened for file in source.source.files if file.path]
    cut = _placed(machines, sources, files)
    seen: list[Handle] = []
    flow = machines.flow(cut, partial(read, sources), partial(batches.work_elsewhere, recipe), files=files)
    tally = batches.write_all(_fetched(flow, machines, seen), file, encoder, bar)
    if quality is not None:
        quality.gather(seen, machines)
    return tally


def _placed(machines: Machines, sources: Sources, files: Sequence[Path]) -> list[Piece]:
    """The pieces of all sources, each with the number of rows before it: they are counted if there are several."""
    cut = pieces.cut([source.source for source in sources.opened], size=BYTES)
    if len(cut) < 2:
        return cut
    counted = machines.flow(cut, partial(measure, sources), _same, files=files)
    return list(pieces.placed(cut, iter(machines.get(list(counted)))))


def _same(size: Size) -> Size:
    return size


def _fetched(flow: Iterator[Handle], machines: Machines, seen: list[Handle]) -> Generator[Worked]:
    """The results of every batch, in order; what its checks have seen stays where it is."""
    for worked in flow:
        results = machines.run(_results, worked)
        seen.append(machines.run(_quality, worked))
        yield from machines.get([results])

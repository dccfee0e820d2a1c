"""A pass over rows on several machines: read, converted, tokenised, proved and checked in batches of consecutive rows.

This process writes what can be learned from. Of the checks, each batch keeps what it has seen on the machine that saw
it, until one finding is made of all of them.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from mlflow_ft.config.schema import ChecksSection, DataSection
from mlflow_ft.data import pieces, store
from mlflow_ft.data.pieces import Piece, Size
from mlflow_ft.data.quality import Quality
from mlflow_ft.preparing import one_pass, proving
from mlflow_ft.preparing.one_pass import Numbered, OpenedSource, Tally
from mlflow_ft.progress import Bar
from mlflow_ft.records import Check
from mlflow_ft.values import Handle, Machines

if TYPE_CHECKING:
    import pyarrow

    from mlflow_ft.engine.tokens.masking import Encoder

ROWS = 5_000
"""Rows of a batch: seconds of work, and some megabytes."""
BYTES = 16 * 2**20
"""The size of a piece of a file that can be read in pieces."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a machine must know to work on rows."""

    key: str
    opened: Sequence[OpenedSource]
    settings: DataSection
    rows: int
    """Rows of a batch."""
    tokenizer: Mapping[str, bytes]
    """The files of the tokenizer."""
    max_length: int
    moment: datetime | None
    checks: Sequence[Check] | None
    limits: ChecksSection


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Consecutive rows of a piece, as far as they could be converted."""

    numbered: Sequence[Numbered]
    tally: Tally
    """Of this batch."""


@dataclass(frozen=True, kw_only=True)
class Worked:
    """A batch with its results."""

    records: pyarrow.RecordBatch
    """Those that can be learned from, as the store keeps them; `file` is a number in the tally of the batch."""
    tally: Tally
    template: str
    """The chat template if it was extended for rows with tools, else ""."""
    dates: Mapping[str, str]
    quality: Quality | None


def measure(recipe: Recipe, piece: Piece) -> Iterator[Size]:
    """How many rows are in a piece."""
    yield pieces.measure(recipe.opened[piece.source].source, piece)


def read(recipe: Recipe, piece: Piece) -> Iterator[Batch]:
    """The rows of a piece in batches."""
    source, before = recipe.opened[piece.source], piece.index
    rows = source.converted(pieces.rows(source.source, piece), recipe.settings)
    while some := list(itertools.islice(rows, recipe.rows)):
        tally = Tally()
        numbered = [
            part for row in some for part in one_pass.parts_of(row, piece.source, recipe.settings, tally, before=before)
        ]
        before += tally.rows
        yield Batch(numbered=numbered, tally=tally)


def work(recipe: Recipe, batch: Batch) -> Worked:
    """Tokenise the rows of a batch, prove their masks and check them."""
    from mlflow_ft.engine.tokens import clock, tool_text

    encoder, numbered, tally = _encoder(_Kept(recipe)), batch.numbered, batch.tally
    with clock.held(recipe.moment):
        results = proving.prove(encoder, one_pass.examples_of(numbered))
    quality = None if recipe.checks is None else Quality(recipe.checks, recipe.limits)
    if quality is not None:
        one_pass.show(numbered, results, encoder, quality)
    records = list(one_pass.prepared(numbered, results, recipe.settings, tally, encoder))
    return Worked(
        records=store.batch(records, store.schema()),
        tally=tally,
        template=str(encoder.tokenizer.chat_template) if tool_text.taught(encoder.tokenizer) else "",
        dates=encoder.dates,
        quality=quality,
    )


class _Kept:
    """A recipe that is known by its key, for the cache."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    def __hash__(self) -> int:
        return hash(self.recipe.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Kept) and other.recipe.key == self.recipe.key


@lru_cache(maxsize=1)
def _encoder(kept: _Kept) -> Encoder:
    from transformers import AutoTokenizer

    from mlflow_ft.engine.tokens.masking import Encoder

    with tempfile.TemporaryDirectory() as folder:
        for name, content in kept.recipe.tokenizer.items():
            (Path(folder) / name).write_bytes(content)
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    return Encoder(tokenizer, max_length=kept.recipe.max_length)


def _results(worked: Worked) -> Worked:
    return replace(worked, quality=None)


def _quality(worked: Worked) -> Quality | None:
    return worked.quality


def pass_of(machines: Machines, checks: Sequence[Check] | None, limits: ChecksSection) -> Callable[..., Tally]:
    """`one_pass.run` on several machines, with these checks."""
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
    recipe = _recipe(opened, settings, encoder, checks, limits)
    files = [file.path for source in opened for file in source.source.files if file.path]
    cut = _placed(machines, recipe, files)
    tally = Tally()
    seen: list[Handle] = []
    flow = machines.flow(cut, partial(read, recipe), partial(work, recipe), files=files)
    with store.Writer(file) as writer, closing(_fetched(flow, machines, seen)) as done:
        for worked in done:
            writer.write_batch(_renumbered(worked, tally))
            _add(tally, worked.tally)
            encoder.dates.update(worked.dates)
            if worked.template:  # rows that need tools; all machines extend the template in the same way
                encoder.tokenizer.chat_template = worked.template
            bar.advance(worked.tally.parts)
            if tally.hopeless:
                break
    tally.left_out.sort(key=lambda row: row.index)
    if quality is not None:
        quality.gather(seen, machines)
    return tally


def _placed(machines: Machines, recipe: Recipe, files: Sequence[Path]) -> list[Piece]:
    """The pieces of all sources, each with the number of rows before it: they are counted if there are several."""
    cut = pieces.cut([source.source for source in recipe.opened], size=BYTES)
    if len(cut) < 2:
        return cut
    counted = machines.flow(cut, partial(measure, recipe), _same, files=files)
    return pieces.placed(cut, machines.get(list(counted)))


def _same(size: Size) -> Size:
    return size


def _fetched(flow: Iterator[Handle], machines: Machines, seen: list[Handle]) -> Generator[Worked]:
    """The results of every batch, in order; what its checks have seen stays where it is."""
    for worked in flow:
        results = machines.run(_results, worked)
        seen.append(machines.run(_quality, worked))
        yield from machines.get([results])


def _renumbered(worked: Worked, tally: Tally) -> pyarrow.RecordBatch:
    """The records with the numbers that files have in the whole."""
    import numpy as np
    import pyarrow as pa

    numbers = [tally.files.setdefault(name, len(tally.files)) for name in worked.tally.files]
    place = worked.records.schema.get_field_index("file")
    own = worked.records.column(place).to_numpy()
    files = pa.array(np.asarray(numbers, np.int32)[own] if len(own) else own, pa.int32())
    return worked.records.set_column(place, "file", files)


def _add(tally: Tally, later: Tally) -> None:
    """Add the counts of later rows; their files have been added."""
    tally.rows += later.rows
    tally.parts += later.parts
    tally.left_out += later.left_out
    tally.ways += later.ways
    tally.ends += later.ends
    tally.columns.update(later.columns)
    tally.good += later.good


def _recipe(
    opened: Sequence[OpenedSource],
    settings: DataSection,
    encoder: Encoder,
    checks: Sequence[Check] | None,
    limits: ChecksSection,
) -> Recipe:
    from mlflow_ft.engine.tokens import clock

    with tempfile.TemporaryDirectory() as folder:
        encoder.tokenizer.save_pretrained(folder)
        files = {file.name: file.read_bytes() for file in Path(folder).iterdir() if file.is_file()}
    return Recipe(
        key=uuid4().hex,
        opened=opened,
        settings=settings,
        rows=ROWS,
        tokenizer=files,
        max_length=encoder.max_length,
        moment=clock.moment(),
        checks=checks,
        limits=limits,
    )

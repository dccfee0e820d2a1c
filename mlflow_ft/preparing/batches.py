"""Batches of rows: read and converted, then tokenised, proved and checked, in this process or another one."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from mlflow_ft.config.schema import ChecksSection, DataSection
from mlflow_ft.data import pieces, store
from mlflow_ft.data.pieces import Piece
from mlflow_ft.data.quality import Quality
from mlflow_ft.preparing import one_pass, proving
from mlflow_ft.preparing.one_pass import Numbered, OpenedSource, Tally
from mlflow_ft.progress import Bar
from mlflow_ft.records import Check

if TYPE_CHECKING:
    import pyarrow

    from mlflow_ft.engine.tokens.masking import Encoder


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
    template: str = ""
    """The chat template if it was extended for rows with tools, else ""."""
    dates: Mapping[str, str]
    quality: Quality | None = None


@dataclass(frozen=True, kw_only=True)
class Sources:
    """What a process must know to read rows."""

    opened: Sequence[OpenedSource]
    settings: DataSection
    rows: int
    """Rows of a batch."""

    def batches(self, task: Batch | Piece) -> Iterable[Batch]:
        """A batch itself, or those of a piece."""
        return [task] if isinstance(task, Batch) else self.read(task)

    def read(self, piece: Piece) -> Iterator[Batch]:
        """The rows of a piece in batches."""
        before = piece.index
        source = self.opened[piece.source]
        converted = source.converted(pieces.rows(source.source, piece), self.settings)
        while (first := next(converted, None)) is not None:
            tally, numbered = Tally(), list[Numbered]()
            for row in itertools.chain([first], itertools.islice(converted, self.rows - 1)):
                numbered += one_pass.parts_of(row, piece.source, self.settings, tally, before=before)
                if tally.hopeless and not numbered:
                    break
            before += tally.rows
            yield Batch(numbered=numbered, tally=tally)


def work(batch: Batch, settings: DataSection, encoder: Encoder, quality: Quality | None) -> Worked:
    """Tokenise the rows of a batch, prove their masks, and show them to the checks of `quality`."""
    from mlflow_ft.engine.tokens import tool_text

    results = proving.prove(encoder, one_pass.examples_of(batch.numbered))
    if quality is not None:
        one_pass.show(batch.numbered, results, encoder, quality)
    records = list(one_pass.prepared(batch.numbered, results, settings, batch.tally, encoder))
    return Worked(
        records=store.batch(records, store.schema()),
        tally=batch.tally,
        template=str(encoder.tokenizer.chat_template) if tool_text.taught(encoder.tokenizer) else "",
        dates=encoder.dates,
    )


def _write(worked: Worked, tally: Tally, writer: store.Writer, encoder: Encoder) -> None:
    """Write the records of a batch and count them; the encoder gets what the one that worked has learned."""
    writer.write_batch(_renumbered(worked, tally))
    _add(tally, worked.tally)
    encoder.dates.update(worked.dates)
    if worked.template:  # rows that need tools; every encoder extends the template in the same way
        encoder.tokenizer.chat_template = worked.template


def write_all(done: Generator[Worked], file: Path, encoder: Encoder, bar: Bar) -> Tally:
    """Write the records of all batches to `file`, until there are so many bad rows that the rest is not read."""
    tally = Tally()
    with store.Writer(file) as writer, closing(done):
        for worked in done:
            _write(worked, tally, writer, encoder)
            bar.advance(worked.tally.parts)
            if tally.hopeless:
                break
    tally.left_out.sort(key=lambda row: row.index)
    return tally


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


# --- in another process


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What another process must know to work on rows."""

    key: str
    settings: DataSection
    tokenizer: bytes
    """The tokenizer, pickled: unlike one read from files, it needs no torch, whose import takes seconds."""
    max_length: int
    moment: datetime | None
    checks: Sequence[Check] | None
    limits: ChecksSection


def recipe(settings: DataSection, encoder: Encoder, checks: Sequence[Check] | None, limits: ChecksSection) -> Recipe:
    """What another process must know to work as this one does."""
    from mlflow_ft.engine.tokens import clock

    return Recipe(
        key=uuid4().hex,
        settings=settings,
        tokenizer=pickle.dumps(encoder.tokenizer),
        max_length=encoder.max_length,
        moment=clock.moment(),
        checks=checks,
        limits=limits,
    )


def work_elsewhere(given: Recipe, batch: Batch) -> Worked:
    """`work`, in a process that knows only the recipe; what its checks have seen is returned too."""
    from mlflow_ft.engine.tokens import clock

    quality = None if given.checks is None else Quality(given.checks, given.limits)
    with clock.held(given.moment):
        worked = work(batch, given.settings, encoder_of(given), quality)
    return replace(worked, quality=quality)


def encoder_of(given: Recipe) -> Encoder:
    """The encoder of a recipe, which is made once in a process."""
    return _encoder(_Kept(given))


class _Kept:
    """A recipe that is known by its key, for the cache."""

    def __init__(self, given: Recipe) -> None:
        self.recipe = given

    def __hash__(self) -> int:
        return hash(self.recipe.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Kept) and other.recipe.key == self.recipe.key


@lru_cache(maxsize=1)
def _encoder(kept: _Kept) -> Encoder:
    from mlflow_ft.engine.tokens.masking import Encoder

    tokenizer = pickle.loads(kept.recipe.tokenizer)  # noqa: S301  # `recipe` has written it
    return Encoder(tokenizer, max_length=kept.recipe.max_length)

"""From sources to prepared rows on disk in one pass: read, convert, check, tokenise, prove, write."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from mlflow_ft.config.schema import DataSection
from mlflow_ft.data import fingerprint, sources, store, turns
from mlflow_ft.data.quality import Quality
from mlflow_ft.data.reading.readers import Unreadable
from mlflow_ft.data.recognising import convert, recognition
from mlflow_ft.data.recognising.numbers import AsText
from mlflow_ft.data.recognising.recognition import Recogniser
from mlflow_ft.data.sources import Source
from mlflow_ft.data.turns import Part
from mlflow_ft.errors import DataError
from mlflow_ft.hashes import row_hash
from mlflow_ft.plugins import Plugins
from mlflow_ft.preparing import proving
from mlflow_ft.preparing.proving import ProvedRow
from mlflow_ft.progress import Bar
from mlflow_ft.records import DataFormat
from mlflow_ft.registry import Registry
from mlflow_ft.rows import Checked, Example, Place, Row

if TYPE_CHECKING:
    from mlflow_ft.engine.tokens.masking import Encoder
    from mlflow_ft.engine.tokens.render import MaskError

HOPELESS = 1000
"""So many bad rows without a good one between them: the rest is not read."""
Sort = Literal["read", "convert", "prove", "cut"]


@dataclass(frozen=True, kw_only=True)
class OpenedSource:
    """A source, its format, and what its first rows told of it."""

    source: Source
    record: DataFormat
    weight: float | None
    as_text: tuple[AsText, ...] = ()
    """Columns whose numbers are taken as text."""
    remarks: tuple[str, ...] = ()
    """What was made of it that a person should know, a sentence each."""

    @property
    def sentences(self) -> list[str]:
        """What was made of it, for people, with its name."""
        return [f"{self.source.asked}: {sentence}" for sentence in self.remarks]

    def examples(self, settings: DataSection) -> Iterator[tuple[Row, Example] | Unreadable]:
        """Every row, converted; in place of one that is not of the format stands why."""
        return convert.convert(self.source.rows(), self.record, settings, as_text=self.as_text)


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A row that is not learned from, and why. What is cut away is no fault of the row's."""

    index: int
    """Its number among all rows that were read, from 0."""
    file: str
    line: int
    reason: str
    sort: Sort
    text: str = ""
    """The row as the template writes it, where that is what is wrong."""


@dataclass(kw_only=True)
class Tally:
    """What a pass has counted."""

    rows: int = 0
    """That were read."""
    parts: int = 0
    """Into which `data.turns` divided them; as many as there are rows where it does not."""
    left_out: list[LeftOut] = field(default_factory=list)
    ways: Counter[str] = field(default_factory=Counter)
    ends: Counter[int] = field(default_factory=Counter)
    columns: dict[str, None] = field(default_factory=dict)
    files: dict[str, int] = field(default_factory=dict)
    good: int = 0


def open_sources(
    asked: Mapping[str, float | None], settings: DataSection, *, plugins: Plugins, registry: Registry
) -> list[OpenedSource]:
    """Find every source and recognise its rows by the first of them.

    Raises:
        DataError: a source is missing, empty, of no known format, or of another kind than the others.
    """
    recogniser = Recogniser(settings=settings, plugins=plugins, registry=registry)
    found = [sources.open_source(name, settings) for name in asked]
    understood, refusal = [], None
    for source in found:
        try:
            understood.append(recogniser.understand(source))
        except DataError as error:
            refusal = refusal or error
    if refusal:
        recogniser.check_names(found)  # a column that is named wrongly is what hinders
        raise refusal
    recognition.check_columns(list(dict.fromkeys(name for one in understood for name in one.columns)), settings)
    opened = [
        OpenedSource(source=one.source, record=one.record, weight=weight, as_text=one.as_text, remarks=one.remarks)
        for one, weight in zip(understood, asked.values(), strict=True)
    ]
    kinds = {one.record.kind: one.source.asked for one in opened}
    if len(kinds) > 1:
        told = " and ".join(f"{name!r} ({kind})" for kind, name in kinds.items())
        raise DataError(f"the sources are of different kinds: {told}", hint="train on one kind at a time")
    return opened


def check_kind(held: DataFormat, train: DataFormat, eval_path: str) -> None:
    """Raise DataError where the held-out rows are of another kind than those to train on."""
    if held.kind != train.kind:
        raise DataError(
            f"the held-out rows are of another kind ({held.kind}) than those to train on ({train.kind})",
            hint=f"name others with --data.eval_path; it is {eval_path}",
        )


def run(
    opened: Sequence[OpenedSource],
    settings: DataSection,
    *,
    encoder: Encoder,
    quality: Quality | None,
    file: Path,
    bar: Bar,
) -> Tally:
    """Prepare every row and write those that can be learned from to `file`."""
    tally = Tally()
    rows = _rows(opened, settings, tally)
    batches = iter(lambda: list(itertools.islice(rows, store.BATCH)), [])
    with store.Writer(file) as writer, closing(proving.proved(batches, _examples, encoder)) as proved:
        for batch, results in proved:
            writer.write(list(_prepared(batch, results, settings, tally, encoder, quality)))
            bar.advance(len(batch))
            if not tally.good and len(tally.left_out) >= HOPELESS:
                break
    return tally


class Numbered(NamedTuple):
    """What is learned from at once, and which row it is of."""

    source: int
    number: int
    """Of the row, among all that were read, from 0."""
    row: Row
    whole: Example
    """What the row says."""
    part: Part


def _rows(opened: Sequence[OpenedSource], settings: DataSection, tally: Tally) -> Iterator[Numbered]:
    """Every row that could be converted, in its parts."""
    for number, one in enumerate(opened):
        for found in one.examples(settings):
            index, row = tally.rows, found if isinstance(found, Unreadable) else found[0]
            tally.rows += 1
            tally.files.setdefault(row.file, len(tally.files))
            if isinstance(found, Unreadable):
                tally.parts += 1
                sort: Sort = "convert" if found.converting else "read"
                _leave_out(tally, index, found, found.reason, sort)
                if not tally.good and len(tally.left_out) >= HOPELESS:
                    return
            else:
                row, example = found
                for part in turns.parts(example, settings):
                    tally.parts += 1
                    yield Numbered(number, index, row, example, part)


def _leave_out(tally: Tally, index: int, row: Place, reason: str, sort: Sort, text: str = "") -> None:
    tally.left_out.append(LeftOut(index=index, file=row.file, line=row.line, reason=reason, sort=sort, text=text))


def _examples(batch: Sequence[Numbered]) -> list[Example]:
    return [one.part.example for one in batch]


def _prepared(
    batch: Sequence[Numbered],
    results: Sequence[ProvedRow | MaskError],
    settings: DataSection,
    tally: Tally,
    encoder: Encoder,
    quality: Quality | None,
) -> Iterator[dict[str, Any]]:
    for (source, index, row, whole, part), found in zip(batch, results, strict=True):
        tally.columns.update(dict.fromkeys(map(str, row.values)))
        if quality is not None and part.final:  # checks look at rows as they were written
            quality.see(
                Checked(
                    file=row.file,
                    line=row.line,
                    index=index,
                    example=whole,
                    tokens=found.length if isinstance(found, ProvedRow) else 0,
                    special=encoder.special,
                    max_length=encoder.max_length,
                )
            )
        if not isinstance(found, ProvedRow):
            _leave_out(tally, index, row, str(found), "prove", found.text)
        elif reason := nothing_to_learn(part.example, found, encoder.max_length):
            _leave_out(tally, index, row, f"turn {part.turn}: {reason}" if part.turn else reason, "cut")
        else:
            tally.good += 1
            tally.ways[found.encoded.way] += 1
            tally.ends.update(found.ends)
            group = row.values.get(settings.split_by) if settings.split_by else None
            yield store.record(
                part.example,
                found.encoded,
                turn=part.turn,
                unwritten=found.unwritten,
                source=source,
                file=tally.files[row.file],
                line=row.line,
                index=index,
                length=found.length,
                hash=row_hash(row.values),
                key=fingerprint.prompt_key(whole) if group is None else fingerprint.key(group),
            )


def nothing_to_learn(example: Example, found: ProvedRow, max_length: int) -> str:
    """Why a row is dropped though nothing is wrong with its mask; "" where it is not."""
    if example.kind == "prompt":
        return f"the prompt is longer than data.max_length {max_length}" if found.length > max_length else ""
    if found.learnable:
        return ""
    if found.length > max_length:
        return f"cut at data.max_length {max_length} before anything is learned"
    return "nothing to learn: no turn of the assistant is to be learned"

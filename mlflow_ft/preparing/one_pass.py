"""What one pass over the rows of sources consists of: read, convert, check, tokenise, prove, write.

`on_this_machine` and `across` do it, batch by batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from mlflow_ft import wording
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
from mlflow_ft.preparing.proving import ProvedRow
from mlflow_ft.records import DataFormat
from mlflow_ft.registry import Registry
from mlflow_ft.rows import Checked, Example, Place, Row

if TYPE_CHECKING:
    from mlflow_ft.engine.tokens.masking import Encoder
    from mlflow_ft.engine.tokens.render import MaskError

HOPELESS = 1000
"""After so many bad rows and no good one, the rest is not read."""
Sort = Literal["read", "convert", "prove", "cut"]


@dataclass(frozen=True, kw_only=True)
class OpenedSource:
    """A source and its format, recognised from its first rows."""

    source: Source
    record: DataFormat
    weight: float | None
    as_text: tuple[AsText, ...] = ()
    """Columns whose numbers are read as text."""
    remarks: tuple[str, ...] = ()
    """How the source was read, if the user should know: a sentence each."""

    @property
    def sentences(self) -> list[str]:
        """The remarks, each with the name of the source."""
        return [f"{self.source.asked}: {sentence}" for sentence in self.remarks]

    def examples(self, settings: DataSection) -> Iterator[tuple[Row, Example] | Unreadable]:
        """Every row, converted; a row that is not in the format becomes an `Unreadable` with the reason."""
        return self.converted(self.source.rows(), settings)

    def converted(
        self, rows: Iterator[Row | Unreadable], settings: DataSection
    ) -> Iterator[tuple[Row, Example] | Unreadable]:
        """Some of its rows, converted."""
        return convert.convert(rows, self.record, settings, as_text=self.as_text)


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A row that is not learned from, and why. A row of the sort `cut` is not bad."""

    index: int
    """Its index among all rows read, from 0."""
    file: str
    line: int
    reason: str
    sort: Sort
    text: str = ""
    """The row as the template renders it, if the mask cannot be proved."""


@dataclass(kw_only=True)
class Tally:
    """The counts of a pass."""

    rows: int = 0
    """Rows read."""
    parts: int = 0
    """Rows after `data.turns` split them; the same number if it does not."""
    left_out: list[LeftOut] = field(default_factory=list)
    ways: Counter[str] = field(default_factory=Counter)
    ends: Counter[int] = field(default_factory=Counter)
    columns: dict[str, None] = field(default_factory=dict)
    files: dict[str, int] = field(default_factory=dict)
    good: int = 0

    @property
    def hopeless(self) -> bool:
        """Whether there are so many bad rows, and no good one, that the rest is not read."""
        return not self.good and len(self.left_out) >= HOPELESS


def open_sources(
    paths: Mapping[str, float | None], settings: DataSection, *, plugins: Plugins, registry: Registry
) -> list[OpenedSource]:
    """Find every source and recognise its format from its first rows; `paths` are the sources with their weights.

    Raises:
        DataError: a source is missing, empty, of unknown format, or of a different kind than the others; or none has
            the splits or subsets of which `data.split` and `data.subset` name one.
    """
    sources.check_split(settings)
    sources.check_subset(settings)
    recogniser = Recogniser(settings=settings, plugins=plugins, registry=registry)
    opened = [sources.open_source(path, settings) for path in paths]
    understood, refusal = [], None
    for source in opened:
        try:
            understood.append(recogniser.understand(source))
        except DataError as error:
            refusal = refusal or error
    if refusal:
        recogniser.check_names(opened)  # a wrong column name is the more likely cause
        raise refusal
    recognition.check_columns(list(dict.fromkeys(name for source in understood for name in source.columns)), settings)
    recognised = [
        OpenedSource(
            source=source.source, record=source.record, weight=weight, as_text=source.as_text, remarks=source.remarks
        )
        for source, weight in zip(understood, paths.values(), strict=True)
    ]
    kinds = {source.record.kind: source.source.asked for source in recognised}
    if len(kinds) > 1:
        names = " and ".join(f"{name!r} ({kind})" for kind, name in kinds.items())
        raise DataError(f"the sources are of different kinds: {names}", hint="train on one kind at a time")
    return recognised


def check_kind(held: DataFormat, train: DataFormat, eval_path: str) -> None:
    """Raise DataError if the held-out rows are of a different kind than the training rows."""
    if held.kind != train.kind:
        raise DataError(
            f"the held-out rows are of a different kind ({held.kind}) than the training rows ({train.kind})",
            hint=f"change --data.eval_path (it is {eval_path})",
        )


class Numbered(NamedTuple):
    """One part to learn from, and its row."""

    source: int
    number: int
    """The row's index among all rows read, from 0."""
    row: Row
    whole: Example
    """The row before it was split by turns."""
    part: Part


def parts_of(
    converted: tuple[Row, Example] | Unreadable, source: int, settings: DataSection, tally: Tally, *, before: int = 0
) -> Iterator[Numbered]:
    """The parts of a row of the source with this number, which is counted; `before` are rows that are not counted."""
    index, row = before + tally.rows, converted if isinstance(converted, Unreadable) else converted[0]
    tally.rows += 1
    tally.files.setdefault(row.file, len(tally.files))
    if isinstance(converted, Unreadable):
        tally.parts += 1
        _leave_out(tally, index, converted, converted.reason, "convert" if converted.converting else "read")
        return
    row, example = converted
    for part in turns.parts(example, settings):
        tally.parts += 1
        yield Numbered(source, index, row, example, part)


def _leave_out(tally: Tally, index: int, row: Place, reason: str, sort: Sort, text: str = "") -> None:
    tally.left_out.append(LeftOut(index=index, file=row.file, line=row.line, reason=reason, sort=sort, text=text))


def examples_of(batch: Sequence[Numbered]) -> list[Example]:
    """What is tokenised."""
    return [numbered.part.example for numbered in batch]


def _checked(numbered: Numbered) -> Checked | None:
    """The row as the checks see it, which is before it was split by turns."""
    _, index, row, whole, part = numbered
    return Checked(file=row.file, line=row.line, index=index, example=whole, tokens=0) if part.final else None


def show(
    batch: Sequence[Numbered], results: Sequence[ProvedRow | MaskError], encoder: Encoder, quality: Quality
) -> None:
    """Show rows to the checks, with what only the tokenizer knows."""
    for numbered, result in zip(batch, results, strict=True):
        if row := _checked(numbered):
            tokens = result.length if isinstance(result, ProvedRow) else 0
            quality.see(replace(row, tokens=tokens, special=encoder.special, max_length=encoder.max_length))


def prepared(
    batch: Sequence[Numbered],
    results: Sequence[ProvedRow | MaskError],
    settings: DataSection,
    tally: Tally,
    encoder: Encoder,
) -> Iterator[dict[str, Any]]:
    """The records of the rows that can be learned from; all are counted."""
    for numbered, result in zip(batch, results, strict=True):
        source, index, row, whole, part = numbered
        tally.columns.update(dict.fromkeys(map(str, row.values)))
        if not isinstance(result, ProvedRow):
            _leave_out(tally, index, row, str(result), "prove", result.text)
        elif reason := nothing_to_learn(part.example, result, encoder.max_length):
            _leave_out(tally, index, row, f"turn {part.turn}: {reason}" if part.turn else reason, "cut")
        else:
            tally.good += 1
            tally.ways[result.encoded.way] += 1
            tally.ends.update(result.ends)
            group = row.values.get(settings.split_by) if settings.split_by else None
            key = fingerprint.prompt_key(whole) if group is None else fingerprint.key(group)
            prompt_key, text_key = _worded(numbered, key)
            origin = store.Origin(
                turn=part.turn,
                unwritten=result.unwritten,
                source=source,
                file=tally.files[row.file],
                line=row.line,
                index=index,
                length=result.length,
                hash=row_hash(row.values),
                key=key,
                prompt_key=prompt_key,
                text_key=text_key,
            )
            yield store.record(part.example, result.encoded, origin)


def _worded(numbered: Numbered, key: int) -> tuple[int, int]:
    """The keys of the words of the part's prompt and of its text, as checks see them; `key` where they have none."""
    row = Checked(file=numbered.row.file, line=numbered.row.line, index=0, example=numbered.part.example, tokens=0)
    prompt_key, text_key = wording.prompt_key(row.prompt), wording.text_key(row.text)
    return key if prompt_key is None else prompt_key, key if text_key is None else text_key


def nothing_to_learn(example: Example, proved: ProvedRow, max_length: int) -> str:
    """Why a row with a proved mask is dropped; "" if it is kept."""
    if example.kind == "prompt":
        return f"the prompt is longer than data.max_length {max_length}" if proved.length > max_length else ""
    if proved.learnable:
        return ""
    if proved.length > max_length:
        return f"cut at data.max_length {max_length} before anything is learned"
    return "nothing to learn: no assistant turn is learned"

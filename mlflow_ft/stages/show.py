"""Rows as the trainer will see them: token by token, what is learned marked."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlflow_ft.config.schema import Config
from mlflow_ft.data import convert, sources
from mlflow_ft.data.readers import Unreadable
from mlflow_ft.plugins import Plugins
from mlflow_ft.registry import Registry
from mlflow_ft.rows import Example, Row
from mlflow_ft.stages import proving, rows
from mlflow_ft.stages.ready import Ready

if TYPE_CHECKING:
    from mlflow_ft.engine.masking import Encoder, Tokenised

KEPT = 5
"""Training rows whose mask is kept as an artifact, for a person to read."""
BATCH = 64


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One row, as far as it came."""

    row: int
    """Its number in the source, from 1."""
    file: str
    line: int
    format: str
    messages: Sequence[Mapping[str, Any]] = ()
    tokens: Sequence[str] = ()
    supervised: Sequence[int] = ()
    way: str = ""
    rejected: Mapping[str, Any] | None = None
    dropped: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """The row as one JSON object."""
        found = {name: getattr(self, name) for name in ("row", "file", "line", "format")}
        found |= {name: list(getattr(self, name)) for name in ("messages", "tokens", "supervised")}
        found |= {"mask": self.way} if self.way else {}
        found |= {"rejected": dict(self.rejected)} if self.rejected else {}
        return found | {"dropped": self.dropped}


def every_row(config: Config, tokenizer: Any, *, plugins: Plugins, registry: Registry) -> Iterator[Shown]:
    """Every training row in the order of the sources, one by one; nothing is kept.

    Raises:
        DataError: a source is missing, empty, broken as a whole, or of no known format.
    """
    from mlflow_ft.engine.masking import Encoder

    asked, _ = sources.paths(config.data)
    opened = rows.open_all(asked, config.data, plugins=plugins, registry=registry)
    encoder = Encoder(tokenizer, max_length=config.data.max_length)
    numbers = itertools.count(1)
    for one in opened:
        found = convert.convert(one.source.rows(), one.record, config.data)
        for batch in iter(lambda found=found: list(itertools.islice(found, BATCH)), []):  # type: ignore[misc]  # mypy cannot infer a lambda with a default
            yield from _shown(batch, one.record.name, encoder, numbers)


def _shown(
    batch: Sequence[tuple[Row, Example] | Unreadable], name: str, encoder: Encoder, numbers: Iterator[int]
) -> Iterator[Shown]:
    good = [one for one in batch if not isinstance(one, Unreadable)]
    results = iter(encoder.tokenise([example for _, example in good]))
    for one in batch:
        if isinstance(one, Unreadable):
            yield Shown(row=next(numbers), file=one.file, line=one.line, format=name, dropped=one.reason)
        else:
            row, example = one
            yield as_shown(row.file, row.line, example, next(results), name, encoder, next(numbers))


def as_shown(file: str, line: int, example: Example, found: Any, name: str, encoder: Encoder, number: int) -> Shown:
    """One converted row with its tokens, or with the reason why it has none."""
    messages = [dict(turn) for turn in (*example.messages, *example.chosen)]
    about: dict[str, Any] = {"row": number, "file": file, "line": line, "format": name, "messages": messages}
    if not isinstance(found, list):
        return Shown(**about, dropped=str(found))
    first, *others = found
    rejected = None
    if others:
        turns = [dict(turn) for turn in (*example.messages, *example.rejected)]
        rejected = {"messages": turns, **_tokens(others[0])}
    reason = rows.nothing_to_learn(example, proving.summary(found), encoder.max_length) or None
    return Shown(**about, **_tokens(first), way=first.way, rejected=rejected, dropped=reason)


def _tokens(one: Tokenised) -> dict[str, Any]:
    return {"tokens": one.pieces, "supervised": [int(label != -100) for label in one.labels]}


def first_rows(found: Ready, config: Config) -> list[Shown]:
    """The first training rows, tokenised again with the template that is saved with the model."""
    from mlflow_ft.engine.masking import Encoder

    train = found.data.train
    encoder = Encoder(found.data.tokenizer, max_length=config.data.max_length)
    examples = list(train.examples[:KEPT])
    return [
        as_shown(place.file, place.line, example, result, found.data.format, encoder, number)
        for number, (place, example, result) in enumerate(
            zip(train.rows[:KEPT], examples, encoder.tokenise(examples), strict=True), 1
        )
    ]


def as_text(found: Sequence[Shown]) -> str:
    """Rows for people: what is learned stands between `[[` and `]]`."""
    lines = ["What stands between [[ and ]] is learned; the rest is read.", ""]
    for one in found:
        lines += [f"--- {one.file}:{one.line}: {sum(one.supervised)} of {len(one.tokens)} tokens", marked(one), ""]
    return "\n".join(lines)


def marked(one: Shown) -> str:
    """A row's text with what is learned between `[[` and `]]`."""
    return "".join(f"[[{text}]]" if learned else text for learned, text in runs(one.tokens, one.supervised))


def runs(tokens: Sequence[str], supervised: Sequence[int]) -> list[tuple[bool, str]]:
    """Unbroken pieces of text that are learned, or not."""
    grouped = itertools.groupby(zip(tokens, supervised, strict=True), key=lambda pair: bool(pair[1]))
    return [(learned, "".join(text for text, _ in pairs)) for learned, pairs in grouped]


def remedy_for_length(found: Ready, side: str) -> str:
    """What to set so that fewer rows are cut, with the numbers of this data."""
    import numpy as np

    one = found.train if side == "train" else found.eval
    lengths = one.stored.table.column("length").to_numpy()[one.indices]
    return (
        f"--data.max_length {int(np.quantile(lengths, 0.99))} keeps 99 % of the rows whole, {lengths.max()} all of them"
    )

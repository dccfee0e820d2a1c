"""Rows as the trainer sees them, token by token, with the learned tokens marked."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mlflow_ft.config.schema import Config, DataSection
from mlflow_ft.data import sources, split, turns
from mlflow_ft.data.reading.readers import Unreadable
from mlflow_ft.plugins import Plugins
from mlflow_ft.preparing import one_pass, proving
from mlflow_ft.preparing.dataset import CheckedData
from mlflow_ft.registry import Registry
from mlflow_ft.rows import Example, Place, Row

if TYPE_CHECKING:
    from mlflow_ft.engine.tokens.masking import Encoder, Tokenised
    from mlflow_ft.preparing.prepared import PreparedRows

KEPT = 5
"""Training rows whose mask is logged as an artifact, for people to read."""
BATCH = 64
IGNORED = -100
"""The label of a token that is not learned."""


@dataclass(frozen=True, kw_only=True)
class ShownRow:
    """One row, as far as it could be prepared."""

    row: int
    """Its number in the source, from 1."""
    file: str
    line: int
    format: str
    messages: Sequence[Mapping[str, Any]] = ()
    tokens: Sequence[str] = ()
    supervised: Sequence[int] = ()
    way: str = ""
    cut: Mapping[str, Any] | None = None
    """What `data.max_length` cuts off, if anything: how many tokens, and whether the end of a turn is among them."""
    rejected: Mapping[str, Any] | None = None
    dropped: str | None = None
    turn: int = 0
    """The learned turn, from 1, if `data.turns` split the row; else 0."""
    unwritten: Sequence[int] = ()
    """The learned turns, from 1, whose thoughts the template leaves out."""

    @property
    def place(self) -> str:
        """The place of the row in its source, and which part of it this is."""
        return f"{self.file}:{self.line}" + (f" turn {self.turn}" if self.turn else "")

    def as_dict(self) -> dict[str, Any]:
        """The row as one JSON object."""
        row = {name: getattr(self, name) for name in ("row", "file", "line", "format")}
        row |= {name: list(getattr(self, name)) for name in ("messages", "tokens", "supervised")}
        row |= {"mask": self.way} if self.way else {}
        row["cut"] = dict(self.cut) if self.cut else None
        row |= {"rejected": dict(self.rejected)} if self.rejected else {}
        row |= {"turn": self.turn} if self.turn else {}
        row |= {"unwritten_thoughts": list(self.unwritten)} if self.unwritten else {}
        return row | {"dropped": self.dropped}


def every_row(
    config: Config,
    tokenizer: Any,
    *,
    plugins: Plugins,
    registry: Registry,
    tell: Callable[[str], None] = lambda sentence: None,
) -> Iterator[ShownRow]:
    """Every training row in the order of the sources, one by one; nothing is stored.

    `tell` is called with remarks on how a source was read.

    Raises:
        DataError: a source is missing, empty, broken or of unknown format.
    """
    from mlflow_ft.engine.tokens.masking import Encoder

    paths, _ = sources.paths(config.data)
    opened = one_pass.open_sources(paths, config.data, plugins=plugins, registry=registry)
    turns.check(opened[0].record.kind, config.data)
    encoder = Encoder(tokenizer, max_length=sys.maxsize)  # rows are shown with the part that is cut off
    numbers = itertools.count(1)
    for source in opened:
        for sentence in source.sentences:
            tell(sentence)
        rows = source.examples(config.data)
        for batch in iter(lambda rows=rows: list(itertools.islice(rows, BATCH)), []):  # type: ignore[misc]  # mypy cannot infer a lambda with a default
            yield from _shown(batch, source.record.name, config.data, encoder, numbers)


def _shown(
    batch: Sequence[tuple[Row, Example] | Unreadable],
    name: str,
    settings: DataSection,
    encoder: Encoder,
    numbers: Iterator[int],
) -> Iterator[ShownRow]:
    from mlflow_ft.engine.tokens import room

    divided = [None if isinstance(row, Unreadable) else turns.parts(row[1], settings) for row in batch]
    results = iter(encoder.tokenise([part.example for parts in divided for part in parts or ()]))
    for row, parts in zip(batch, divided, strict=True):
        number = next(numbers)
        if isinstance(row, Unreadable):
            yield ShownRow(row=number, file=row.file, line=row.line, format=name, dropped=row.reason)
        for part in parts or ():
            place: Place = row if isinstance(row, Unreadable) else row[0]
            result = next(results)
            for tokenised in result if isinstance(result, list) else ():
                room.refuse_ids(encoder.tokenizer, tokenised.ids, place=f"{place.file}:{place.line}")
            shown = as_shown(place, part.example, result, name, max_length=settings.max_length, number=number)
            yield replace(shown, turn=part.turn)


def as_shown(place: Place, example: Example, result: Any, name: str, *, max_length: int, number: int) -> ShownRow:
    """One converted row with its tokens; `result` has all its conversations, uncut, or the error that it has none."""
    messages = [dict(turn) for turn in (*example.messages, *example.chosen)]
    about: dict[str, Any] = {
        "row": number,
        "file": place.file,
        "line": place.line,
        "format": name,
        "messages": messages,
    }
    if not isinstance(result, list):
        return ShownRow(**about, dropped=str(result))
    kept = [_cut(conversation, max_length) for conversation in result]
    rejected = None
    if len(result) > 1:
        turns_with_rejected = [dict(turn) for turn in (*example.messages, *example.rejected)]
        cut_off = _what_is_cut(result[1], max_length)
        rejected = {"messages": turns_with_rejected, **_tokens(kept[1]), "cut": cut_off}
    reason = one_pass.nothing_to_learn(example, proving.summary(kept), max_length) or None
    unwritten = sorted({turn + 1 for conversation in result for turn in conversation.unwritten})
    return ShownRow(
        **about,
        **_tokens(kept[0]),
        way=result[0].way,
        cut=_what_is_cut(result[0], max_length),
        rejected=rejected,
        dropped=reason,
        unwritten=tuple(unwritten),
    )


def _cut(row: Tokenised, max_length: int) -> Tokenised:
    """A conversation as the trainer gets it."""
    return replace(row, ids=row.ids[:max_length], offsets=row.offsets[:max_length], labels=row.labels[:max_length])


def _what_is_cut(row: Tokenised, max_length: int) -> dict[str, Any] | None:
    if row.length <= max_length:
        return None
    learned = [label != IGNORED for label in row.labels]
    return {
        "max_length": max_length,
        "tokens": row.length,
        "cut_away": row.length - max_length,
        "learned_cut_away": sum(learned[max_length:]),
        "end_of_turn_lost": any(learned[max_length:]),
    }


def words_for_cut(cut: Mapping[str, Any]) -> str:
    """What is cut off a row, in a sentence."""
    lost = f"{cut['learned_cut_away']:,} of them learned, including the token that ends the answer"
    return (
        f"cut at data.max_length {cut['max_length']:,}: {cut['cut_away']:,} of {cut['tokens']:,} tokens are left out, "
        f"{lost if cut['end_of_turn_lost'] else 'none of them learned'}; --data.max_length {cut['tokens']} keeps all"
    )


def _tokens(row: Tokenised) -> dict[str, Any]:
    return {"tokens": row.pieces, "supervised": [int(label != IGNORED) for label in row.labels]}


def first_rows(checked: CheckedData, config: Config) -> list[ShownRow]:
    """The first training rows, tokenised again with the template that is saved with the model."""
    from mlflow_ft.engine.tokens.masking import Encoder

    train = checked.data.train
    encoder = Encoder(checked.data.tokenizer, max_length=sys.maxsize)
    examples = list(train.examples[:KEPT])
    learned = checked.train.stored.table.column("turn").take(checked.train.indices[:KEPT]).to_pylist()
    return [
        replace(
            as_shown(place, example, result, checked.data.format, max_length=config.data.max_length, number=number),
            turn=turn,
        )
        for number, (place, example, result, turn) in enumerate(
            zip(train.rows[:KEPT], examples, encoder.tokenise(examples), learned, strict=True), 1
        )
    ]


def as_text(rows: Sequence[ShownRow]) -> str:
    """Rows for people, with learned text between `[[` and `]]`."""
    lines = ["Text between [[ and ]] is learned; the rest is context.", ""]
    for row in rows:
        cut = [f"({words_for_cut(row.cut)})"] if row.cut else []
        head = f"--- {row.place}: {sum(row.supervised)} of {len(row.tokens)} tokens"
        lines += [head, *cut, marked(row), ""]
    return "\n".join(lines)


def marked(row: ShownRow) -> str:
    """A row's text with the learned parts between `[[` and `]]`."""
    return "".join(f"[[{text}]]" if learned else text for learned, text in runs(row.tokens, row.supervised))


def runs(tokens: Sequence[str], supervised: Sequence[int]) -> list[tuple[bool, str]]:
    """The text in pieces, each either learned or not."""
    grouped = itertools.groupby(zip(tokens, supervised, strict=True), key=lambda pair: bool(pair[1]))
    return [(learned, "".join(text for text, _ in pairs)) for learned, pairs in grouped]


def cost(stored: PreparedRows) -> float:
    """How many times the tokens are read if each turn becomes a row, compared with reading each row once."""
    import numpy as np

    tokens, index = (stored.table.column(name).to_numpy() for name in ("tokens", "index"))
    return float(np.sum(tokens) / max(1, np.sum(tokens[split.last_of_each(index)])))


def remedy_for_length(checked: CheckedData, name: str) -> str:
    """The settings with which fewer rows are cut, for this data."""
    import numpy as np

    side = checked.train if name == "train" else checked.eval
    lengths = side.stored.table.column("length").to_numpy()[side.indices]
    return (
        f"--data.max_length {int(np.quantile(lengths, 0.99))} keeps 99 % of the rows whole, {lengths.max()} all of them"
    )

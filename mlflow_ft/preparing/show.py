"""Rows as the trainer will see them: token by token, what is learned marked."""

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
"""Training rows whose mask is kept as an artifact, for a person to read."""
BATCH = 64
IGNORED = -100
"""Label of a token that is not learned."""


@dataclass(frozen=True, kw_only=True)
class ShownRow:
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
    cut: Mapping[str, Any] | None = None
    """What `data.max_length` cuts away, where it does: how many tokens, and whether the end of a turn is among them."""
    rejected: Mapping[str, Any] | None = None
    dropped: str | None = None
    turn: int = 0
    """The turn that is learned, from 1, where `data.turns` divides the row; else 0."""
    unwritten: Sequence[int] = ()
    """The learned turns, from 1, whose thoughts the template leaves out."""

    @property
    def place(self) -> str:
        """Where the row stands, and which part of it this is."""
        return f"{self.file}:{self.line}" + (f" turn {self.turn}" if self.turn else "")

    def as_dict(self) -> dict[str, Any]:
        """The row as one JSON object."""
        found = {name: getattr(self, name) for name in ("row", "file", "line", "format")}
        found |= {name: list(getattr(self, name)) for name in ("messages", "tokens", "supervised")}
        found |= {"mask": self.way} if self.way else {}
        found["cut"] = dict(self.cut) if self.cut else None
        found |= {"rejected": dict(self.rejected)} if self.rejected else {}
        found |= {"turn": self.turn} if self.turn else {}
        found |= {"unwritten_thoughts": list(self.unwritten)} if self.unwritten else {}
        return found | {"dropped": self.dropped}


def every_row(
    config: Config,
    tokenizer: Any,
    *,
    plugins: Plugins,
    registry: Registry,
    tell: Callable[[str], None] = lambda sentence: None,
) -> Iterator[ShownRow]:
    """Every training row in the order of the sources, one by one; nothing is kept.

    `tell` gets what was made of a source that a person should know.

    Raises:
        DataError: a source is missing, empty, broken as a whole, or of no known format.
    """
    from mlflow_ft.engine.tokens.masking import Encoder

    asked, _ = sources.paths(config.data)
    opened = one_pass.open_sources(asked, config.data, plugins=plugins, registry=registry)
    turns.check(opened[0].record.kind, config.data)
    encoder = Encoder(tokenizer, max_length=sys.maxsize)  # a row is shown with what is cut away of it
    numbers = itertools.count(1)
    for one in opened:
        for sentence in one.sentences:
            tell(sentence)
        found = one.examples(config.data)
        for batch in iter(lambda found=found: list(itertools.islice(found, BATCH)), []):  # type: ignore[misc]  # mypy cannot infer a lambda with a default
            yield from _shown(batch, one.record.name, config.data, encoder, numbers)


def _shown(
    batch: Sequence[tuple[Row, Example] | Unreadable],
    name: str,
    settings: DataSection,
    encoder: Encoder,
    numbers: Iterator[int],
) -> Iterator[ShownRow]:
    from mlflow_ft.engine.tokens import room

    divided = [None if isinstance(one, Unreadable) else turns.parts(one[1], settings) for one in batch]
    results = iter(encoder.tokenise([part.example for parts in divided for part in parts or ()]))
    for one, parts in zip(batch, divided, strict=True):
        number = next(numbers)
        if isinstance(one, Unreadable):
            yield ShownRow(row=number, file=one.file, line=one.line, format=name, dropped=one.reason)
        for part in parts or ():
            place: Place = one if isinstance(one, Unreadable) else one[0]
            result = next(results)
            for tokenised in result if isinstance(result, list) else ():
                room.refuse_ids(encoder.tokenizer, tokenised.ids, place=f"{place.file}:{place.line}")
            shown = as_shown(place, part.example, result, name, max_length=settings.max_length, number=number)
            yield replace(shown, turn=part.turn)


def as_shown(place: Place, example: Example, found: Any, name: str, *, max_length: int, number: int) -> ShownRow:
    """One converted row with its tokens, of which `found` has all, or with the reason why it has none."""
    messages = [dict(turn) for turn in (*example.messages, *example.chosen)]
    about: dict[str, Any] = {
        "row": number,
        "file": place.file,
        "line": place.line,
        "format": name,
        "messages": messages,
    }
    if not isinstance(found, list):
        return ShownRow(**about, dropped=str(found))
    kept = [_cut(one, max_length) for one in found]
    rejected = None
    if len(found) > 1:
        said = [dict(turn) for turn in (*example.messages, *example.rejected)]
        rejected = {"messages": said, **_tokens(kept[1]), "cut": _what_is_cut(found[1], max_length)}
    reason = one_pass.nothing_to_learn(example, proving.summary(kept), max_length) or None
    unwritten = sorted({turn + 1 for one in found for turn in one.unwritten})
    return ShownRow(
        **about,
        **_tokens(kept[0]),
        way=found[0].way,
        cut=_what_is_cut(found[0], max_length),
        rejected=rejected,
        dropped=reason,
        unwritten=tuple(unwritten),
    )


def _cut(one: Tokenised, max_length: int) -> Tokenised:
    """A conversation as the trainer gets it."""
    return replace(one, ids=one.ids[:max_length], offsets=one.offsets[:max_length], labels=one.labels[:max_length])


def _what_is_cut(one: Tokenised, max_length: int) -> dict[str, Any] | None:
    if one.length <= max_length:
        return None
    learned = [label != IGNORED for label in one.labels]
    return {
        "max_length": max_length,
        "tokens": one.length,
        "cut_away": one.length - max_length,
        "learned_cut_away": sum(learned[max_length:]),
        "end_of_turn_lost": any(learned[max_length:]),
    }


def words_for_cut(cut: Mapping[str, Any]) -> str:
    """What is cut away of a row, in a sentence."""
    lost = f"{cut['learned_cut_away']:,} of them learned, and the token that ends the answer with them"
    return (
        f"cut at data.max_length {cut['max_length']:,}: {cut['cut_away']:,} of {cut['tokens']:,} tokens are left out, "
        f"{lost if cut['end_of_turn_lost'] else 'none of them learned'}; --data.max_length {cut['tokens']} keeps all"
    )


def _tokens(one: Tokenised) -> dict[str, Any]:
    return {"tokens": one.pieces, "supervised": [int(label != IGNORED) for label in one.labels]}


def first_rows(found: CheckedData, config: Config) -> list[ShownRow]:
    """The first training rows, tokenised again with the template that is saved with the model."""
    from mlflow_ft.engine.tokens.masking import Encoder

    train = found.data.train
    encoder = Encoder(found.data.tokenizer, max_length=sys.maxsize)
    examples = list(train.examples[:KEPT])
    learned = found.train.stored.table.column("turn").take(found.train.indices[:KEPT]).to_pylist()
    return [
        replace(
            as_shown(place, example, result, found.data.format, max_length=config.data.max_length, number=number),
            turn=turn,
        )
        for number, (place, example, result, turn) in enumerate(
            zip(train.rows[:KEPT], examples, encoder.tokenise(examples), learned, strict=True), 1
        )
    ]


def as_text(found: Sequence[ShownRow]) -> str:
    """Rows for people: what is learned stands between `[[` and `]]`."""
    lines = ["What stands between [[ and ]] is learned; the rest is read.", ""]
    for one in found:
        cut = [f"({words_for_cut(one.cut)})"] if one.cut else []
        head = f"--- {one.place}: {sum(one.supervised)} of {len(one.tokens)} tokens"
        lines += [head, *cut, marked(one), ""]
    return "\n".join(lines)


def marked(one: ShownRow) -> str:
    """A row's text with what is learned between `[[` and `]]`."""
    return "".join(f"[[{text}]]" if learned else text for learned, text in runs(one.tokens, one.supervised))


def runs(tokens: Sequence[str], supervised: Sequence[int]) -> list[tuple[bool, str]]:
    """Unbroken pieces of text that are learned, or not."""
    grouped = itertools.groupby(zip(tokens, supervised, strict=True), key=lambda pair: bool(pair[1]))
    return [(learned, "".join(text for text, _ in pairs)) for learned, pairs in grouped]


def cost(stored: PreparedRows) -> float:
    """How many times the tokens of its rows are read, where each turn is learned in a row of its own."""
    import numpy as np

    tokens, index = (stored.table.column(name).to_numpy() for name in ("tokens", "index"))
    return float(np.sum(tokens) / max(1, np.sum(tokens[split.last_of_each(index)])))


def remedy_for_length(found: CheckedData, side: str) -> str:
    """What to set so that fewer rows are cut, with the numbers of this data."""
    import numpy as np

    one = found.train if side == "train" else found.eval
    lengths = one.stored.table.column("length").to_numpy()[one.indices]
    return (
        f"--data.max_length {int(np.quantile(lengths, 0.99))} keeps 99 % of the rows whole, {lengths.max()} all of them"
    )

"""The forms of a row: as read, as an example, as tokens, as a data check sees it; and what a check finds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from typing import Any, Literal

Message = Mapping[str, Any]
"""One turn as chat templates take it: `{"role": "user", "content": "..."}` and optional further keys."""
Kind = Literal["conversation", "text", "preference", "unpaired", "prompt"]
"""What a row offers to learn from: turns to imitate, plain text, a better and a worse answer, an answer and whether it
is good, a prompt whose answers are judged by a reward."""
Task = Literal["generate", "score"]
"""What a model is for: to generate answers, or to score them."""
Severity = Literal["info", "warn", "error"]


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a row is in its source."""

    file: str
    line: int
    """1-based line of `file` on which the row begins; the row's number where the source has no lines."""

    @property
    def place(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, kw_only=True)
class Row(Place):
    """One row as it was read: its columns, and where it is."""

    values: Mapping[str, Any]


@dataclass(frozen=True)
class Opaque:
    """A table's value that is not text, a number, a list or an object; `what` describes it for messages."""

    what: str
    """`an image`, `a value of the unknown extension type geoarrow.wkb`."""
    value: Any = field(default=None, repr=False)

    def __str__(self) -> str:
        digest = blake2b(repr(self.value).encode("utf-8", "replace"), digest_size=8).hexdigest()
        return f"<{self.what}: {digest}>"


@dataclass(frozen=True, kw_only=True)
class Example:
    """One row as an example to learn from. The fields that are set determine its kind.

    conversation   messages, oldest first, the last of them the assistant's
    text           text
    preference     messages (the prompt), chosen and rejected (what the assistant says next, twice)
    unpaired       messages, the last of them the assistant's, and a label: whether that answer is good
    prompt         messages that end before the assistant speaks
    """

    messages: tuple[Message, ...] = ()
    """The conversation; for a preference, the turns before the two answers."""
    tools: tuple[Mapping[str, Any], ...] | None = None
    """The tools that the model may call, as chat templates take them."""
    learned: tuple[bool, ...] | None = None
    """For each message, whether it is learned; None: every assistant turn. Other turns are never learned."""
    chosen: tuple[Message, ...] = ()
    """The better continuation."""
    rejected: tuple[Message, ...] = ()
    """The worse one."""
    chosen_learned: tuple[bool, ...] | None = None
    """For each turn of `chosen`, whether it is learned; None: every assistant turn."""
    rejected_learned: tuple[bool, ...] | None = None
    """The same of `rejected`."""
    label: bool | None = None
    """True: the answer is good."""
    text: str | None = None
    """Learned as it is, without a chat template."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """For a prompt, the row's other columns, for reward functions."""
    notes: tuple[str, ...] = ()
    """What the conversion left out, in words."""

    @property
    def kind(self) -> Kind:
        if self.text is not None:
            return "text"
        if self.rejected:
            return "preference"
        if self.label is not None:
            return "unpaired"
        return "conversation" if self.messages and self.messages[-1]["role"] == "assistant" else "prompt"

    @property
    def answer(self) -> str | None:
        """The last assistant turn's text; None where it has no text (a tool call), or another role speaks last."""
        turns = self.chosen or self.messages
        content = turns[-1].get("content") if turns and turns[-1]["role"] == "assistant" else None
        return content if isinstance(content, str) else None

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The turns before the last answer."""
        return self.messages[:-1] if self.kind in ("conversation", "unpaired") else self.messages

    @property
    def conversations(self) -> tuple[tuple[tuple[Message, ...], tuple[bool, ...]], ...]:
        """Every conversation to tokenise, with the turns to learn; a preference has two, the chosen one first."""
        if self.kind == "text":
            return ()
        if self.kind == "preference":
            before = (False,) * len(self.messages)
            ends = (self.chosen, self.chosen_learned), (self.rejected, self.rejected_learned)
            return tuple(
                (self.messages + end, before + (_spoken(end) if learned is None else learned)) for end, learned in ends
            )
        return ((self.messages, _spoken(self.messages) if self.learned is None else self.learned),)


def _spoken(messages: Sequence[Message]) -> tuple[bool, ...]:
    return tuple(message["role"] == "assistant" for message in messages)


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """One example as the trainer sees it: token ids, and labels that are -100 where nothing is learned."""

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    truncated: bool = False
    way: str = ""
    """How the assistant's spans were found; see `engine.tokens.render`."""
    rejected: Encoded | None = None
    """For a preference, the rejected answer; the other fields hold the chosen one."""

    @cached_property
    def supervised(self) -> int:
        """The number of learned tokens."""
        return len(self.labels) - self.labels.count(-100)


@dataclass(frozen=True, kw_only=True)
class Checked(Place):
    """One row as a check sees it."""

    index: int
    """Its number among all rows that were read, from 0; checks do not see rows that could not be converted."""
    example: Example
    tokens: int
    """Its length in tokens, before any cut; for a preference, that of the longer conversation."""
    special: tuple[str, ...] = ()
    """The tokenizer's special tokens, which it recognises wherever they are written."""
    max_length: int = 0
    shares_prompt: bool = False
    """Most rows have the same prompt, so the sides of the split may share prompts, and only whole texts tell rows
    apart."""

    @cached_property
    def prompt(self) -> str:
        """The text before the answers, without the system prompt."""
        return "\n".join(_said(turn) for turn in self.example.prompt if turn["role"] != "system")

    @cached_property
    def responses(self) -> tuple[str, ...]:
        """The assistant's texts: every turn in a conversation, both answers of a preference, a text as it is."""
        if self.example.text is not None:
            return (self.example.text,)
        turns = (*self.example.messages, *self.example.chosen, *self.example.rejected)
        return tuple(_said(turn) for turn in turns if turn["role"] == "assistant")

    @cached_property
    def text(self) -> str:
        """The text of all turns, without the system prompt."""
        if self.example.text is not None:
            return self.example.text
        turns = (*self.example.messages, *self.example.chosen, *self.example.rejected)
        return "\n".join(_said(turn) for turn in turns if turn["role"] != "system")


def _said(turn: Message) -> str:
    """The text of a turn, and its tool calls."""
    content, calls = turn.get("content"), turn.get("tool_calls")
    words = content if isinstance(content, str) else ""
    return f"{words}{calls}" if calls else words


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a check found: the rows, some examples, and the numbers for the report."""

    rows: tuple[int, ...] = ()
    """Index of every row that was found."""
    examples: tuple[Mapping[str, Any], ...] = ()
    """Some of them: `file`, `line`, and the fault as `message`."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Numbers and series, as JSON, for the report: a mean, a histogram, the sizes of clusters. The numbers under
    `metrics` are also logged, as params of the run; `histogram` (`x`, `edges`, `counts`) and `sizes` are plotted."""
    removable: tuple[int, ...] | None = None
    """Rows that a fix removes; None: all of `rows`, if the check has a fix."""
    severity: Severity | None = None
    """Replaces the check's severity."""
    count: int | None = None
    """Replaces the number of `rows`, where the finding is about the data as a whole."""
    remedy: str = ""
    """Replaces the check's remedy, with numbers from this data; "" keeps the check's."""

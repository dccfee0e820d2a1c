"""A family of templates, and what it writes, piece by piece."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tokenizers import AddedToken

Message = Mapping[str, Any]
Tools = Sequence[Mapping[str, Any]] | None


@dataclass
class Script:
    """A text, piece by piece, each with its turn; None: not learned."""

    parts: list[tuple[str, int | None]] = field(default_factory=list)

    def read(self, *texts: str) -> Script:
        self.parts += [(text, None) for text in texts]
        return self

    def say(self, turn: int, *texts: str) -> Script:
        self.parts += [(text, turn) for text in texts]
        return self

    @property
    def text(self) -> str:
        return "".join(text for text, _ in self.parts)

    def speeches(self) -> dict[int, tuple[int, int]]:
        """Of every turn that is said, from where to where."""
        places: dict[int, tuple[int, int]] = {}
        place = 0
        for text, turn in self.parts:
            if turn is not None:
                places[turn] = (places.get(turn, (place, 0))[0], place + len(text))
            place += len(text)
        return places


Oracle = Callable[[Sequence[Message], Tools], Script]


@dataclass(frozen=True, kw_only=True)
class Family:
    """A chat template, its tokens, and by hand what it writes."""

    jinja: str
    write: Oracle
    tokens: tuple[str | AddedToken, ...]
    """Those that are added to the vocabulary."""
    eos: str
    bos: str | None = None
    pad: str = "<pad>"
    kind: str = "bytes"
    """The tokenizer that such models have; see `tests.engine.templates.tokenizers`."""
    system: str = "turn"
    """How a system prompt is written: a `turn`, `joined` with the user's words, or `no`."""
    tools: str = "no"
    """What it supports itself: `no` tools, only `calls`, or `all`."""
    parallel: bool = True
    """Whether one turn may call several tools."""
    beside: bool = True
    """Whether words may accompany a call."""
    way: str = "prefix differences"
    """How the assistant's turns are found where there is only one."""


def as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def functions(message: Message) -> list[Mapping[str, Any]]:
    return [call["function"] for call in message.get("tool_calls", ())]


def without_thought(content: str) -> str:
    return content.rpartition("</think>")[2]


def quoted(text: str) -> str:
    """A text within a template."""
    return "'" + text.replace("\n", "\\n") + "'"

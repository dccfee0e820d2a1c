"""What is compared: two models, and a pair of answers for each prompt; the record of both in the run."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from mlflow_ft.errors import DataError

PAIRS_FILE = "comparison/pairs.json"
RESULT_FILE = "comparison/result.json"
Side = Literal["first", "second"]
FIRST: Side = "first"
SECOND: Side = "second"
EQUAL, SKIPPED = "equal", "skipped"
"""What a vote may be, besides the better of the two."""


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """One of the two models."""

    uri: str
    """With the version's number: `models:/NAME/3`."""
    weights: str
    """The digest of its weights; see `manifest.weights_digest`."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What both models are asked."""

    place: str
    """File and line of its row."""
    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] | None = None


@dataclass(frozen=True, kw_only=True)
class Pair:
    """The two answers to a prompt."""

    prompt: Prompt
    first: str
    """The answer of the model that was named first."""
    second: str
    left: Side
    """Whose answer is shown on the left, or above the other."""
    trace_id: str = ""

    @property
    def alike(self) -> bool:
        """Whether there is nothing to choose."""
        return self.first == self.second

    @property
    def shown(self) -> tuple[str, str]:
        """The answers, as they are shown: left and right."""
        return (self.first, self.second) if self.left == FIRST else (self.second, self.first)

    def winner(self, choice: str) -> str:
        """Whose answer a choice (`left`, `right`) means; any other choice unchanged."""
        if choice not in ("left", "right"):
            return choice
        return self.left if choice == "left" else (SECOND if self.left == FIRST else FIRST)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What decides the pairs; with the same values, an unfinished comparison is continued."""

    first: Contestant
    second: Contestant
    prompts: Sequence[Prompt]
    """Those to compare, in the order in which they are shown."""
    seed: int
    options: Mapping[str, Any]
    """How the models are asked: `temperature`, `max_tokens`, `seed`."""

    @property
    def key(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True, default=str).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two models and the pairs of their answers, as a run keeps them."""

    first: Contestant
    second: Contestant
    seed: int
    options: Mapping[str, Any]
    pairs: Sequence[Pair]
    left_out: Sequence[str] = ()
    """The places of rows that a model could not answer."""

    def dumps(self) -> str:
        """The record as JSON."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False)

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Comparison:
        """The comparison that a record describes."""
        pairs = [Pair(**{**pair, "prompt": Prompt(**pair["prompt"])}) for pair in record["pairs"]]
        first, second = Contestant(**record["first"]), Contestant(**record["second"])
        return cls(**{**record, "first": first, "second": second, "pairs": pairs})

    def traced(self, traces: Sequence[str]) -> Comparison:
        """The same with the id of each pair's trace."""
        pairs = [replace(pair, trace_id=trace) for pair, trace in zip(self.pairs, traces, strict=True)]
        return replace(self, pairs=pairs)


def drawn(prompts: Sequence[Prompt], *, limit: int | None, seed: int) -> list[Prompt]:
    """The prompts in random order, at most `limit` of them: whatever the file's order, what was voted on is a sample.

    Raises:
        DataError: there are none.
    """
    if not prompts:
        raise DataError("no row has a prompt to answer", hint="name rows of conversations, prompts or preferences")
    order = list(prompts)
    random.Random(seed).shuffle(order)
    return order[:limit]


def sides(count: int, *, seed: int) -> list[Side]:
    """Whose answer is on the left, drawn for each pair."""
    draw, both = random.Random(f"sides {seed}"), (FIRST, SECOND)
    return [draw.choice(both) for _ in range(count)]

"""Checks for rows that repeat an earlier one, and for rows that answer the same prompt differently."""

from __future__ import annotations

import json
from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mlflow_ft import Checked, Example, Finding, Message
from mlflow_ft.builtin.checks.arrays import first_of, sizes_of
from mlflow_ft.builtin.checks.seen import Seen, content, squeezed
from mlflow_ft.builtin.checks.words import fingerprint, normalise, operators

if TYPE_CHECKING:
    from mlflow_ft import ChecksSection

_LARGEST = 20
"""Group sizes that are reported."""
_ANSWER_EXCERPT = 120
_ANSWERS = (
    *("answer", "answers", "solution", "ground_truth", "reference", "target", "expected", "label", "output"),
    *("completion", "response"),
)
"""Columns of a prompt that hold the right answer."""


class ExactDuplicates:
    """Collects a hash of the whole row, ignoring differences in white space."""

    def __init__(self, settings: ChecksSection) -> None:
        self._shown = settings.max_examples
        self._seen = Seen()
        self._hashes = array("Q")

    def see(self, row: Checked) -> None:
        self._seen.add(row)
        self._hashes.append(_identity(row.example))

    def join(self, later: ExactDuplicates) -> None:
        self._seen.extend(later._seen)
        self._hashes.extend(later._hashes)

    def found(self) -> Finding:
        import numpy as np

        first = first_of(self._hashes)
        again = np.flatnonzero(first != np.arange(len(first)))
        sizes = sizes_of(first[again])
        examples = (
            self._seen.place(number) | {"message": f"the same as {self._seen.where(int(first[number]))}"}
            for number in again[: self._shown].tolist()
        )
        return Finding(
            rows=tuple(self._seen.index[number] for number in again.tolist()),
            examples=tuple(examples),
            details={"groups": len(sizes), "sizes": sizes[:_LARGEST]},
        )


def _identity(example: Example) -> int:
    sides = [[_turn(turn) for turn in side] for side in (example.messages, example.chosen, example.rejected)]
    text = squeezed(example.text)
    learned = [example.learned, example.chosen_learned, example.rejected_learned]
    others = [example.label, squeezed(example.tools), *learned, squeezed(dict(example.columns))]
    return fingerprint(json.dumps([sides, text, others], sort_keys=True, default=str, ensure_ascii=False))


def _turn(turn: Message) -> list[Any]:
    others = {key: squeezed(value) for key, value in turn.items() if key not in ("role", "content")}
    return [turn["role"], squeezed(turn.get("content")), others]


class ConflictingAnswers:
    """Collects a hash of every prompt and of its answer."""

    def __init__(self, settings: ChecksSection) -> None:
        self._shown = settings.max_examples
        self._seen = Seen()
        self._prompts = array("Q")
        self._answers = array("Q")

    def see(self, row: Checked) -> None:
        answer = _answer(row.example)
        prompt = _said(row.example.prompt) if answer else ""
        if not answer or not prompt:
            return
        tools = json.dumps(row.example.tools, sort_keys=True, default=str) if row.example.tools else ""
        self._seen.add(row, answer, longest=_ANSWER_EXCERPT)
        self._prompts.append(fingerprint(prompt + tools))
        self._answers.append(fingerprint(_meaning(answer)))

    def join(self, later: ConflictingAnswers) -> None:
        self._seen.extend(later._seen)
        self._prompts.extend(later._prompts)
        self._answers.extend(later._answers)

    def found(self) -> Finding:
        import numpy as np

        first = first_of(self._prompts)
        answers = np.frombuffer(self._answers, np.uint64)
        other = np.flatnonzero(answers != answers[first])
        return Finding(
            rows=tuple(self._seen.index[number] for number in other.tolist()),
            examples=tuple(self._example(number, int(first[number])) for number in other[: self._shown].tolist()),
            details={"prompts": len(np.unique(first[other]))},
        )

    def _example(self, number: int, first: int) -> dict[str, Any]:
        answers = f"“{self._seen.excerpt(number)}”, and at {self._seen.where(first)} “{self._seen.excerpt(first)}”"
        return self._seen.place(number) | {"message": f"the same prompt is answered {answers}"}


def _answer(example: Example) -> str | None:
    """The row's right answer; None where it is not text."""
    if example.kind == "conversation":
        return example.answer
    known = {name: example.columns[name] for name in _ANSWERS if example.columns.get(name) is not None}
    return json.dumps(known, default=str, ensure_ascii=False) if known else None


def _said(turns: Sequence[Message]) -> str:
    """The text of a prompt, including the system prompt; "" where only the system speaks."""
    if not any(content(turn).strip() for turn in turns if turn["role"] != "system"):
        return ""
    return "\n".join(f"{turn['role']}: {_meaning(content(turn))} {turn.get('tool_calls') or ''}" for turn in turns)


def _meaning(text: str) -> str:
    return f"{normalise(text)} {operators(text)}"

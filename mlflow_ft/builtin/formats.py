"""The data formats that ship inside, and how they are told apart: by columns, and by what the columns hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mlflow_ft import DataError, DataFormat, Example, hookimpl
from mlflow_ft.builtin.conversations import CONTEXT_COLUMNS, TURN_COLUMNS, from_alpaca, from_pair, from_text, from_turns
from mlflow_ft.builtin.preferences import ANSWER_COLUMNS, from_preference, from_prompt, from_unpaired, truth
from mlflow_ft.builtin.turns import from_json, is_turns, key_in, roles_of

PAIRS = {
    "prompt-completion": (("prompt",), ("completion", "response")),
    "question-answer": (("question", "query", "problem"), ("answer", "response", "solution")),
    "instruction-response": (("instruction", "input"), ("response", "answer", "completion", "output")),
}
"""By format, the names of the two columns; the first of each are those that its documentation shows."""
LABELS = ("label", "labels")


def candidates(values: Mapping[str, Any]) -> Iterator[str]:
    """Every format that a row fits, the weak ones (text, prompt) only where nothing else fits."""
    there = {str(name) for name, value in values.items() if value is not None}
    strong = list(_strong(values, there))
    yield from strong
    if not strong:
        if isinstance(values.get("text"), str) and not there & set(LABELS):
            yield "text"
        if isinstance(values.get("prompt"), str) or any(
            is_turns(values.get(name)) for name in ("prompt", *TURN_COLUMNS)
        ):
            yield "prompt-only"


def _strong(values: Mapping[str, Any], there: set[str]) -> Iterator[str]:
    if {"chosen", "rejected"} <= there:
        yield "preference"
    spoken = [name for name in TURN_COLUMNS if is_turns(values.get(name))]
    pairs = [name for name in PAIRS if _is_pair(values, name)]
    if truth(values) is not None and _judged(values, there) and (spoken or _has_answer(there)):
        yield "unpaired-preference"
        return
    roles = roles_of(values[spoken[0]]) if spoken else []
    if "assistant" in roles and ("chosen" not in there or roles[-1] == "assistant"):
        first = from_json(values[spoken[0]])[0]
        yield "messages" if key_in(first, ("role",)) else "sharegpt"
    if isinstance(values.get("instruction"), str) and isinstance(values.get("output"), str):
        yield "alpaca"
        pairs = [name for name in pairs if name != "instruction-response" or there & set(PAIRS[name][1][:-1])]
    yield from pairs


def _judged(values: Mapping[str, Any], there: set[str]) -> bool:
    """Whether the label is a judgement: true or false, in CSV written out; a number may be a class."""
    value = values.get("label", values.get("kto_tag"))
    return isinstance(value, bool) or "kto_tag" in there or str(value).lower() in ("true", "false")


def _has_answer(there: set[str]) -> bool:
    return bool(there & {"prompt", "question", "instruction", "query"} and there & set(ANSWER_COLUMNS))


def _is_pair(values: Mapping[str, Any], name: str) -> bool:
    questions, answers = PAIRS[name]
    asked, answered = (
        [values.get(one) for one in names if values.get(one) is not None] for names in (questions, answers)
    )
    if name == "instruction-response" and isinstance(values.get("instruction"), str):
        asked = asked[:1]
    if len(asked) != 1 or not answered:
        return bool(asked and answered) and all(isinstance(one, str) for one in (*asked, *answered))
    texts = all(isinstance(one, str) for one in (asked[0], *answered))
    return texts or (is_turns(asked[0]) and is_turns(answered[0]))


@hookimpl
def register_formats() -> list[DataFormat]:
    return [
        DataFormat(
            name="messages",
            summary="OpenAI chat: a list of turns with role and content, tool calls and tools",
            columns=("messages",),
            convert=from_turns,
        ),
        DataFormat(
            name="sharegpt",
            summary="a list of turns with from and value: human, gpt, system, function_call, observation",
            columns=("conversations",),
            convert=from_turns,
        ),
        DataFormat(
            name="alpaca",
            summary="instruction, optional input, output; optional system and history",
            columns=("instruction", "output"),
            convert=from_alpaca,
        ),
        *(_pair(name, questions, answers) for name, (questions, answers) in PAIRS.items()),
        DataFormat(
            name="text",
            summary="plain text, learned whole",
            columns=("text",),
            convert=from_text,
            kind="text",
        ),
        DataFormat(
            name="preference",
            summary="a prompt, a chosen and a rejected answer, as texts, turns or whole conversations",
            columns=("chosen", "rejected"),
            convert=from_preference,
            kind="preference",
        ),
        DataFormat(
            name="unpaired-preference",
            summary="a conversation, or a prompt and a completion, with a label that is true or false",
            columns=("label",),
            convert=from_unpaired,
            kind="unpaired",
        ),
        DataFormat(
            name="prompt-only",
            summary="a prompt, and further columns for reward functions",
            columns=("prompt",),
            convert=from_prompt,
            kind="prompt",
        ),
    ]


def _pair(name: str, questions: tuple[str, ...], answers: tuple[str, ...]) -> DataFormat:
    asked, answered = (
        f"{names[0]} (or {', '.join(names[1:])})" if names[1:] else names[0] for names in (questions, answers)
    )
    return DataFormat(
        name=name,
        summary=f"{asked} and {answered}; optional system and {' or '.join(CONTEXT_COLUMNS)}",
        columns=(questions[0], answers[0]),
        convert=from_pair(questions, answers),
    )


@hookimpl
def detect_format(columns: Sequence[str], sample: Sequence[Mapping[str, Any]]) -> str | None:
    """The one format that the rows fit; rows that fit none are told later, one by one."""
    found = Counter(_of_row(values) for values in sample)
    found.pop((), None)
    named = {name for names in found for name in names}
    if any(len(names) > 1 for names in found):
        raise DataError(
            f"the columns fit several formats: {', '.join(sorted(named))}",
            hint=f"name one of them with --data.format; the columns are {', '.join(columns)}",
        )
    if len(named) > 1:
        counts = ", ".join(f"{count} {names[0]}" for names, count in found.most_common())
        raise DataError(
            f"the first {len(sample)} rows are of several formats: {counts}",
            hint="put them into files of their own and name these as a list (--data '[a.jsonl, b.jsonl]'), or name the "
            "format to take with --data.format and leave the others out with --data.on_bad_row drop",
        )
    return named.pop() if named else None


def _of_row(values: Mapping[str, Any]) -> tuple[str, ...]:
    """The formats that a row fits, but those that make the same of it only once."""
    names = list(candidates(values))
    if len(names) < 2:
        return tuple(names)
    seen: list[tuple[Any, ...]] = []
    kept = []
    for name in names:
        said = _said(FORMATS[name], values)
        if said is None or said not in seen:
            kept.append(name)
        if said is not None:
            seen.append(said)
    return tuple(kept)


def _said(record: DataFormat, values: Mapping[str, Any]) -> tuple[Any, ...] | None:
    try:
        found: Example = record.convert(values)
    except ValueError:
        return None
    return (*found.messages, *found.chosen)


FORMATS = {record.name: record for record in register_formats()}

"""The built-in data formats, and how they are told apart: by columns, and by what the columns hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mlflow_ft import DataFormat, hookimpl
from mlflow_ft.builtin.formats import chat_exports
from mlflow_ft.builtin.formats.conversations import (
    CALLS_COLUMN,
    CONTEXT_COLUMNS,
    from_alpaca,
    from_pair,
    from_text,
    from_turns,
)
from mlflow_ft.builtin.formats.detection import Detector
from mlflow_ft.builtin.formats.preferences import from_preference, from_prompt, from_unpaired

PAIRS = {
    "prompt-completion": (("prompt",), ("completion", "response")),
    "question-answer": (("question", "query", "problem"), ("answer", "response", "solution", CALLS_COLUMN)),
    "instruction-response": (("instruction", "input"), ("response", "answer", "completion", "output")),
}
"""By format, the possible names of the two columns; its documentation shows the first of each."""


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
            summary="plain text, learned as a whole",
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
            summary="a prompt, with any other columns for reward functions",
            columns=("prompt",),
            convert=from_prompt,
            kind="prompt",
        ),
        *chat_exports.formats(),
    ]


def _pair(name: str, questions: Sequence[str], answers: Sequence[str]) -> DataFormat:
    question, answer = (
        f"{names[0]} (or {', '.join(names[1:])})" if names[1:] else names[0]
        for names in (questions, [column for column in answers if column != CALLS_COLUMN])
    )
    return DataFormat(
        name=name,
        summary=f"{question} and {answer}; optional system and {' or '.join(CONTEXT_COLUMNS)}",
        columns=(questions[0], answers[0]),
        convert=from_pair(questions, answers),
    )


_DETECTOR = Detector(
    {record.name: record.convert for record in register_formats()},
    {"alpaca": (("instruction",), ("output",)), **PAIRS},
)


@hookimpl
def detect_format(columns: Sequence[str], sample: Sequence[Mapping[str, Any]]) -> str | None:
    """The one format that the rows fit; rows that do not fit it are reported later, one by one."""
    return chat_exports.format_of(sample) or _DETECTOR.format_of(sample)

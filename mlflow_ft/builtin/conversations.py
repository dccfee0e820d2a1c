"""Rows to imitate: conversations in turns, and questions with their answers in two columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mlflow_ft import Example
from mlflow_ft.builtin.turns import from_json, near, tools, turns

TURN_COLUMNS = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat")
SYSTEM_COLUMNS = ("system", "system_prompt")
CONTEXT_COLUMNS = ("input", "context")


def from_turns(values: Mapping[str, Any]) -> Example:
    """A column of turns; optionally `tools` and a system prompt in columns of their own."""
    column = turn_column(values)
    messages, wishes = turns(values[column], column)
    learned = [
        message["role"] == "assistant" and wish is not False for message, wish in zip(messages, wishes, strict=True)
    ]
    if system := system_of(values, messages):
        messages, learned = [system, *messages], [False, *learned]
    return conversation(messages, learned, values)


def conversation(messages: Sequence[Mapping[str, Any]], learned: Sequence[bool], values: Mapping[str, Any]) -> Example:
    """Turns as an example: what nobody answers is left out, and a first word of the assistant's is not learned."""
    last = max((place for place, turn in enumerate(messages) if turn["role"] == "assistant"), default=None)
    if last is None:
        raise ValueError("has no turn of the assistant, so there is nothing to learn")
    notes = []
    if last < len(messages) - 1:
        notes.append(f"{len(messages) - 1 - last} turns behind the last answer are left out")
    first = next(place for place, turn in enumerate(messages) if turn["role"] != "system")
    if messages[first]["role"] == "assistant" and learned[first]:
        notes.append("the conversation begins with the assistant; that turn is read, not learned")
        learned = [*learned[:first], False, *learned[first + 1 :]]
    return Example(
        messages=tuple(messages[: last + 1]),
        learned=tuple(learned[: last + 1]),
        tools=tools(values.get("tools")),
        notes=tuple(notes),
    )


def turn_column(values: Mapping[str, Any]) -> str:
    """The column that holds the turns."""
    for column in TURN_COLUMNS:
        if values.get(column) is not None:
            return column
    raise ValueError(f"column `messages` is missing{near('messages', values)}")


def system_of(values: Mapping[str, Any], messages: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any] | None:
    """The system prompt in a column of its own, where the turns do not begin with one."""
    if messages and messages[0]["role"] == "system":
        return None
    found = next((values[name] for name in SYSTEM_COLUMNS if isinstance(values.get(name), str)), "")
    return {"role": "system", "content": found} if found.strip() else None


def from_alpaca(values: Mapping[str, Any]) -> Example:
    """`{"instruction": "...", "input": "... or empty", "output": "..."}`; optionally `system` and `history`."""
    return asked_and_answered(values, question(values, "instruction"), text(values, "output"))


def from_pair(questions: Sequence[str], answers: Sequence[str]) -> Any:
    """A converter for a question and an answer under any of these names; both may be lists of turns."""

    def convert(values: Mapping[str, Any]) -> Example:
        asked, answered = one_of(values, questions), one_of(values, answers)
        prompt, completion = from_json(values[asked]), from_json(values[answered])
        if isinstance(prompt, list) and isinstance(completion, list):
            before, _ = turns(prompt, asked)
            after, wishes = turns(completion, answered)
            system = system_of(values, before)
            before = [system, *before] if system else before
            learned = [
                turn["role"] == "assistant" and wish is not False for turn, wish in zip(after, wishes, strict=True)
            ]
            return conversation([*before, *after], [False] * len(before) + learned, values)
        return asked_and_answered(values, question(values, asked), text(values, answered))

    return convert


def asked_and_answered(values: Mapping[str, Any], asked: str, answer: str) -> Example:
    """A question and its answer, behind the system prompt and the earlier rounds where the row has such."""
    system = system_of(values)
    earlier = history(values.get("history"))
    return Example(
        messages=(
            *((system,) if system else ()),
            *earlier,
            {"role": "user", "content": asked},
            {"role": "assistant", "content": answer},
        ),
        tools=tools(values.get("tools")),
    )


def history(value: Any) -> list[dict[str, Any]]:
    """Earlier rounds as pairs of question and answer, oldest first."""
    value = from_json(value)
    if value is None or value in ("", []):
        return []
    if not isinstance(value, list):
        raise ValueError("`history` is no list of rounds")
    rounds = []
    for number, pair in enumerate(value, 1):
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(one, str) for one in pair):
            raise ValueError(f"round {number} of `history` is no pair of question and answer")
        rounds += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    return rounds


def question(values: Mapping[str, Any], column: str) -> str:
    """What is asked, with its input or context below it."""
    asked = text(values, column)
    beside = next((name for name in CONTEXT_COLUMNS if name != column and values.get(name) is not None), None)
    context = text(values, beside) if beside else ""
    return f"{asked}\n\n{context}" if context.strip() else asked


def from_text(values: Mapping[str, Any]) -> Example:
    """`{"text": "..."}`, which is learned whole."""
    return Example(text=text(values, "text"))


def one_of(values: Mapping[str, Any], columns: Sequence[str]) -> str:
    """The first of the columns that the row has."""
    for column in columns:
        if values.get(column) is not None:
            return column
    raise ValueError(f"column `{columns[0]}` is missing{near(columns[0], values)}")


def text(values: Mapping[str, Any], column: str) -> str:
    """The text in a column."""
    if values.get(column) is None:
        raise ValueError(f"column `{column}` is missing{near(column, values)}")
    if not isinstance(values[column], str):
        raise ValueError(f"`{column}` is no text but {type(values[column]).__name__}")
    return str(values[column])

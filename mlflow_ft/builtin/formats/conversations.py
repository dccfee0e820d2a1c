"""Rows to imitate: conversations as turns, and questions and answers in two columns."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mlflow_ft import Example, Message
from mlflow_ft.builtin.formats.learning import refuse_unlearned, to_learn, weighted
from mlflow_ft.builtin.formats.thoughts import with_thought
from mlflow_ft.builtin.formats.tool_calls import offered, tools_of, written_calls
from mlflow_ft.builtin.formats.turns import MEDIA_KEYS, SYSTEM_COLUMNS, as_turns, is_turns, turns
from mlflow_ft.builtin.formats.unread import not_read
from mlflow_ft.builtin.formats.values import from_json, meant, named, not_text

TURN_COLUMNS = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat", "trajectory")
CONTEXT_COLUMNS = ("input", "context")
CALLS_COLUMN = "answers"
"""An answer that is a list of tool calls (xLAM); other lists of answers have the same name."""
TRANSCRIPT = re.compile(r"\n\n(Human|Assistant): ?")


def from_turns(values: Mapping[str, Any], *, thinks: bool = True) -> Example:
    """A column of turns; optionally `tools` and a system prompt in separate columns.

    `thinks`: a column of thoughts has those of the answer, not those of its judge.
    """
    refuse_unlearned(values)
    column = turn_column(values)
    spoken, wishes = turns(values[column], column)
    messages = with_thought(values, spoken) if thinks else spoken
    learned = to_learn(messages, weighted(values, messages, wishes))
    if system := system_of(values, messages):
        messages, learned = [system, *messages], [False, *learned]
    return conversation(messages, learned, values, thinks=thinks)


def conversation(
    messages: Sequence[Message], learned: Sequence[bool], values: Mapping[str, Any], *, thinks: bool
) -> Example:
    """Turns as an example: turns without an answer are left out, and an opening by the assistant is not learned."""
    spoken = [place for place, turn in enumerate(messages) if turn["role"] == "assistant"]
    if not spoken:
        raise ValueError("the conversation has no assistant turn, so there is nothing to learn")
    notes = [f"`{column}` left out: images and audio are not read" for column in without_pictures(values, messages)]
    last, learned = spoken[-1], list(learned)
    if unanswered := len(messages) - 1 - last:
        notes.append(f"{unanswered} turn{'s' * (unanswered > 1)} after the last answer left out")
    notes += not_read(values, messages, thinks=thinks)
    if all(turn["role"] == "system" for turn in messages[: spoken[0]]):
        if learned[spoken[0]]:
            notes.append("the conversation begins with the assistant; that turn is read, not learned")
        learned[spoken[0]] = False
    said, tools = offered(values, messages[: last + 1])
    return Example(
        messages=tuple(said),
        learned=None if all(learned[place] for place in spoken) else tuple(learned[: last + 1]),
        tools=tools,
        notes=tuple(notes),
    )


def without_pictures(values: Mapping[str, Any], messages: Sequence[Message]) -> list[str]:
    """The row's columns of images or audio that can be left out; a text there is a file name or a caption.

    Raises:
        ValueError: the text is about them: there is a list of them, or a turn has an `<image>` for one.
    """
    there = [column for column in MEDIA_KEYS if values.get(column) not in (None, [], "")]
    for column in there:
        mark = f"<{column}>"
        if isinstance(values[column], list) or any(mark in turn.get("content", "") for turn in messages):
            raise ValueError(f"the row has images or audio in `{column}`; only text can be learned")
    return [column for column in there if not isinstance(values[column], str)]


def turn_column(values: Mapping[str, Any]) -> str:
    """The column that holds the turns: the first that can, else the first that is not null."""
    there = [column for column in TURN_COLUMNS if values.get(column) is not None]
    if not there:
        raise ValueError(f"column `messages` is missing{meant(TURN_COLUMNS, values)}")
    if len(there) == 1:
        return there[0]
    return next((column for column in there if not isinstance(from_json(values[column]), str)), there[0])


def system_of(values: Mapping[str, Any], messages: Sequence[Message]) -> dict[str, Any] | None:
    """The system prompt from a separate column, where the turns do not begin with one."""
    for column in SYSTEM_COLUMNS:
        prompt = values.get(column)
        if prompt is None or prompt == "":
            continue
        if not isinstance(prompt, str):
            raise ValueError(f"`{column}` is {not_text(prompt)}")
        if prompt.strip():
            return None if messages[0]["role"] == "system" else {"role": "system", "content": prompt}
    return None


# --- questions and answers


def from_pair(
    questions: Sequence[str], answers: Sequence[str], *, thinks: bool = True
) -> Callable[[Mapping[str, Any]], Example]:
    """A converter for a question and an answer under any of these names; each is text or a list of turns."""

    def convert(values: Mapping[str, Any]) -> Example:
        refuse_unlearned(values)
        question_column, answer_column = first_column(values, questions), first_column(values, answers)
        rounds, before = history(values), prompt_in(values, question_column)
        after, wishes = unrepeated(before, *_answer(values, answer_column))
        after = with_thought(values, after) if thinks else after
        if after[0]["role"] in ("user", "system"):  # a conversation from its beginning
            if not any(same(turn, before[-1]) for turn in after):
                speaker = after[0]["role"]
                raise ValueError(
                    f"`{answer_column}` begins with a turn by the {speaker}, but does not repeat `{question_column}`"
                )
            before = []
        system = [prompt] if (prompt := system_of(values, before or after)) else []
        messages, start = [*rounds, *before, *after], len(rounds) + len(before)
        learned = to_learn(messages, weighted(values, messages, [*[None] * start, *wishes], answer=start))
        learned[len(rounds) : start] = [False] * len(before)  # earlier rounds are learned, as in LLaMA-Factory
        return conversation([*system, *messages], [False] * len(system) + learned, values, thinks=thinks)

    return convert


_ALPACA = from_pair(("instruction",), ("output",))


def from_alpaca(values: Mapping[str, Any]) -> Example:
    """`{"instruction": "...", "input": "... or empty", "output": "..."}`; optionally `system` and `history`.

    One of instruction and input may be empty or null.
    """
    is_input = "instruction" in values and values["instruction"] is None and values.get("input") is not None
    return _ALPACA({**values, "instruction": ""} if is_input else values)


def prompt_in(values: Mapping[str, Any], column: str) -> list[Message]:
    """The prompt in a column, as turns."""
    listed = as_turns(values[column])
    if listed is not None:
        return list(turns(listed, column)[0])
    prompt = question(values, column)
    rounds = transcript(prompt)
    if rounds and not rounds[-1]["content"]:
        rounds.pop()
    return rounds if rounds and rounds[-1]["role"] == "user" else [{"role": "user", "content": prompt}]


def _answer(values: Mapping[str, Any], column: str) -> tuple[list[Message], list[bool | None]]:
    value = values[column]
    if tool_calls := _written_calls(values, column):
        return [{"role": "assistant", "tool_calls": tool_calls}], [None]
    listed = as_turns(value)
    if listed is None:
        return [assistant(text(values, column))], [None]
    messages, wishes = turns(listed, column)
    return list(messages), wishes


def _written_calls(values: Mapping[str, Any], column: str) -> list[dict[str, Any]]:
    """Calls of the row's tools, where an answer is a list of them; without tools, JSON is an ordinary answer."""
    value = from_json(values[column])
    if isinstance(value, str) or is_turns(value) or not tools_of(values):
        return []
    try:
        return written_calls(value)
    except ValueError as error:
        raise ValueError(f"`{column}` {error}") from error


def assistant(content: str) -> Message:
    """An assistant turn with this content."""
    return {"role": "assistant", "content": content}


def unrepeated(
    prompt: Sequence[Message], answer: Sequence[Message], wishes: Sequence[bool | None]
) -> tuple[list[Message], list[bool | None]]:
    """What an answer adds to the prompt, which it may repeat, and the wishes of these turns to be learned."""
    count = len(prompt)
    if len(answer) > count and all(same(*pair) for pair in zip(prompt, answer, strict=False)):
        return list(answer[count:]), list(wishes[count:])
    return list(answer), list(wishes)


def same(first: Message, second: Message) -> bool:
    """Whether two turns say the same, ignoring white space around it."""
    return first["role"] == second["role"] and _content(first) == _content(second)


def _content(turn: Message) -> tuple[Any, Any]:
    return turn.get("content", "").strip(), turn.get("tool_calls")


def history(values: Mapping[str, Any]) -> list[Message]:
    """Earlier rounds as pairs of question and answer, oldest first."""
    value = from_json(values.get("history"))
    if value is None or value == "":
        return []
    if not isinstance(value, list):
        raise ValueError(f"`history` is {named(value)}, not a list of rounds")
    rounds: list[Message] = []
    for number, pair in enumerate(value, 1):
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise ValueError(f"round {number} of `history` is not a pair of a question and an answer")
        rounds += [{"role": "user", "content": pair[0]}, assistant(pair[1])]
    return rounds


def question(values: Mapping[str, Any], column: str) -> str:
    """The question, followed by its input or context."""
    prompt = text(values, column)
    for context_column in CONTEXT_COLUMNS:
        if context_column != column and values.get(context_column) is not None:
            context = text(values, context_column)
            if context.strip() and not (column == "prompt" and context in prompt):  # a prompt often contains it
                prompt = f"{prompt}\n\n{context}" if prompt.strip() else context
    return prompt


def transcript(written: str) -> list[Message] | None:
    """Turns from "\\n\\nHuman: ...\\n\\nAssistant: ..."; None where the text does not have this form."""
    if "Human:" not in written:
        return None
    parts = TRANSCRIPT.split(f"\n\n{written.lstrip()}")
    if len(parts) < 5 or parts[0]:
        return None
    return [
        {"role": "user" if speaker == "Human" else "assistant", "content": content.strip()}
        for speaker, content in zip(parts[1::2], parts[2::2], strict=True)
    ]


def from_text(values: Mapping[str, Any]) -> Example:
    """`{"text": "..."}`, learned as a whole."""
    refuse_unlearned(values)
    return Example(text=text(values, "text"))


def first_column(values: Mapping[str, Any], columns: Sequence[str]) -> str:
    """The first of the columns that has a value; an empty text, as CSV files have it, only where all are empty."""
    there = [column for column in columns if values.get(column) is not None]
    if not there:
        raise ValueError(f"column `{columns[0]}` is missing{meant(columns, values)}")
    return next((column for column in there if values[column] != ""), there[0])


def text(values: Mapping[str, Any], column: str) -> str:
    """The text in a column."""
    value = values.get(column)
    if value is None:
        raise ValueError(f"column `{column}` is missing{meant([column], values)}")
    if not isinstance(value, str):
        raise ValueError(f"`{column}` is {not_text(value)}")
    return value

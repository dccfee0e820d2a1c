"""Rows to imitate: conversations in turns, and questions with their answers in two columns."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from mlflow_ft import Example, Message
from mlflow_ft.builtin.formats.tool_calls import tools_of, written_calls
from mlflow_ft.builtin.formats.turns import LEARN_KEYS, MEDIA_KEYS, as_turns, is_turns, truth_of, turns
from mlflow_ft.builtin.formats.values import from_json, meant, named, not_text

TURN_COLUMNS = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat", "trajectory")
SYSTEM_COLUMNS = ("system", "system_prompt")
CONTEXT_COLUMNS = ("input", "context")
CALLS_COLUMN = "answers"
"""An answer that is a list of calls (xLAM); lists of answers of other sorts have the same name."""
WEIGHT_COLUMNS = ("weights", "turn_weights", "message_weights", "loss_weights", "train_on_turns", *LEARN_KEYS)
"""Columns with a list beside the turns that says which of them are learned."""
TRANSCRIPT = re.compile(r"\n\n(Human|Assistant): ?")


def from_turns(values: Mapping[str, Any]) -> Example:
    """A column of turns; optionally `tools` and a system prompt in columns of their own."""
    column = turn_column(values)
    messages, wishes = turns(values[column], column)
    learned = to_learn(messages, weighted(values, messages, wishes))
    if system := system_of(values, messages):
        messages, learned = [system, *messages], [False, *learned]
    found = conversation(messages, learned, values)
    other = next(
        (name for name in SYSTEM_COLUMNS if values.get(name) not in (None, "", messages[0].get("content"))), None
    )
    if messages[0]["role"] == "system" and other:
        note = f"`{other}` left out: the turns begin with a system prompt of their own"
        return replace(found, notes=(*found.notes, note))
    return found


def to_learn(messages: Sequence[Message], wishes: Sequence[bool | None]) -> list[bool]:
    """Of each turn whether it is learned: what the assistant says, unless the turn says otherwise."""
    return [
        message["role"] == "assistant" and wish is not False for message, wish in zip(messages, wishes, strict=True)
    ]


def weighted(
    values: Mapping[str, Any], messages: Sequence[Message], wishes: Sequence[bool | None]
) -> Sequence[bool | None]:
    """What each turn says of being learned, and a column of weights says of all: one a turn, or one an answer."""
    column = next((name for name in WEIGHT_COLUMNS if isinstance(from_json(values.get(name)), list)), None)
    if column is None:
        return wishes
    weights = from_json(values[column])
    spoken = [place for place, turn in enumerate(messages) if turn["role"] == "assistant"]
    places = spoken if len(weights) == len(spoken) else range(len(messages))
    if len(weights) != len(places):
        raise ValueError(f"`{column}` has {len(weights)} weights for {len(messages)} turns")
    found = list(wishes)
    for place, weight in zip(places, weights, strict=True):
        wish = None if weight is None else truth_of(weight, f"`{column}` has {{}} for turn {place + 1}")
        if None not in (wish, found[place]) and wish != found[place]:
            raise ValueError(f"`{column}` says of turn {place + 1} something else than the turn itself")
        found[place] = wish if found[place] is None else found[place]
    return found


def conversation(messages: Sequence[Message], learned: Sequence[bool], values: Mapping[str, Any]) -> Example:
    """Turns as an example: what nobody answers is left out, and a first word of the assistant's is not learned."""
    spoken = [place for place, turn in enumerate(messages) if turn["role"] == "assistant"]
    if not spoken:
        raise ValueError("the conversation has no turn of the assistant, so there is nothing to learn")
    notes = [f"`{column}` left out: pictures and sounds are not read" for column in without_pictures(values, messages)]
    last, learned = spoken[-1], list(learned)
    if behind := len(messages) - 1 - last:
        notes.append(f"{behind} turn{'s' * (behind > 1)} behind the last answer left out")
    if all(turn["role"] == "system" for turn in messages[: spoken[0]]):
        if learned[spoken[0]]:
            notes.append("the conversation begins with the assistant; that turn is read, not learned")
        learned[spoken[0]] = False
    return Example(
        messages=tuple(messages[: last + 1]),
        learned=None if all(learned[place] for place in spoken) else tuple(learned[: last + 1]),
        tools=tools_of(values),
        notes=tuple(notes),
    )


def without_pictures(values: Mapping[str, Any], messages: Sequence[Message]) -> list[str]:
    """The columns of pictures or sounds that a row has beside its words; a text there is a name, or about them.

    Raises:
        ValueError: the words are about them: there is a list of them, or a turn has an `<image>` for one.
    """
    there = [column for column in MEDIA_KEYS if values.get(column) not in (None, [], "")]
    for column in there:
        mark = f"<{column}>"
        if isinstance(values[column], list) or any(mark in turn.get("content", "") for turn in messages):
            raise ValueError(f"the row has pictures or sounds in `{column}`; only text can be learned")
    return [column for column in there if not isinstance(values[column], str)]


def turn_column(values: Mapping[str, Any]) -> str:
    """The column that holds the turns: the first that may, else the first that there is."""
    there = [column for column in TURN_COLUMNS if values.get(column) is not None]
    if not there:
        raise ValueError(f"column `messages` is missing{meant(TURN_COLUMNS, values)}")
    if len(there) == 1:
        return there[0]
    return next((column for column in there if not isinstance(from_json(values[column]), str)), there[0])


def system_of(values: Mapping[str, Any], messages: Sequence[Message]) -> dict[str, Any] | None:
    """The system prompt in a column of its own, where the turns do not begin with one."""
    for column in SYSTEM_COLUMNS:
        found = values.get(column)
        if found is None or found == "":
            continue
        if not isinstance(found, str):
            raise ValueError(f"`{column}` is {not_text(found)}")
        if found.strip():
            return None if messages[0]["role"] == "system" else {"role": "system", "content": found}
    return None


# --- questions and answers


def from_pair(questions: Sequence[str], answers: Sequence[str]) -> Callable[[Mapping[str, Any]], Example]:
    """A converter for a question and an answer under any of these names; each is text or a list of turns."""

    def convert(values: Mapping[str, Any]) -> Example:
        asked, answered = one_of(values, questions), one_of(values, answers)
        rounds, before = history(values), prompt_in(values, asked)
        after, learned = unrepeated(before, *_answer(values, answered))
        if after[0]["role"] in ("user", "system"):  # a conversation from its beginning
            if not any(same(turn, before[-1]) for turn in after):
                speaker = after[0]["role"]
                raise ValueError(f"`{answered}` begins with a turn of the {speaker}, and does not repeat `{asked}`")
            before = []
        system = [found] if (found := system_of(values, before or after)) else []
        earlier = [turn["role"] == "assistant" for turn in rounds]  # learned too, as in LLaMA-Factory
        return conversation(
            [*system, *rounds, *before, *after],
            [False] * len(system) + earlier + [False] * len(before) + learned,
            values,
        )

    return convert


from_alpaca = from_pair(("instruction",), ("output",))
"""`{"instruction": "...", "input": "... or empty", "output": "..."}`; optionally `system` and `history`."""


def prompt_in(values: Mapping[str, Any], column: str) -> list[Message]:
    """What a column asks, in turns."""
    listed = as_turns(values[column])
    if listed is not None:
        return list(turns(listed, column)[0])
    asked = question(values, column)
    written = transcript(asked)
    if written and not written[-1]["content"]:
        written.pop()
    return written if written and written[-1]["role"] == "user" else [{"role": "user", "content": asked}]


def _answer(values: Mapping[str, Any], column: str) -> tuple[list[Message], list[bool]]:
    value = values[column]
    if made := _written_calls(values, column):
        return [{"role": "assistant", "tool_calls": made}], [True]
    listed = as_turns(value)
    if listed is None:
        return [assistant(text(values, column))], [True]
    messages, wishes = turns(listed, column)
    return list(messages), to_learn(messages, wishes)


def _written_calls(values: Mapping[str, Any], column: str) -> list[dict[str, Any]]:
    """Calls of the row's tools, where an answer is a list of them; without tools, JSON is an answer like any other."""
    value = from_json(values[column])
    if isinstance(value, str) or is_turns(value) or not tools_of(values):
        return []
    try:
        return written_calls(value)
    except ValueError as error:
        raise ValueError(f"`{column}` {error}") from error


def assistant(words: str) -> Message:
    """What the assistant says, as a turn."""
    return {"role": "assistant", "content": words}


def unrepeated(
    prompt: Sequence[Message], answer: Sequence[Message], learned: Sequence[bool]
) -> tuple[list[Message], list[bool]]:
    """What an answer adds to the prompt, which it may repeat, and what is learned of it."""
    count = len(prompt)
    if len(answer) > count and all(same(one, other) for one, other in zip(prompt, answer, strict=False)):
        return list(answer[count:]), list(learned[count:])
    return list(answer), list(learned)


def same(one: Message, other: Message) -> bool:
    """Whether two turns say the same, white space around it aside."""
    return one["role"] == other["role"] and _said(one) == _said(other)


def _said(turn: Message) -> tuple[Any, Any]:
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
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(isinstance(one, str) for one in pair):
            raise ValueError(f"round {number} of `history` is not a pair of a question and an answer")
        rounds += [{"role": "user", "content": pair[0]}, assistant(pair[1])]
    return rounds


def question(values: Mapping[str, Any], column: str) -> str:
    """What is asked, with its input or context below it."""
    asked = text(values, column)
    for beside in CONTEXT_COLUMNS:
        if beside != column and values.get(beside) is not None:
            context = text(values, beside)
            if context.strip() and not (column == "prompt" and context in asked):  # a prompt is often made of them
                asked = f"{asked}\n\n{context}"
    return asked


def transcript(written: str) -> list[Message] | None:
    """Turns out of "\\n\\nHuman: ...\\n\\nAssistant: ..."; None where it is not written so."""
    if "Human:" not in written:
        return None
    parts = TRANSCRIPT.split(f"\n\n{written.lstrip()}")
    if len(parts) < 5 or parts[0]:
        return None
    return [
        {"role": "user" if speaker == "Human" else "assistant", "content": said.strip()}
        for speaker, said in zip(parts[1::2], parts[2::2], strict=True)
    ]


def from_text(values: Mapping[str, Any]) -> Example:
    """`{"text": "..."}`, which is learned whole."""
    return Example(text=text(values, "text"))


def one_of(values: Mapping[str, Any], columns: Sequence[str]) -> str:
    """The first of the columns that the row has, one that is not empty before one that is, as all are in CSV files."""
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

"""Rows with a better and a worse answer, with an answer and a label, or with a prompt only.

{"prompt": "...", "chosen": "...", "rejected": "..."}                     strings
{"prompt": [...], "chosen": [{...}], "rejected": [{...}]}                 turns
{"chosen": [user, assistant], "rejected": [user, assistant]}              whole conversations: the prompt is shared
{"conversations": [...], "chosen": {...}, "rejected": {...}}              a conversation and two last turns
{"chosen": "\\n\\nHuman: ... \\n\\nAssistant: ...", "rejected": "..."}        transcripts
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os.path import commonprefix
from typing import Any

from mlflow_ft import Example, Message
from mlflow_ft.builtin.formats.answers import check_tools, with_answers
from mlflow_ft.builtin.formats.conversations import (
    TURN_COLUMNS,
    assistant,
    first_column,
    from_pair,
    from_turns,
    history,
    prompt_in,
    same,
    system_of,
    text,
    transcript,
    unrepeated,
    without_pictures,
)
from mlflow_ft.builtin.formats.learning import refuse_unlearned, to_learn, weight_column
from mlflow_ft.builtin.formats.tool_calls import TOOL_COLUMNS, offered
from mlflow_ft.builtin.formats.turns import SYSTEM_COLUMNS, as_turns, is_turns, turns
from mlflow_ft.builtin.formats.unread import not_for_prompts, not_read
from mlflow_ft.builtin.formats.values import key_in, meant, shown

PROMPT_COLUMNS = ("prompt", "question", "instruction", "query", "problem", "input")
ANSWER_COLUMNS = ("completion", "response", "output", "answer")
LABEL_COLUMNS = ("label", "kto_tag")
TRUTH = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False} | {
    **dict.fromkeys(("yes", "good", "desirable"), True),
    **dict.fromkeys(("no", "bad", "undesirable"), False),
}
GUESSED = "no column holds the prompt: the words that both answers begin with are used as the prompt"


def from_preference(values: Mapping[str, Any]) -> Example:
    """Two answers and a prompt or a conversation; without either, the prompt is what both answers begin with."""
    refuse_unlearned(values)
    if column := weight_column(values):
        raise ValueError(f"`{column}` does not say which answer it is about: mark their turns with `train` instead")
    check_tools(values)
    values = with_answers(values)
    (chosen, by_chosen), (rejected, by_rejected) = _answer(values, "chosen"), _answer(values, "rejected")
    prompt = _prompt(values, chosen)
    notes: tuple[str, ...] = ()
    if prompt is None or (_is_whole(chosen) and _is_whole(rejected) and not as_turns(values.get("prompt"))):
        lacks = "" if prompt else "column `prompt` is missing, and "
        asked, (prompt, chosen, rejected, notes) = prompt, _shared(chosen, rejected, lacks=lacks)
        notes += _unasked(asked, prompt)
    else:
        chosen, rejected = _after(prompt, chosen, "chosen"), _after(prompt, rejected, "rejected")
    for name, answer in (("chosen", chosen), ("rejected", rejected)):
        if answer[-1]["role"] != "assistant":
            raise ValueError(f"`{name}` does not end with an assistant turn")
    before = _with_history(values, prompt)
    messages, tools = offered(values, before)
    notes = (*notes, *not_read(values, (*before, *chosen, *rejected), thinks=False))
    return Example(
        messages=tuple(messages),
        chosen=tuple(chosen),
        rejected=tuple(rejected),
        chosen_learned=_learned(chosen, by_chosen, "chosen"),
        rejected_learned=_learned(rejected, by_rejected, "rejected"),
        tools=tools,
        notes=notes,
    )


def _learned(answer: Sequence[Message], learned: Sequence[bool], column: str) -> tuple[bool, ...] | None:
    """Which turns of an answer are learned, which ends the turns of its column; None: every assistant turn."""
    own = tuple(learned[-len(answer) :])
    if not own or own == tuple(turn["role"] == "assistant" for turn in answer):
        return None
    if not any(own):
        raise ValueError(f"`{column}` has no turn that is learned")
    return own


def _with_history(values: Mapping[str, Any], prompt: Sequence[Message]) -> tuple[Message, ...]:
    """A prompt after the system prompt and the earlier rounds from separate columns."""
    if prompt[-1]["role"] == "assistant":
        raise ValueError("the prompt ends with an assistant turn, so there is nothing to answer")
    without_pictures(values, prompt)
    system = system_of(values, prompt)
    return (*((system,) if system else ()), *history(values), *prompt)


def from_unpaired(values: Mapping[str, Any]) -> Example:
    """A conversation, or a prompt and a completion, and `label`: whether the answer is good."""
    is_asked = any(values.get(column) is not None for column in PROMPT_COLUMNS)
    spoken = [values[column] for column in TURN_COLUMNS if values.get(column) is not None]
    answered = (
        from_turns(values, thinks=False)
        if any(map(is_turns, spoken)) or (spoken and not is_asked)
        else _ANSWERED(values)
    )
    label = truth(values)
    if label is None:
        column = key_in(values, LABEL_COLUMNS)
        if column is None:
            raise ValueError(f"column `label` is missing{meant(LABEL_COLUMNS, values)}")
        raise ValueError(f"`{column}` is {shown(values[column])}, not true or false")
    last = (False,) * (len(answered.messages) - 1) + (True,)
    return Example(messages=answered.messages, learned=last, tools=answered.tools, label=label, notes=answered.notes)


_ANSWERED = from_pair(PROMPT_COLUMNS, ANSWER_COLUMNS, thinks=False)


def from_prompt(values: Mapping[str, Any]) -> Example:
    """`{"prompt": "..."}` or turns that end before the assistant speaks; the other columns are for the reward."""
    prompt = _prompt(values)
    if prompt is None:
        raise ValueError(f"column `prompt` is missing{meant(PROMPT_COLUMNS, values)}")
    before = _with_history(values, prompt)
    messages, tools = offered(values, before)
    used = ("prompt", "history", *TURN_COLUMNS, *TOOL_COLUMNS, *SYSTEM_COLUMNS)
    return Example(
        messages=tuple(messages),
        tools=tools,
        columns={key: value for key, value in values.items() if key not in used},
        notes=tuple(not_for_prompts(values, before)),
    )


def truth(values: Mapping[str, Any]) -> bool | None:
    """The row's label, where it is true or false."""
    for column in LABEL_COLUMNS:
        value = values.get(column)
        if isinstance(value, str | int | float) and (label := TRUTH.get(str(value).strip().lower())) is not None:
            return label
    return None


# --- the prompt, and what answers add to it

Answer = list[Message] | str
Shared = tuple[list[Message], list[Message], list[Message], tuple[str, ...]]
"""A prompt, two answers, and notes."""


def _prompt(values: Mapping[str, Any], chosen: Answer = "") -> list[Message] | None:
    """The prompt: turns under `prompt`, a conversation, or a text; None where no column holds it.

    A conversation that ends with the answer that was chosen ends before it.
    """
    if as_turns(values.get("prompt")):
        return prompt_in(values, "prompt")
    for column in TURN_COLUMNS:
        if is_turns(values.get(column)):
            messages: list[Message] = list(turns(values[column], column)[0])
            end = [assistant(chosen)] if isinstance(chosen, str) else chosen
            count = len(end)
            if len(messages) > count and all(same(*pair) for pair in zip(messages[-count:], end, strict=True)):
                return messages[:-count]
            return messages
    if any(values.get(column) is not None for column in PROMPT_COLUMNS):
        return prompt_in(values, first_column(values, PROMPT_COLUMNS))
    return None


def _answer(values: Mapping[str, Any], column: str) -> tuple[Answer, list[bool]]:
    """An answer, and for each of its turns whether it is learned; [] for a text."""
    listed = as_turns(values.get(column))
    if listed is None:
        return text(values, column), []
    messages, wishes = turns(listed, column)
    return list(messages), to_learn(messages, wishes)


def _is_whole(answer: Answer) -> bool:
    """Whether an answer is a whole conversation."""
    return isinstance(answer, list) and answer[0]["role"] in ("user", "system")


def _after(prompt: Sequence[Message], answer: Answer, column: str) -> list[Message]:
    """The turns that an answer adds to the prompt, which it may repeat."""
    if isinstance(answer, str):
        return [assistant(answer)]
    added, _ = unrepeated(prompt, answer, ())
    if added[0]["role"] in ("user", "system"):
        raise ValueError(f"`{column}` begins with a turn by the {added[0]['role']}, but does not repeat the prompt")
    return added


def _shared(chosen: Answer, rejected: Answer, *, lacks: str) -> Shared:
    """The prompt that both answers begin with, and how each of them continues."""
    if isinstance(chosen, str) and isinstance(rejected, str):
        transcripts = transcript(chosen), transcript(rejected)
        if transcripts[0] is None or transcripts[1] is None:
            return _shared_text(chosen, rejected)
        chosen, rejected = transcripts[0], transcripts[1]
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise ValueError("column `prompt` is missing, and one of `chosen` and `rejected` is text, the other turns")
    count = 0
    for pair in zip(chosen[:-1], rejected[:-1], strict=False):
        if not same(*pair):
            break
        count += 1
    while count and chosen[count - 1]["role"] == "assistant":
        count -= 1  # they diverge at a user turn
    if not count:
        raise ValueError(f"{lacks}`chosen` and `rejected` do not begin with the same turn")
    return chosen[:count], chosen[count:], rejected[count:], ()


def _unasked(asked: Sequence[Message] | None, prompt: Sequence[Message]) -> tuple[str, ...]:
    """A note on a prompt beside two whole conversations that is not in them."""
    question = next((turn.get("content", "") for turn in reversed(asked or ()) if turn["role"] == "user"), "")
    if any(question.strip() in turn.get("content", "") for turn in prompt):
        return ()
    return ("the prompt beside `chosen` and `rejected` left out: both are whole conversations without it",)


def _shared_text(chosen: str, rejected: str) -> Shared:
    common = commonprefix([chosen, rejected])  # noqa: RUF071  # characters are what is meant
    cut = max(common.rfind(" "), common.rfind("\n")) + 1  # never within a word
    if not common[:cut].strip():
        raise ValueError("column `prompt` is missing, and `chosen` and `rejected` do not begin with the same words")
    prompt: list[Message] = [{"role": "user", "content": common[:cut].strip()}]
    return prompt, [assistant(chosen[cut:])], [assistant(rejected[cut:])], (GUESSED,)

"""Rows that say which answer is better, whether an answer is good, or only what was asked.

{"prompt": "...", "chosen": "...", "rejected": "..."}                     strings
{"prompt": [...], "chosen": [{...}], "rejected": [{...}]}                 turns
{"chosen": [user, assistant], "rejected": [user, assistant]}              whole conversations: the prompt is shared
{"conversations": [...], "chosen": {...}, "rejected": {...}}              a conversation and two last turns
{"chosen": "\\n\\nHuman: ... \\n\\nAssistant: ...", "rejected": "..."}        transcripts
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from os.path import commonprefix
from typing import Any

from mlflow_ft import Example, Message
from mlflow_ft.builtin.conversations import TURN_COLUMNS, from_pair, from_turns, question, system_of, text
from mlflow_ft.builtin.turns import from_json, near, tools, turns

PROMPT_COLUMNS = ("prompt", "question", "instruction", "query", "input")
ANSWER_COLUMNS = ("completion", "response", "output", "answer")
LABEL_COLUMNS = ("label", "kto_tag")
TRUTH = {"true": True, "false": False, "1": True, "0": False}
TRANSCRIPT = re.compile(r"\n\n(Human|Assistant): ?")


def from_preference(values: Mapping[str, Any]) -> Example:
    """A prompt, or a conversation, or neither (then it is what both answers begin with), and two answers."""
    chosen, rejected = _answer(values, "chosen"), _answer(values, "rejected")
    prompt = _prompt(values)
    if prompt is None:
        prompt, chosen, rejected = _shared(chosen, rejected)
    else:
        chosen, rejected = (_behind(prompt, answer) for answer in (chosen, rejected))
    for name, answer in (("chosen", chosen), ("rejected", rejected)):
        if not answer or answer[-1]["role"] != "assistant":
            raise ValueError(f"`{name}` does not end with a turn of the assistant")
    if not prompt or prompt[-1]["role"] == "assistant":
        raise ValueError("the prompt does not end with a turn that the assistant answers")
    system = system_of(values, prompt)
    return Example(
        messages=(*((system,) if system else ()), *prompt),
        chosen=tuple(chosen),
        rejected=tuple(rejected),
        tools=tools(values.get("tools")),
    )


def from_unpaired(values: Mapping[str, Any]) -> Example:
    """A conversation, or a prompt and a completion, and `label`: whether the answer is good."""
    label = truth(values)
    if label is None:
        raise ValueError(f"column `label` is not true or false{near('label', values)}")
    if any(values.get(column) is not None for column in TURN_COLUMNS):
        found = from_turns(values)
    else:
        found = from_pair(PROMPT_COLUMNS, ANSWER_COLUMNS)(values)
    last = (False,) * (len(found.messages) - 1) + (True,)
    return Example(messages=found.messages, learned=last, tools=found.tools, label=label, notes=found.notes)


def from_prompt(values: Mapping[str, Any]) -> Example:
    """`{"prompt": "..."}` or turns that end before the assistant speaks; the other columns are for the reward."""
    prompt = _prompt(values)
    if prompt is None:
        raise ValueError(f"column `prompt` is missing{near('prompt', values)}")
    if prompt[-1]["role"] == "assistant":
        raise ValueError("the prompt ends with a turn of the assistant, who is to speak next")
    system = system_of(values, prompt)
    used = (*PROMPT_COLUMNS[:1], *TURN_COLUMNS, "tools", "system", "system_prompt")
    return Example(
        messages=(*((system,) if system else ()), *prompt),
        tools=tools(values.get("tools")),
        columns={key: value for key, value in values.items() if key not in used},
    )


def truth(values: Mapping[str, Any]) -> bool | None:
    """The row's label, where it is true or false."""
    value = next((values[name] for name in LABEL_COLUMNS if values.get(name) is not None), None)
    if isinstance(value, bool):
        return value
    return TRUTH.get(str(value).strip().lower()) if isinstance(value, str | int) else None


def _prompt(values: Mapping[str, Any]) -> list[Message] | None:
    for column in TURN_COLUMNS:
        if values.get(column) is not None:
            return list(turns(values[column], column)[0])
    for column in PROMPT_COLUMNS:
        value = from_json(values.get(column))
        if isinstance(value, list):
            return list(turns(value, column)[0])
        if value is not None:
            return [{"role": "user", "content": question(values, column)}]
    return None


def _answer(values: Mapping[str, Any], column: str) -> list[Message] | str:
    value = from_json(values.get(column))
    if isinstance(value, Mapping):
        return list(turns([value], column)[0])
    if isinstance(value, list):
        return list(turns(value, column)[0])
    return text(values, column)


def _behind(prompt: Sequence[Message], answer: list[Message] | str) -> list[Message]:
    """The turns that an answer adds to the prompt, which it may repeat."""
    if isinstance(answer, str):
        return [{"role": "assistant", "content": answer}]
    count = len(prompt)
    if len(answer) > count and [_plain(turn) for turn in answer[:count]] == [_plain(turn) for turn in prompt]:
        return answer[count:]
    if any(turn["role"] != "assistant" for turn in answer[:1]):
        raise ValueError("an answer begins with a turn that is not the assistant's, and does not repeat the prompt")
    return answer


def _plain(turn: Message) -> tuple[str, str]:
    return str(turn["role"]), str(turn.get("content", turn.get("tool_calls"))).strip()


def _shared(
    chosen: list[Message] | str, rejected: list[Message] | str
) -> tuple[list[Message], list[Message], list[Message]]:
    """The prompt that both answers begin with, and what each of them goes on with."""
    if isinstance(chosen, str) and isinstance(rejected, str):
        transcripts = [_transcript(one) for one in (chosen, rejected)]
        if transcripts[0] is None or transcripts[1] is None:
            return _shared_text(chosen, rejected)
        chosen, rejected = transcripts[0], transcripts[1]
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise ValueError("`chosen` and `rejected` are of two shapes, and there is no `prompt`")
    count = 0
    for one, other in zip(chosen[:-1], rejected[:-1], strict=False):
        if _plain(one) != _plain(other):
            break
        count += 1
    if not count:
        raise ValueError("there is no `prompt`, and `chosen` and `rejected` do not begin with the same turn")
    return chosen[:count], chosen[count:], rejected[count:]


def _shared_text(chosen: str, rejected: str) -> tuple[list[Message], list[Message], list[Message]]:
    common = commonprefix([chosen, rejected])  # noqa: RUF071  # characters are what is meant
    cut = max(common.rfind(" "), common.rfind("\n")) + 1  # never within a word
    if not common[:cut].strip():
        raise ValueError("column `prompt` is missing, and `chosen` and `rejected` do not begin alike")
    prompt: list[Message] = [{"role": "user", "content": common[:cut].strip()}]
    return prompt, _behind(prompt, chosen[cut:]), _behind(prompt, rejected[cut:])


def _transcript(written: str) -> list[Message] | None:
    """Turns out of "\\n\\nHuman: ...\\n\\nAssistant: ..."; None where it is not written so."""
    parts = TRANSCRIPT.split(f"\n\n{written.lstrip()}")
    if len(parts) < 3 or parts[0].strip():
        return None
    return [
        {"role": "user" if speaker == "Human" else "assistant", "content": said.strip()}
        for speaker, said in zip(parts[1::2], parts[2::2], strict=True)
    ]

"""Columns that other tools read, and that an example leaves out: thoughts, a second system prompt, and variables for
the chat template."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mlflow_ft import Message
from mlflow_ft.builtin.formats.thoughts import KEYS, is_thought, names_thoughts, thoughts_of
from mlflow_ft.builtin.formats.turns import SYSTEM_COLUMNS
from mlflow_ft.builtin.formats.values import from_json

VARIABLES_COLUMN = "chat_template_kwargs"
_RENAME = "if it has the answer's thoughts, rename it (--data.columns reasoning_content={})"
_PLACE = "a thought belongs into `reasoning_content` of its turn, or between <think> and </think> in its text"


def not_read(values: Mapping[str, Any], messages: Sequence[Message], *, thinks: bool) -> list[str]:
    """Notes on the columns that are left out of an example with these turns; `thinks` as `from_turns` has it."""
    return [*_thoughts(values, messages, thinks=thinks), *not_for_prompts(values, messages)]


def not_for_prompts(values: Mapping[str, Any], messages: Sequence[Message]) -> list[str]:
    """Those of them that say how an example is asked: a second system prompt, and the template's variables."""
    return [*_systems(values, messages), *_variables(values)]


def _systems(values: Mapping[str, Any], messages: Sequence[Message]) -> list[str]:
    """A note on the first column with another system prompt than that with which the turns begin."""
    if messages[0]["role"] != "system":
        return []
    known = (None, "", messages[0].get("content"))
    others = [name for name in SYSTEM_COLUMNS if values.get(name) not in known]
    return [f"`{name}` left out: the turns already begin with a system prompt" for name in others[:1]]


def _variables(values: Mapping[str, Any]) -> list[str]:
    """A note on a row's variables for the chat template, which sets none."""
    given = from_json(values.get(VARIABLES_COLUMN))
    if not given:
        return []
    names = f" ({', '.join(map(str, given))})" if isinstance(given, Mapping) else ""
    return [f"`{VARIABLES_COLUMN}`{names} is not read: variables of a chat template are not set"]


def _thoughts(values: Mapping[str, Any], messages: Sequence[Message], *, thinks: bool) -> Iterator[str]:
    """A note on each column with thoughts that none of the turns has."""
    columns = [name for name, value in values.items() if names_thoughts(name) and is_thought(value)]
    said = {thought.strip() for turn in messages for thought in thoughts_of(turn)} if columns else set()
    may_be_renamed = thinks and sum(turn["role"] == "assistant" for turn in messages) == 1
    for name in columns:
        value = values[name]
        if not (isinstance(value, str) and value.strip() in said):
            yield f"`{name}` is not read; {_RENAME.format(name) if may_be_renamed and name not in KEYS else _PLACE}"

"""Where rows keep two answers, if not as text or turns under `chosen` and `rejected`.

{"chosen_messages": [user, assistant], "rejected_messages": [user, assistant]}
{"chosen": {"messages": [user, assistant], "tools": [...]}, "rejected": {...}}     objects, or JSON text of them
{"input": {"messages": [user], "tools": [...]}, "preferred_output": [assistant], "non_preferred_output": [assistant]}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlflow_ft.builtin.formats.conversations import TURN_COLUMNS
from mlflow_ft.builtin.formats.tool_calls import TOOL_COLUMNS
from mlflow_ft.builtin.formats.turns import is_turns
from mlflow_ft.builtin.formats.values import from_json

Values = Mapping[str, Any]
BOTH = ("chosen", "rejected")
OPENAI = {"preferred_output": "chosen", "non_preferred_output": "rejected"}


def with_answers(values: Values) -> Values:
    """The row with its answers, as text or turns, under `chosen` and `rejected`, and with the tools of both."""
    if any(values.get(name) is not None for name in BOTH):
        return _opened(values)
    for column in TURN_COLUMNS:
        names = {f"chosen_{column}": "chosen", f"rejected_{column}": "rejected"}
        if all(is_turns(values.get(name)) for name in names):
            return _renamed(values, names)
    return _from_openai(values)


def check_tools(values: Values) -> None:
    """Raise ValueError where both answers are objects that offer different tools."""
    tools = [_tools(answer) for name in BOTH if (answer := _conversation(values.get(name)))]
    if len(tools) == len(BOTH) and all(tools) and tools[0] != tools[1]:
        raise ValueError(
            "`chosen` and `rejected` offer different tools; both answer the same prompt with the same tools"
        )


def _renamed(values: Values, names: Mapping[str, str]) -> dict[str, Any]:
    return {names.get(name, name): value for name, value in values.items() if name not in names.values()}


def _opened(values: Values) -> Values:
    """The turns and tools of conversations that are objects."""
    objects = {name: answer for name in BOTH if (answer := _conversation(values.get(name)))}
    if not objects:
        return values
    tools = next((tools for source in (values, *objects.values()) if (tools := _tools(source))), None)
    others = {name: value for name, value in values.items() if name not in TOOL_COLUMNS}
    return {
        **others,
        **({"tools": tools} if tools else {}),
        **{name: _turns(answer) for name, answer in objects.items()},
    }


def _from_openai(values: Values) -> Values:
    asked = from_json(values.get("input"))
    if not isinstance(asked, Mapping) or not _turns(asked) or any(values.get(name) is None for name in OPENAI):
        return values
    others = {name: value for name, value in values.items() if name != "input"}
    return {**_renamed(others, OPENAI), "prompt": _turns(asked), "tools": _tools(values) or _tools(asked)}


def _conversation(value: Any) -> Mapping[str, Any] | None:
    """An object with a list of turns, which may be JSON text; None for anything else."""
    value = from_json(value)
    return value if isinstance(value, Mapping) and _turns(value) else None


def _turns(value: Values) -> Any:
    return next((value[name] for name in TURN_COLUMNS if is_turns(value.get(name))), None)


def _tools(value: Values) -> Any:
    return next((tools for name in TOOL_COLUMNS if (tools := from_json(value.get(name)))), None)

"""Calls of tools, their results and the tools themselves, as chat templates take them.

{"name": "f", "arguments": "{\\"x\\": 1}"}    {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mlflow_ft.builtin.formats.values import check_json, from_json, named

TOOL_COLUMNS = ("tools", "functions")


def calls(value: Any) -> list[dict[str, Any]]:
    """Calls as templates take them, their arguments as an object; OpenAI writes these as text."""
    value = from_json(value)
    if not value:
        return []
    if not isinstance(value, Mapping | list):
        raise ValueError(f"has tool calls that are {named(value)}, not a list")
    return [_call(call) for call in ([value] if isinstance(value, Mapping) else value)]


def _call(call: Any) -> dict[str, Any]:
    function = _function(call)
    if function is None:
        raise ValueError("has a tool call without the name of a function")
    given = function.get("arguments", function.get("parameters"))
    given = {} if given is None or given == "" else from_json(given)
    check_json(given, "has a tool call with arguments that are")
    rest = {"id": call["id"]} if call.get("id") is not None else {}
    return {"type": "function", **rest, "function": {"name": function["name"], "arguments": given}}


def _function(value: Any) -> Mapping[str, Any] | None:
    """What a tool or a call says of its function, which may stand in it or be it; None where it names none."""
    found = value.get("function") or value if isinstance(value, Mapping) else None
    return found if isinstance(found, Mapping) and isinstance(found.get("name"), str) else None


def written_calls(content: Any) -> list[dict[str, Any]]:
    """Calls that are written as JSON where words might stand; [] where it is something else."""
    value = from_json(content)
    one_by_one = [value] if isinstance(value, Mapping) else value
    if not isinstance(one_by_one, list) or not all(_function(one) for one in one_by_one):
        return []
    found = calls(value)
    for number, call in enumerate(found):
        call["id"] = f"call{number:05d}"  # nine letters and digits, as Mistral's templates demand
    return found


def answer_the_call(before: Sequence[Mapping[str, Any]], message: dict[str, Any]) -> None:
    """Let the result of a tool name the call that it answers, where that is plain and not said."""
    if "tool_call_id" in message:
        return
    results = 0
    for turn in reversed(before):
        if turn["role"] == "tool":
            results += 1
            continue
        made = turn.get("tool_calls", ())
        if results < len(made):
            call = made[results]
            message |= {"tool_call_id": call["id"]} if "id" in call else {}
            message.setdefault("name", call["function"]["name"])
        return


def tools_of(values: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...] | None:
    """The tools that a row offers, each as `{"type": "function", "function": {...}}`; None where it offers none."""
    for column in TOOL_COLUMNS:
        if (value := values.get(column)) is not None and (found := _tools(value, column)):
            return found
    return None


def _tools(value: Any, column: str) -> tuple[Mapping[str, Any], ...]:
    value = from_json(value)
    if isinstance(value, str) and not value.strip():
        return ()
    if not isinstance(value, Mapping | list):
        raise ValueError(f"`{column}` is {named(value)}, not a list of functions")
    found = []
    for number, tool in enumerate(map(from_json, [value] if isinstance(value, Mapping) and value else value), 1):
        function = _function(tool)
        if function is None:
            raise ValueError(f"function {number} of `{column}` has no name")
        check_json(function, f"function {number} of `{column}` is")
        found.append({"type": "function", "function": dict(function)})
    return tuple(found)

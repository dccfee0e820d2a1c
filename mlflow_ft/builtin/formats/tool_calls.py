"""Tool calls, their results and the tools themselves, as chat templates take them.

{"name": "f", "arguments": "{\\"x\\": 1}"}    {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mlflow_ft.builtin.formats.values import check_json, from_json, from_literal, named, shown

TOOL_COLUMNS = ("tools", "functions")
Tools = tuple[Mapping[str, Any], ...]


def calls(value: Any) -> list[dict[str, Any]]:
    """Calls as templates take them, with the arguments as an object; OpenAI writes these as text."""
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
    arguments = _arguments(function.get("arguments", function.get("parameters")))
    rest = {"id": call["id"]} if call.get("id") is not None else {}
    return {"type": "function", **rest, "function": {"name": function["name"], "arguments": arguments}}


def _arguments(given: Any) -> Mapping[str, Any]:
    """The arguments of a call; text may hold them as JSON, also encoded twice, or as Python writes them."""
    arguments = given
    for _ in range(2):
        arguments = _decoded(arguments) if isinstance(arguments, str) else arguments
    if arguments is None or arguments == "":
        return {}
    check_json(arguments, "has a tool call with arguments that are")
    if not isinstance(arguments, Mapping):
        raise ValueError(
            f"has a tool call whose arguments are {named(arguments)}, not an object: {shown(given)}; "
            'write them as a JSON object, {"name": value}'
        )
    return arguments


def _decoded(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return from_literal(text)


def _function(value: Any) -> Mapping[str, Any] | None:
    """The function of a tool or a call, under `function` or the value itself; None where it has no name."""
    function = value.get("function") or value if isinstance(value, Mapping) else None
    return function if isinstance(function, Mapping) and isinstance(function.get("name"), str) else None


def written_calls(content: Any) -> list[dict[str, Any]]:
    """Calls that are written as JSON in place of text; [] where the content is anything else."""
    value = from_json(content)
    listed = [value] if isinstance(value, Mapping) else value
    if not isinstance(listed, list) or not all(map(_function, listed)):
        return []
    tool_calls = calls(value)
    for number, call in enumerate(tool_calls):
        call["id"] = f"call{number:05d}"  # nine letters and digits, as Mistral's templates require
    return tool_calls


def answer_the_call(before: Sequence[Mapping[str, Any]], message: dict[str, Any]) -> None:
    """Add the id and name of the call that a tool result answers, where it lacks them and the call is clear."""
    if "tool_call_id" in message:
        return
    results = 0
    for turn in reversed(before):
        if turn["role"] == "tool":
            results += 1
            continue
        tool_calls = turn.get("tool_calls", ())
        if results < len(tool_calls):
            call = tool_calls[results]
            message |= {"tool_call_id": call["id"]} if "id" in call else {}
            message.setdefault("name", call["function"]["name"])
        return


def tools_of(values: Mapping[str, Any]) -> Tools | None:
    """The tools that a row offers, each as `{"type": "function", "function": {...}}`; None where it offers none."""
    for column in TOOL_COLUMNS:
        if (value := values.get(column)) is not None and (tools := _tools(value, column)):
            return tools
    return None


def _tools(value: Any, column: str) -> Tools:
    value = from_json(value)
    if isinstance(value, str) and not value.strip():
        return ()
    if not isinstance(value, Mapping | list):
        raise ValueError(f"`{column}` is {named(value)}, not a list of functions")
    tools = []
    for number, tool in enumerate(map(from_json, [value] if isinstance(value, Mapping) and value else value), 1):
        function = _function(tool)
        if function is None:
            raise ValueError(f"function {number} of `{column}` has no name")
        check_json(function, f"function {number} of `{column}` is")
        tools.append({"type": "function", "function": dict(function)})
    return tuple(tools)

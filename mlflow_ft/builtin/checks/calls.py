"""A check of tool calls: nulls that a table added as padding before the file was written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mlflow_ft import Checked


def padded(row: Checked) -> str | None:
    """A null for an argument that the tool does not declare, or in place of a parameter's schema."""
    declared = dict(_declared(row.example.tools or ()))
    for tool, properties in declared.items():
        if nulls := [name for name, schema in properties.items() if schema is None]:
            return f"the tool {tool} has parameters without a schema (null): {', '.join(nulls[:3])}"
    turns = (*row.example.messages, *row.example.chosen, *row.example.rejected)
    for number, turn in enumerate(turns, 1):
        for call in turn.get("tool_calls") or ():
            function = _function(call)
            name, arguments = str(function.get("name")), function.get("arguments")
            known = declared.get(name)
            if known is None or not isinstance(arguments, Mapping):
                continue
            if nulls := [key for key, value in arguments.items() if value is None and key not in known]:
                return (
                    f"turn {number} calls {name} with null for {', '.join(nulls[:3])}, which the tool does not declare"
                )
    return None


def _declared(tools: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for tool in tools:
        function = _function(tool)
        parameters = function.get("parameters")
        properties = parameters.get("properties") if isinstance(parameters, Mapping) else None
        if isinstance(properties, Mapping):
            yield str(function.get("name")), properties


def _function(call_or_tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """The function of a call or a tool; a plugin's format may leave out OpenAI's envelope, or give text."""
    function = call_or_tool.get("function", call_or_tool)
    return function if isinstance(function, Mapping) else {}

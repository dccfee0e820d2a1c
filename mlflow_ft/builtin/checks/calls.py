"""A check of calls: nulls that a table put there, in a file that was written from one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mlflow_ft import Checked


def padded(row: Checked) -> str | None:
    """A null for an argument that the tool does not declare, or in place of the schema of a parameter."""
    declared = dict(_declared(row.example.tools or ()))
    for tool, properties in declared.items():
        if none := [name for name, schema in properties.items() if schema is None]:
            return f"the tool {tool} has parameters without a schema (null): {', '.join(none[:3])}"
    turns = (*row.example.messages, *row.example.chosen, *row.example.rejected)
    for number, turn in enumerate(turns, 1):
        for call in turn.get("tool_calls") or ():
            function = _function(call)
            name, given = str(function.get("name")), function.get("arguments")
            known = declared.get(name)
            if known is None or not isinstance(given, Mapping):
                continue
            if none := [key for key, value in given.items() if value is None and key not in known]:
                return (
                    f"turn {number} calls {name} with null for {', '.join(none[:3])}, which the tool does not declare"
                )
    return None


def _declared(tools: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for tool in tools:
        function = _function(tool)
        parameters = function.get("parameters")
        properties = parameters.get("properties") if isinstance(parameters, Mapping) else None
        if isinstance(properties, Mapping):
            yield str(function.get("name")), properties


def _function(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a call or a tool says of its function; a plugin's format may leave out OpenAI's envelope, or give text."""
    function = given.get("function", given)
    return function if isinstance(function, Mapping) else {}

"""Tool calls, their results and the tools themselves, as chat templates take them.

{"name": "f", "arguments": "{\\"x\\": 1}"}    {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mlflow_ft import Message
from mlflow_ft.builtin.formats.thoughts import written
from mlflow_ft.builtin.formats.values import check_json, from_json, from_literal, key_in, listed, named, shown

TOOL_COLUMNS = ("tools", "functions")
SCHEMA_KEYS = ("input_schema", "inputSchema")
"""What Anthropic and MCP call a tool's `parameters`."""
ARGUMENT_KEYS = ("arguments", "parameters", "args", "input", "kwargs")
"""Where a call has its arguments; `args` is LangChain's name, `input` Anthropic's."""
_CALL_KEYS = ("name", "id", "index", "type", "description", "status", "function", "call_id", "tool_call_id")
"""What else a call may have; under any other key there may be arguments."""
Tools = tuple[Mapping[str, Any], ...]
_BETWEEN = re.compile(r"(?:\s|,|</?tool_call>)*")
_JSON = json.JSONDecoder()


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
    arguments = _arguments(_given(function, call))
    rest = {"id": call["id"]} if call.get("id") is not None else {}
    return {"type": "function", **rest, "function": {"name": function["name"], "arguments": arguments}}


def _given(function: Mapping[str, Any], call: Mapping[str, Any]) -> Any:
    """What a call gives its function: in the function, or beside it."""
    for values in (function, call):
        if key := key_in(values, ARGUMENT_KEYS):
            return values[key]
    others = [key for key, value in function.items() if value is not None and key not in (*ARGUMENT_KEYS, *_CALL_KEYS)]
    if others:
        raise ValueError(
            f"has a tool call without `arguments`, but with {listed(f'`{key}`' for key in others)}; "
            'write the call as {"name": "...", "arguments": {...}}'
        )
    return None


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
    return _numbered(listed) if isinstance(listed, list) and all(map(_function, listed)) else []


def turn_of_calls(content: Any) -> tuple[str | None, list[dict[str, Any]]]:
    """The words, such as a thought, and the calls of a turn that is there to call.

    Raises:
        ValueError: it does not call anything.
    """
    inside = written(content)
    for end in (0, inside.end) if inside else (0,):
        listed = _objects(content[end:] if isinstance(content, str) else content)
        if listed and all(map(_function, listed)):
            return content[:end].strip() or None if end else None, _numbered(listed)
    raise ValueError(
        f"should be a call, but {shown(content)} is none; write a call as JSON, "
        '{"name": "...", "arguments": {...}}, or give words the role assistant'
    )


def _objects(content: Any) -> list[Any]:
    """The objects that a content consists of; [] where it has anything else."""
    if isinstance(content, Mapping):
        return [content]
    if not isinstance(content, str):
        return list(content) if isinstance(content, list) else []
    found: list[Any] = []
    place = _after_tags(content, 0)
    while place < len(content):
        try:
            value, place = _JSON.raw_decode(content, place)
        except (ValueError, RecursionError):
            value, place = from_literal(content), len(content)
        found += value if isinstance(value, list) else [value]
        place = _after_tags(content, place)
    return found


def _after_tags(text: str, place: int) -> int:
    between = _BETWEEN.match(text, place)
    return between.end() if between else place


def _numbered(listed: Sequence[Any]) -> list[dict[str, Any]]:
    return _with_ids([_call(call) for call in listed])


def _with_ids(tool_calls: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Calls with an id of nine letters and digits, as Mistral's templates require."""
    return [{**call, "id": f"call{number:05d}"} for number, call in enumerate(tool_calls)]


def with_calls(before: Message, message: Message) -> dict[str, Any] | None:
    """A turn of the assistant with the calls of the turn after it; None where these are two turns.

    ms-swift writes the words and every call of one answer as a turn of their own.
    """
    if before["role"] != "assistant" or set(message) != {"role", "tool_calls"}:
        return None
    both = [*before.get("tool_calls", ()), *message["tool_calls"]]
    ids = [call.get("id") for call in both]
    return {**before, "tool_calls": both if len(set(ids)) == len(ids) else _with_ids(both)}


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


def offered(values: Mapping[str, Any], messages: Sequence[Message]) -> tuple[list[Message], Tools | None]:
    """The turns, and the tools that the row offers: in a column, or in a system turn, as GLM's rows have them.

    Raises:
        ValueError: both offer tools, and these differ.
    """
    tools = tools_of(values)
    turns = list(messages)
    for place, turn in enumerate(messages):
        if turn["role"] != "system" or not any(column in turn for column in TOOL_COLUMNS):
            continue
        turns[place] = {key: value for key, value in turn.items() if key not in TOOL_COLUMNS}
        own = tools_of(turn)
        if tools and own and own != tools:
            raise ValueError(f"turn {place + 1} offers other tools than the row; keep one list of tools")
        tools = tools or own
    return turns, tools


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
        tools.append({"type": "function", "function": _with_parameters(function)})
    return tuple(tools)


def _with_parameters(function: Mapping[str, Any]) -> dict[str, Any]:
    key = next((key for key in SCHEMA_KEYS if function.get(key) is not None), None)
    if key is None or function.get("parameters") is not None:
        return dict(function)
    rest = {name: value for name, value in function.items() if name not in ("parameters", *SCHEMA_KEYS)}
    return {**rest, "parameters": function[key]}

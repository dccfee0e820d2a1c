"""Turns of a conversation, in whatever words a data set has for them, as chat templates take them.

{"from": "human", "value": "Hi"}                          {"role": "user", "content": "Hi"}
{"from": "function_call", "value": '{"name": "f", ...}'}  {"role": "assistant", "tool_calls": [...]}
{"role": "user", "content": [{"type": "text", ...}]}      {"role": "user", "content": "..."}
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

ROLE_KEYS = ("role", "from", "speaker")
CONTENT_KEYS = ("content", "value", "text")
LEARN_KEYS = ("train", "weight")
CALL = "call"
ROLES = {
    "system": ("system", "developer"),
    "user": ("user", "human", "prompter", "customer"),
    "assistant": ("assistant", "gpt", "model", "bot", "chatbot", "ai", "chatgpt"),
    "tool": ("tool", "observation", "function", "function_response", "tool_response", "tool_result", "ipython"),
    CALL: ("function_call", "tool_call", "function-call", "tool-call"),
}
"""What chat templates call a role, and what data sets do."""
ROLE_OF = {name: role for role, names in ROLES.items() for name in names}


def turns(value: Any, column: str) -> tuple[list[dict[str, Any]], list[bool | None]]:
    """The turns of a column, and of each whether it says itself that it is learned (None: it does not say)."""
    value = from_json(value)
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise ValueError(f"`{column}` is no list of turns")
    messages: list[dict[str, Any]] = []
    wishes: list[bool | None] = []
    for number, turn in enumerate(value, 1):
        try:
            message = _message(turn)
            wish = _wish(turn, message["role"])
        except ValueError as error:
            raise ValueError(f"turn {number} of `{column}` {error}") from error
        _answer_the_call(messages, message)
        messages.append(message)
        wishes.append(wish)
    return messages, wishes


def from_json(value: Any) -> Any:
    """What a CSV or Parquet file keeps as text: a list or an object written as JSON; anything else as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def is_turns(value: Any) -> bool:
    """Whether a column holds turns, by the look of the first."""
    value = from_json(value)
    first = value[0] if isinstance(value, list) and value else None
    return isinstance(first, Mapping) and key_in(first, ROLE_KEYS) is not None


def roles_of(value: Any) -> list[str]:
    """Who speaks, turn by turn, as far as that can be told."""
    keys = [(turn, key_in(turn, ROLE_KEYS)) for turn in from_json(value) if isinstance(turn, Mapping)]
    roles = (ROLE_OF.get(str(turn[key]).strip().lower(), "") for turn, key in keys if key)
    return ["assistant" if role == CALL else role for role in roles]


def key_in(turn: Mapping[str, Any], keys: Sequence[str]) -> str | None:
    """The first of the keys that the turn has a value under."""
    return next((key for key in keys if turn.get(key) is not None), None)


def near(name: str, known: Collection[Any]) -> str:
    """ " (did you mean `content`?)" where a name of those known is close, else ""."""
    found = difflib.get_close_matches(name, [str(one) for one in known], n=1, cutoff=0.7)
    return f" (did you mean `{found[0]}`?)" if found else ""


def _message(turn: Any) -> dict[str, Any]:
    if not isinstance(turn, Mapping):
        raise ValueError("is no object with `role` and `content`")
    role_key, content_key = key_in(turn, ROLE_KEYS), key_in(turn, CONTENT_KEYS)
    if role_key is None:
        raise ValueError(f"has no `role`; its keys are {', '.join(map(str, turn)) or 'none'}{_missed(turn, 'role')}")
    role = ROLE_OF.get(str(turn[role_key]).strip().lower())
    if role is None:
        known = near(str(turn[role_key]), ROLE_OF) or f"; known: {', '.join(ROLE_OF)}"
        raise ValueError(f"has role {turn[role_key]!r}{known}")
    content = _content(turn[content_key]) if content_key else None
    calls = _calls(turn.get("tool_calls") or turn.get("function_call"))
    if role == CALL:
        calls, content, role = _written_calls(content), None, "assistant"
        if not calls:
            content = _content(turn[content_key]) if content_key else None
    if content is None and not calls:
        raise ValueError(f"has no text in `content`{_missed(turn, 'content')}")
    # Arrow fills the keys that other rows have with None; templates test whether a key is there
    known_keys = (*ROLE_KEYS, *CONTENT_KEYS, *LEARN_KEYS, "tool_calls", "function_call")
    rest = {key: value for key, value in turn.items() if value is not None and key not in known_keys}
    words = {} if content is None else {"content": content}
    return {"role": role, **words, **({"tool_calls": calls} if calls else {}), **rest}


def _missed(turn: Mapping[str, Any], key: str) -> str:
    close = difflib.get_close_matches(key, [str(one) for one in turn if turn[one] is not None], n=1, cutoff=0.7)
    return f"; did you mean `{key}` where it says `{close[0]}`?" if close else ""


def _content(value: Any) -> str:
    """Text, or OpenAI's list of parts; pictures and sounds are no text."""
    if isinstance(value, str):
        return value
    if not isinstance(value, Sequence):
        raise ValueError(f"has no text in `content` but {type(value).__name__}")
    parts = []
    for part in value:
        text = part.get("text") if isinstance(part, Mapping) else part
        kind = part.get("type", "text") if isinstance(part, Mapping) else "text"
        if not isinstance(text, str) or kind not in ("text", "input_text", "output_text"):
            raise ValueError(f"has a part of type {kind!r}; only text can be learned")
        parts.append(text)
    return "\n".join(parts)


def _calls(value: Any) -> list[dict[str, Any]]:
    """Tool calls as templates take them, their arguments as an object; OpenAI writes these as text."""
    value = from_json(value)
    if not value:
        return []
    found = []
    for call in [value] if isinstance(value, Mapping) else value:
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise ValueError("has a tool call without the name of a function")
        arguments = function.get("arguments", function.get("parameters"))
        arguments = from_json({} if arguments is None or arguments == "" else arguments)
        rest = {key: one for key, one in call.items() if key in ("id",) and one is not None}
        found.append({"type": "function", **rest, "function": {"name": function["name"], "arguments": arguments}})
    return found


def _written_calls(content: str | None) -> list[dict[str, Any]]:
    """ShareGPT's function_call turn: the call as JSON, or a list of calls; [] where it is neither."""
    value = from_json(content)
    if not isinstance(value, Mapping | list):
        return []
    try:
        calls = _calls(value)
    except ValueError:
        return []
    for number, call in enumerate(calls):
        call["id"] = f"call{number:05d}"  # nine letters and digits, as Mistral's templates demand
    return calls


def _answer_the_call(before: Sequence[Mapping[str, Any]], message: dict[str, Any]) -> None:
    """Let the result of a tool name the call that it answers, where that is plain and not said."""
    if message["role"] != "tool" or "tool_call_id" in message:
        return
    results = 0
    for turn in reversed(before):
        if turn["role"] == "tool":
            results += 1
            continue
        calls = turn.get("tool_calls", [])
        if results < len(calls):
            call = calls[results]
            message |= {"tool_call_id": call["id"]} if "id" in call else {}
            message.setdefault("name", call["function"]["name"])
        return


def _wish(turn: Mapping[str, Any], role: str) -> bool | None:
    key = key_in(turn, LEARN_KEYS)
    if key is None:
        return None
    value = turn[key]
    if value not in (0, 1, "true", "false", "True", "False"):
        raise ValueError(f"has `{key}`: {value!r}; a turn is learned or not: give true or false, 1 or 0")
    wish = value in (1, "true", "True")
    if wish and role != "assistant" and key == "train":
        raise ValueError("has `train`: true, but only what the assistant says can be learned")
    return wish


def tools(value: Any) -> tuple[Mapping[str, Any], ...] | None:
    """The tools that a conversation may use, each as `{"type": "function", "function": {...}}`."""
    value = from_json(value)
    if value is None or value in ("", [], {}):
        return None
    listed = [value] if isinstance(value, Mapping) else value
    if not isinstance(listed, list):
        raise ValueError("`tools` is no list of functions")
    found = []
    for tool in map(from_json, listed):
        function = tool.get("function", tool) if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise ValueError("`tools` has one without the name of a function")
        found.append({"type": "function", "function": dict(function)})
    return tuple(found) or None

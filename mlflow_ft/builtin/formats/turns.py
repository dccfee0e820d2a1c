"""Turns of a conversation, whatever a data set calls them, as chat templates take them.

{"from": "human", "value": "Hi"}                          {"role": "user", "content": "Hi"}
{"from": "function_call", "value": '{"name": "f", ...}'}  {"role": "assistant", "tool_calls": [...]}
{"role": "user", "content": [{"type": "text", ...}]}      {"role": "user", "content": "..."}
{"input": "Hi", "output": "Hello"}                        a user turn and an assistant turn
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mlflow_ft.builtin.formats.channels import joined
from mlflow_ft.builtin.formats.thoughts import once
from mlflow_ft.builtin.formats.tool_calls import answer_the_call, calls, turn_of_calls, with_calls, written_calls
from mlflow_ft.builtin.formats.values import from_json, key_in, listed, meant, named, near, shown

ROLE_KEYS = ("role", "from", "speaker")
CONTENT_KEYS = ("content", "value", "text")
LEARN_KEYS = (
    *("train", "training", "weight", "loss", "loss_weight", "loss_scale", "loss_mask", "step_loss_mask"),
    *("train_on_turn", "trainable"),
)
MASK_KEYS = ("mask", "masked", "is_masked")
"""To some tools true means learned, to others not."""
SYSTEM_COLUMNS = ("system", "system_prompt")
"""Columns with a system prompt for turns that do not begin with one."""
CALL_KEYS = ("tool_calls", "function_call")
MEDIA_KEYS = ("images", "image", "videos", "video", "audios", "audio")
ROUNDS = (("input", "output"), ("human", "assistant"), ("user", "assistant"), ("question", "answer"))
"""Keys of a question and its answer, where each object in a list holds both."""
CALL = "call"
ROLES = {
    "system": ("system", "developer"),
    "user": ("user", "human", "humans", "prompter", "customer"),
    "assistant": ("assistant", "gpt", "model", "bot", "chatbot", "ai", "agent", "chatgpt", "bing", "bard", "claude"),
    "tool": (
        *("tool", "tools", "observation", "function", "ipython", "environment"),
        *("function_response", "function-response", "tool_response", "tool-response", "tool_result", "tool_results"),
    ),
    CALL: ("function_call", "function-call", "tool_call", "tool-call", "tool_calls"),
}
"""What chat templates call a role, and what data sets call it."""
ROLE_OF = {name: role for role, names in ROLES.items() for name in names}
_PLAIN = {name: role for name, role in ROLE_OF.items() if role not in ("tool", CALL)}
_WORDS = ("text", "input_text", "output_text")
_PART_KEYS = ("text", "value", "content")
_INSTEAD = {
    "thinking": "put the reasoning into `reasoning_content` of the turn",
    "reasoning": "put the reasoning into `reasoning_content` of the turn",
    "tool_use": "put the call into `tool_calls` of the turn",
    "tool_call": "put the call into `tool_calls` of the turn",
    "tool_result": "put the result into a separate turn with the role tool",
}
"""By type of part, where its content belongs instead."""
_DETAIL_KEYS = ("train_detail", "training_detail", "train-detail")
"""axolotl's segments of a turn."""
_TRUTH = {0: False, 1: True, "0": False, "1": True, "false": False, "true": True}
_READ_KEYS = frozenset((*ROLE_KEYS, *CONTENT_KEYS, *LEARN_KEYS, *CALL_KEYS))


def turns(value: Any, column: str) -> tuple[list[dict[str, Any]], list[bool | None]]:
    """The turns of a column, and for each whether it says that it is learned (None: it does not say)."""
    messages: list[dict[str, Any]] = []
    wishes: list[bool | None] = []
    for number, turn in enumerate(_list_of(value, column), 1):
        message = _plain(turn)
        wish = None
        if message is None:
            try:
                message = _message(turn)
                wish = _wish(turn, message["role"])
            except ValueError as error:
                raise ValueError(f"turn {number} of `{column}` {error}") from error
            if message["role"] == "tool":
                answer_the_call(messages, message)
        if _is_call(turn) and messages and (both := with_calls(messages[-1], message)):
            if (wish is False) != (wishes[-1] is False):
                raise ValueError(
                    f"turn {number} of `{column}` is a call of the turn before it, and they disagree on whether they "
                    "are learned; write it in both or neither"
                )
            messages[-1] = both
            continue
        messages.append(message)
        wishes.append(wish)
    return joined(messages, wishes, column)


def _is_call(turn: Mapping[str, Any]) -> bool:
    return _role(_first(turn, ROLE_KEYS)) == CALL


def as_turns(value: Any) -> Sequence[Any] | None:
    """The turns in a value, where it holds turns or can hold nothing else; None where it is text or null."""
    if isinstance(value, str):
        parsed = from_json(value)  # an answer may be JSON with another meaning
        candidates = [parsed] if isinstance(parsed, Mapping) else parsed
        return candidates if _is_turn(candidates) else None
    if isinstance(value, Mapping):
        listed_turns: Sequence[Any] | None = _columns_as_turns(value)
        return listed_turns or [value]
    return value if isinstance(value, list | tuple) else None


def _is_turn(candidates: Sequence[Any]) -> bool:
    """Whether a list that was read from text certainly begins with a turn."""
    first = candidates[0] if candidates else None
    if not isinstance(first, Mapping):
        return False
    return _role(_first(first, ROLE_KEYS)) is not None and key_in(first, (*CONTENT_KEYS, *CALL_KEYS)) is not None


def is_turns(value: Any) -> bool:
    """Whether a column holds turns, judged by the first."""
    return bool(roles_of(value)[:1])


def roles_of(value: Any) -> list[str]:
    """The role of each turn, "" where it is not known; [] where the value is not a list of turns."""
    listed = from_json(value)
    listed = _columns_as_turns(listed) if isinstance(listed, Mapping) else listed
    if not isinstance(listed, list) or not listed or not isinstance(listed[0], Mapping):
        return []
    if rounds := _round_keys(listed[0]):
        listed = _from_rounds(listed, rounds)
    elif key_in(listed[0], ROLE_KEYS) is None:
        return []
    roles = (_role(_first(turn, ROLE_KEYS)) or "" if isinstance(turn, Mapping) else "" for turn in listed)
    return ["assistant" if role == CALL else role for role in roles]


def _role(value: Any) -> str | None:
    if not isinstance(value, str):
        return None
    return ROLE_OF.get(value) or ROLE_OF.get(value.strip().lower())


# --- lists of turns, in the forms that data sets use


def _list_of(value: Any, column: str) -> Sequence[Any]:
    value = from_json(value)
    if isinstance(value, Mapping):
        value = _columns_as_turns(value) or value
    if not isinstance(value, list | tuple):
        raise ValueError(f"`{column}` is {named(value)}, not a list of turns")
    if not value:
        raise ValueError(f"`{column}` has no turns")
    rounds = _round_keys(value[0])
    return _from_rounds(value, rounds) if rounds else value


def _columns_as_turns(value: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """A list of turns from lists of roles and contents, as `datasets` stores some; None for anything else."""
    role, content = _first(value, ROLE_KEYS), _first(value, CONTENT_KEYS)
    if not isinstance(role, list) or not isinstance(content, list) or len(role) != len(content):
        return None
    lists = {key: inner for key, inner in value.items() if isinstance(inner, list) and len(inner) == len(role)}
    return [dict(zip(lists, turn, strict=True)) for turn in zip(*lists.values(), strict=True)]


def _round_keys(first: Any) -> tuple[str, str] | None:
    if not isinstance(first, Mapping) or key_in(first, ROLE_KEYS):
        return None
    return next((keys for keys in ROUNDS if all(isinstance(first.get(key), str) for key in keys)), None)


def _from_rounds(value: Sequence[Any], keys: tuple[str, str]) -> list[Any]:
    """A turn for every question and one for every answer; anything else stays, and is reported as a turn."""
    turns: list[Any] = []
    for pair in value:
        # in a table, an answer that is null means no answer
        if not isinstance(pair, Mapping) or not set(keys) & set(pair) or key_in(pair, ROLE_KEYS):
            turns.append(pair)
            continue
        turns += [
            {"role": role, "content": pair[key]}
            for role, key in zip(("user", "assistant"), keys, strict=True)
            if pair.get(key) is not None
        ]
    return turns


# --- one turn


def _plain(turn: Any) -> dict[str, Any] | None:
    """A turn of only a role and a text, as most are; None where it needs a closer look."""
    if type(turn) is not dict or len(turn) != 2:
        return None
    role, content = turn.get("role"), turn.get("content")
    if role is None or content is None:
        role, content = turn.get("from"), turn.get("value")
    if type(role) is str and type(content) is str and role in _PLAIN:
        return {"role": _PLAIN[role], "content": content}
    return None


def _message(turn: Any) -> dict[str, Any]:
    if not isinstance(turn, Mapping):
        raise ValueError(f"is {named(turn)}, not an object with `role` and `content`")
    key = key_in(turn, ROLE_KEYS)
    if key is None:
        raise ValueError(f"has no `role`{meant(ROLE_KEYS, turn) or f'; its keys are {listed(turn)}'}")
    role, content, tool_calls = _role(turn[key]), _first(turn, CONTENT_KEYS), calls(_first(turn, CALL_KEYS))
    if role is None:
        raise ValueError(f"has the unknown role {shown(turn[key])}{_nearly(turn[key])}")
    if role == CALL:
        role = "assistant"
        if not tool_calls:
            content, tool_calls = turn_of_calls(content)
        elif written_calls(content):
            content = None
    words = {} if content is None else {"content": _content(content, key_in(turn, CONTENT_KEYS))}
    if not words and not tool_calls:
        raise ValueError(f"has no text in `content`{meant(CONTENT_KEYS, turn)}")
    if media := next((key for key in MEDIA_KEYS if _is_media(turn.get(key))), None):
        raise ValueError(f"has images or audio in `{media}`; only text can be learned")
    # to OpenAI, a null key is a missing key; templates test whether a key exists
    rest = {name: value for name, value in turn.items() if value is not None and name not in _READ_KEYS}
    message = {"role": role, **words, **({"tool_calls": tool_calls} if tool_calls else {}), **rest}
    return once(message) if role == "assistant" else message


def _is_media(value: Any) -> bool:
    return value is not None and not isinstance(value, bool | int | float) and value not in ("", [])


def _first(turn: Mapping[str, Any], keys: Sequence[str]) -> Any:
    key = key_in(turn, keys)
    return None if key is None else turn[key]


def _nearly(role: Any) -> str:
    known = near(role, ROLE_OF) if isinstance(role, str) else None
    if known:
        return f"; did you mean `{known}`?"
    return "; the roles are system, user, assistant and tool: the model learns the assistant's words"


def _content(value: Any, key: str | None) -> str:
    """Text, or the text of OpenAI's list of parts, which may not have images or audio."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list | tuple):
        raise ValueError(f"has {named(value)} in `{key}`, not text")
    return "\n".join(_part(part) for part in value)


def _part(part: Any) -> str:
    text, kind = (_words_of(part), part.get("type") or "text") if isinstance(part, Mapping) else (part, "text")
    if not isinstance(kind, str) or kind not in _WORDS:
        instead = (
            _INSTEAD.get(kind, "only text can be learned") if isinstance(kind, str) else "only text can be learned"
        )
        raise ValueError(f"has a part of type {shown(kind)} in `content`; {instead}")
    if not isinstance(text, str):
        raise ValueError("has a part without text in `content`")
    return text


def _words_of(part: Mapping[str, Any]) -> Any:
    """The text of a part, under `text`, `value` or `content`; OpenAI's threads have `{"text": {"value": "..."}}`."""
    text = _first(part, _PART_KEYS)
    return _first(text, _PART_KEYS) if isinstance(text, Mapping) else text


def _wish(turn: Mapping[str, Any], role: str) -> bool | None:
    if any(turn.get(key) for key in _DETAIL_KEYS):
        raise ValueError(
            "says which parts of it are learned, but a turn is learned as a whole or not: set `train` to true or false"
        )
    masks = [key for key in MASK_KEYS if isinstance(turn.get(key), bool | int | float)] if role == "assistant" else []
    if masks:
        raise ValueError(
            f"has `{masks[0]}`, which may say that it is learned or that it is not: --data.columns train={masks[0]} if "
            "true means learned; else write `train`: true or false in its place"
        )
    wishes = {key: truth_of(turn[key], f"has {{}} in `{key}`") for key in LEARN_KEYS if turn.get(key) is not None}
    if len(set(wishes.values())) > 1:
        raise ValueError(f"contradicts itself on whether it is learned: {' and '.join(f'`{key}`' for key in wishes)}")
    if wishes.get("train") and role != "assistant":
        raise ValueError(f"has `train`: true, but is a turn by the {role}; only assistant turns can be learned")
    return next(iter(wishes.values()), None)


def truth_of(value: Any, where: str) -> bool:
    """Whether a weight says that a turn is learned.

    Raises:
        ValueError: it is neither 0 nor 1, true nor false; `where` names its place, with `{}` for the value.
    """
    plain = value.strip().lower() if isinstance(value, str) else value
    wish = _TRUTH.get(plain) if isinstance(plain, str | int | float) else None
    if wish is None:
        raise ValueError(f"{where.format(shown(value))}; a turn is learned or not: write true or false, 1 or 0")
    return wish

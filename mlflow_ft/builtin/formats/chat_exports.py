"""Exports of chat programs whose conversations are not lists of turns with role and content.

ChatGPT   {"mapping": {ID: {"parent": ID, "message": {"author": {"role": "user"}, "content": {"parts": ["Hi"]}}}, ...},
           "current_node": ID}
Claude    {"chat_messages": [{"sender": "human", "content": [{"type": "text", "text": "Hi"}]}, ...]}
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mlflow_ft import DataFormat, Example
from mlflow_ft.builtin.formats.conversations import from_turns
from mlflow_ft.builtin.formats.values import named, shown

CHATGPT, CLAUDE = "chatgpt-export", "claude-export"
UNSAID = ("thoughts", "reasoning_recap", "user_editable_context", "model_editable_context")
"""Types of content that the program stores with a conversation and that nobody says in it."""
MOST_TURNS = 100_000


def formats() -> list[DataFormat]:
    """The formats of exports."""
    return [
        DataFormat(
            name=CHATGPT,
            summary="conversations.json from ChatGPT: the branch shown last; only text",
            columns=("mapping", "current_node"),
            convert=from_chatgpt,
        ),
        DataFormat(
            name=CLAUDE,
            summary="conversations.json from Claude; only text",
            columns=("chat_messages",),
            convert=from_claude,
        ),
    ]


def format_of(sample: Sequence[Mapping[str, Any]]) -> str | None:
    """The export that the rows come from, by the columns that only it has."""
    for name, column in ((CHATGPT, "mapping"), (CLAUDE, "chat_messages")):
        if sample and all(isinstance(values.get(column), Mapping | list) for values in sample):
            return name if name == CLAUDE or all("current_node" in values for values in sample) else None
    return None


def from_claude(values: Mapping[str, Any]) -> Example:
    """A conversation from Claude's export, which does not include attached files."""
    messages = values.get("chat_messages")
    if not isinstance(messages, list):
        raise ValueError(f"`chat_messages` is {named(messages)}, not a list of turns")
    turns = []
    for number, turn in enumerate(messages, 1):
        if not isinstance(turn, Mapping):
            raise ValueError(f"turn {number} of `chat_messages` is {named(turn)}, not an object")
        if turn.get("attachments") or turn.get("files"):
            raise ValueError(f"turn {number} of `chat_messages` has files attached; only text can be learned")
        turns.append({"role": turn.get("sender"), "content": turn.get("content") or turn.get("text")})
    return from_turns({"messages": turns})


def from_chatgpt(values: Mapping[str, Any]) -> Example:
    """A conversation from ChatGPT's export: the turns on the path to the one shown last."""
    nodes, node = values.get("mapping"), values.get("current_node")
    if not isinstance(nodes, Mapping):
        raise ValueError(f"`mapping` is {named(nodes)}, not an object")
    messages: list[Any] = []
    while node is not None:
        inner = nodes.get(node)
        if not isinstance(inner, Mapping) or len(messages) > MOST_TURNS:
            raise ValueError(f"`mapping` has no node {shown(node)}, or has a cycle")
        messages.append(inner.get("message"))
        node = inner.get("parent")
    return from_turns({"messages": list(_said(reversed(messages)))})


def _said(messages: Iterator[Any]) -> Iterator[dict[str, Any]]:
    for message in messages:
        if not isinstance(message, Mapping) or _is_hidden(message):
            continue
        author, content = message.get("author"), message.get("content")
        role = author.get("role") if isinstance(author, Mapping) else None
        kind = content.get("content_type", "text") if isinstance(content, Mapping) else named(content)
        parts = content.get("parts") if isinstance(content, Mapping) else None
        if kind in UNSAID:
            continue
        if kind != "text" or message.get("recipient", "all") != "all" or not isinstance(parts, list):
            raise ValueError(
                f"the conversation has a turn by the {role} of type {shown(kind)}; only text can be learned"
            )
        words = "".join(part for part in parts if isinstance(part, str))
        if words.strip() or role == "user":
            yield {"role": role, "content": words}


def _is_hidden(message: Mapping[str, Any]) -> bool:
    metadata = message.get("metadata")
    return isinstance(metadata, Mapping) and bool(metadata.get("is_visually_hidden_from_conversation"))

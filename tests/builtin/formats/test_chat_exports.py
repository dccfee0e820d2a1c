"""Exports of chat programs are conversations; what is not text in them is refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from mlflow_ft.builtin import formats
from mlflow_ft.builtin.formats import chat_exports
from mlflow_ft.builtin.formats.chat_exports import from_chatgpt, from_claude


def node(name: str, parent: str | None, role: str = "", *parts: Any, **more: Any) -> tuple[str, dict[str, Any]]:
    message = None
    if role:
        content = {"content_type": more.pop("content_type", "text"), "parts": list(parts)}
        message = {"author": {"role": role}, "content": content, "metadata": more.pop("metadata", {}), **more}
    return name, {"id": name, "parent": parent, "message": message}


def chatgpt(*nodes: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    return {"title": "t", "mapping": dict(nodes), "current_node": nodes[-1][0]}


ROOT = node("r", None)
ASKED = node("u", "r", "user", "Hi")
SAID = {"role": "user", "content": "Hi"}


def test_the_branch_that_was_shown_last_is_read() -> None:
    hidden = node("s", "r", "system", "secret", metadata={"is_visually_hidden_from_conversation": True})
    nodes = [
        ROOT,
        hidden,
        node("u", "s", "user", "Hi"),
        node("a", "u", "assistant", "No."),
        node("b", "u", "assistant", "Yes."),
    ]
    assert from_chatgpt(chatgpt(*nodes)).messages == (SAID, {"role": "assistant", "content": "Yes."})


def test_internal_content_is_skipped() -> None:
    nodes = [
        ROOT,
        node("m", "r", "user", content_type="user_editable_context"),
        node("u", "m", "user", "Hi"),
        node("t", "u", "assistant", content_type="thoughts"),
        node("e", "t", "assistant", ""),
        node("a", "e", "assistant", "Yes."),
    ]
    assert from_chatgpt(chatgpt(*nodes)).messages == (SAID, {"role": "assistant", "content": "Yes."})


CHATGPT: dict[str, tuple[dict[str, Any], str]] = {
    "a picture": (
        chatgpt(ROOT, node("u", "r", "user", {"asset": 1}, "What is it?", content_type="multimodal_text")),
        "the conversation has a turn by the user of type 'multimodal_text'; only text can be learned",
    ),
    "code that was run": (
        chatgpt(ROOT, ASKED, node("a", "u", "assistant", "x = 1", recipient="python")),
        "the conversation has a turn by the assistant of type 'text'; only text can be learned",
    ),
    "no branch": ({"mapping": {}, "current_node": "x"}, "`mapping` has no node 'x', or has a cycle"),
    "no mapping": ({"mapping": [], "current_node": "x"}, "`mapping` is a list, not an object"),
    "nothing said": (chatgpt(ROOT, ASKED), "the conversation has no assistant turn"),
}


@pytest.mark.parametrize("case", CHATGPT)
def test_what_cannot_be_learned_is_refused(case: str) -> None:
    values, message = CHATGPT[case]
    with pytest.raises(ValueError, match=f"^{message}"):
        from_chatgpt(values)


def test_a_branch_with_a_cycle_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_exports, "MOST_TURNS", 10)
    with pytest.raises(ValueError, match="has a cycle"):
        from_chatgpt(chatgpt(node("a", "b", "user", "x"), node("b", "a", "assistant", "y")))


def claude(*turns: dict[str, Any]) -> dict[str, Any]:
    return {"uuid": "1", "name": "t", "chat_messages": list(turns)}


def test_a_conversation_of_claude() -> None:
    parts = [{"type": "text", "text": "Yes."}, {"type": "text", "text": "Or no."}]
    turns = [
        {"sender": "human", "text": "Hi", "attachments": [], "files": []},
        {"sender": "assistant", "content": parts},
    ]
    assert from_claude(claude(*turns)).messages == (SAID, {"role": "assistant", "content": "Yes.\nOr no."})


@pytest.mark.parametrize(
    ("turn", "message"),
    [
        ({"sender": "human", "text": "x", "attachments": [{"file_name": "a"}]}, "turn 1 of `chat_messages` has files"),
        ({"sender": "human", "text": "x", "files": [{"file_name": "a"}]}, "turn 1 of `chat_messages` has files"),
        (
            {"sender": "human", "content": [{"type": "tool_use", "name": "f"}]},
            "turn 1 of `messages` has a part of type",
        ),
        ("x", "turn 1 of `chat_messages` is text, not an object"),
    ],
)
def test_what_claude_was_shown_other_than_text_is_refused(turn: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        from_claude(claude(turn))
    with pytest.raises(ValueError, match="`chat_messages` is text, not a list of turns"):
        from_claude({"chat_messages": "x"})


def test_exports_are_recognised_by_columns_that_only_they_have() -> None:
    export = chatgpt(ROOT, ASKED, node("a", "u", "assistant", "Yes."))
    assert formats.detect_format(list(export), [export, export]) == "chatgpt-export"
    assert formats.detect_format(["chat_messages"], [claude()]) == "claude-export"
    pair = {"prompt": "a", "completion": "b"}
    assert formats.detect_format([], [{**pair, "mapping": {"x": 1}}]) == "prompt-completion"
    assert formats.detect_format([], [{**pair, "mapping": "x", "current_node": "y"}]) == "prompt-completion"
    assert formats.detect_format([], []) is None

"""Turns that a template writes alike: located by three of them, they are where each is located alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflow_ft.engine.tokens import similar_turns
from mlflow_ft.engine.tokens.masking import Encoder, MaskError, Tokenised
from mlflow_ft.engine.tokens.render import Shapes, apply
from mlflow_ft.engine.tokens.span_types import WAYS, Span, Way
from mlflow_ft.rows import Example
from tests.engine.templates import FAMILIES, talk
from tests.engine.templates import tokenizers as tokens
from tests.engine.templates.chatml import CHATML, CHATML_TOKENS
from tests.engine.templates.qwen import QWEN3, QWEN_TOKENS

TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}


def encoder(jinja: str, family: str = "qwen3") -> Encoder:
    script = FAMILIES[family]
    return Encoder(
        tokens.make(jinja, script.tokens, eos=script.eos, bos=script.bos, kind=script.kind), max_length=10**6
    )  # fmt: skip


def of(name: str) -> Encoder:
    return encoder(FAMILIES[name].jinja, name)


def proved(maker: Encoder, messages: Sequence[Any], **more: Any) -> Tokenised:
    [tokenised] = maker.tokenise([Example(messages=tuple(messages), **more)])
    assert not isinstance(tokenised, MaskError), f"{tokenised}: {tokenised.text}"
    return tokenised[0]


@contextmanager
def one_by_one() -> Iterator[None]:
    """Every turn is located alone, as if there were never enough similar ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(similar_turns, "SAMPLES", 10**9)
        yield


def steps(count: int, *, thoughts: bool = False, given: Any = None) -> list[dict[str, Any]]:
    """A question, and so many calls with their results before the answer."""
    turns: list[dict[str, Any]] = [{"role": "user", "content": "go"}]
    for number in range(count):
        arguments = given(number) if given else {"x": f"at {number}", "n": number, "far": number + 0.25, "ok": True}
        call = {"type": "function", "id": f"call{number:05d}", "function": {"name": "f", "arguments": arguments}}
        thought = {"reasoning_content": f"think {number}"} if thoughts else {}
        turns += [
            {"role": "assistant", "content": "", "tool_calls": [call], **thought},
            {"role": "tool", "content": f"result {number}", "tool_call_id": f"call{number:05d}", "name": "f"},
        ]
    return [*turns, {"role": "assistant", "content": "done"}]


def rounds(count: int, *, thought: str = "") -> list[dict[str, Any]]:
    """Questions and answers by turns."""
    turns: list[dict[str, Any]] = []
    for number in range(count):
        answer = (thought and f"<think>\n{thought} {number}\n</think>\n\n") + f"a {number}"
        turns += [{"role": "user", "content": f"q {number}"}, {"role": "assistant", "content": answer}]
    return turns


# --- the same as turn by turn


@st.composite
def long_talk(draw: st.DrawFn, family: str) -> list[dict[str, Any]]:
    """Several conversations in a row, most of them the same in form."""
    script = FAMILIES[family]
    talks = talk.conversations(family) | talk.tool_talk(family) if script.tools == "all" else talk.conversations(family)
    parts = draw(st.lists(talks, min_size=1, max_size=3))
    turns = [turn for part in parts for turn in part * draw(st.integers(1, 6)) if turn["role"] != "system"]
    whole = []
    for before, turn in zip([None, *turns], turns, strict=False):
        last = before and before["role"]
        if last == "assistant" and turn["role"] == "assistant":  # the cut lay after a call
            continue
        if last == "assistant" and before.get("tool_calls") and turn["role"] != "tool":
            whole.append({"role": "tool", "content": "lit", "tool_call_id": before["tool_calls"][0]["id"], "name": "f"})
            whole.append({"role": "assistant", "content": "ok"})
        whole.append(turn)
    return whole


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=12)
@given(data=st.data())
def test_turns_of_a_long_row_stand_where_each_is_found_by_itself(name: str, data: st.DataObject) -> None:
    messages = data.draw(long_talk(name))
    row = [Example(messages=tuple(messages))]
    [fast] = of(name).tokenise(row)
    with one_by_one():
        [slow] = of(name).tokenise(row)
    if isinstance(slow, MaskError):
        assert isinstance(fast, MaskError)
        assert str(fast) == str(slow)
        return
    assert not isinstance(fast, MaskError), f"{fast}: {fast.text}"
    assert (fast[0].text, fast[0].labels, fast[0].way) == (slow[0].text, slow[0].labels, slow[0].way)


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=5)
@given(data=st.data())
def test_a_long_row_is_learned_as_its_family_writes_it(name: str, data: st.DataObject) -> None:
    """Against the description by hand, which knows nothing of the code."""
    words = st.text("abc {}<>\n", min_size=1, max_size=5).filter(str.strip)
    count = data.draw(st.integers(6, 12))
    messages = [
        {"role": role, "content": data.draw(words)} for _ in range(count) for role in ("user", "assistant")
    ]  # fmt: skip
    row, script = proved(of(name), messages), FAMILIES[name].write(messages, None)
    assert row.text == script.text
    assert row.labels == tokens.labels(row, script, list(range(1, 2 * count, 2)))


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.tools == "all"])
@pytest.mark.parametrize("thoughts", [False, True])
def test_many_calls_are_learned_as_their_family_writes_them(name: str, thoughts: bool) -> None:  # noqa: FBT001  # pytest's
    messages = steps(9, thoughts=thoughts and name == "qwen3")
    row, script = proved(of(name), messages, tools=(TOOL,)), FAMILIES[name].write(messages, (TOOL,))
    assert row.text == script.text
    learned = [turn for turn, message in enumerate(messages) if message["role"] == "assistant"]
    assert row.labels == tokens.labels(row, script, learned)


# --- in linear time


def renders(maker: Encoder, messages: Sequence[Any], **more: Any) -> tuple[int, int]:
    """How often the template is rendered for a row, and how many turns it is given in all."""
    turns: list[int] = []
    write = maker.tokenizer.apply_chat_template
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            maker.tokenizer,
            "apply_chat_template",
            lambda given, **options: turns.append(len(given)) or write(given, **options),
        )
        proved(maker, messages, **more)
    return len(turns), sum(turns)


LONG = {
    "rounds": lambda count: rounds(2 * count),
    "thoughts": lambda count: rounds(2 * count, thought="hm"),
    "steps": steps,
    "steps with thoughts": lambda count: steps(count, thoughts=True),
    "other numbers": lambda count: steps(count, given=lambda number: {"n": number, "far": -number / 7}),
    "arguments as text": lambda count: steps(count, given=lambda number: f'{{"n": {number}}}'),
    "results as the user": lambda count: [
        turn
        for number in range(count)
        for turn in (
            {"role": "user", "content": f"<tool_response>\n{number}\n</tool_response>" if number else "go"},
            {"role": "assistant", "content": f"<think>\nhm {number}\n</think>\n\ncall {number}"},
        )
    ],
}


def takes(name: str, messages: Sequence[Any]) -> bool:
    """Whether a family can write such turns itself."""
    if name.startswith("deepseek") and ("<think>" in str(messages) or "reasoning_content" in str(messages)):
        return False  # of the last turn, too, so that it is refused
    return "tool_calls" not in str(messages) or FAMILIES[name].tools == "all"


@pytest.mark.parametrize(
    ("name", "kind"), [(name, kind) for kind in LONG for name in FAMILIES if takes(name, LONG[kind](1))]
)
def test_a_row_of_twice_the_turns_is_rendered_no_more_often(name: str, kind: str) -> None:
    count, turns = renders(of(name), LONG[kind](20))
    again, more = renders(of(name), LONG[kind](40))
    assert again == count < 60
    assert more < 2.2 * turns


def test_a_taught_template_is_rendered_no_more_often_either() -> None:
    count, _ = renders(of("chatml"), steps(20), tools=(TOOL,))
    again, _ = renders(of("chatml"), steps(40), tools=(TOOL,))
    assert again == count


def test_what_a_user_says_may_change_the_writing_of_a_long_row() -> None:
    """It has no shape in common with others; the assistant's words alone are marks then."""
    words = "{{ message['content'] }}"
    quiet = "{% if 'quiet' in message.content and message.role == 'user' %}(hush){% else %}" + words + "{% endif %}"
    jinja = CHATML.replace(words, quiet)
    messages = [{**turn, "content": turn["content"].replace("q", "quiet")} for turn in rounds(24)]
    maker = encoder(jinja, "chatml")
    count, _ = renders(maker, messages)
    assert count < 40
    row = proved(maker, messages)
    assert row.text.count("(hush)") == 24
    learned = "".join(text for text, label in zip(row.pieces, row.labels, strict=True) if label != -100)
    assert learned == "".join(f"a {number}<|im_end|>" for number in range(24))


# --- where they are not alike after all


def spans(jinja: str, messages: Sequence[Any]) -> tuple[list[Span], Way]:
    """The spans of a row, and the least reliable way that located one of them, which the row reports."""
    tokenizer: Any = tokens.make(jinja, CHATML_TOKENS, eos="<|im_end|>")
    text = apply(tokenizer, messages, None)
    wanted = [turn for turn, message in enumerate(messages) if message["role"] == "assistant"]
    located = Shapes(tokenizer).spans(text, messages, wanted, None).spans
    return [span._replace(way="prompt") for span in located], max((span.way for span in located), key=WAYS.index)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("{{ message['role'] }}\n", "{{ message['role'] }} {{ loop.index }}\n"),  # every turn has a number
        ("{{ message['content'] }}", "{{ message['content'] }}{{ ' (aside)' if loop.index in (6, 8) }}"),
        ("{{ message['content'] }}", "{{ 'So: ' if loop.index in (6, 8) }}{{ message['content'] }}"),
        ("{{ message['content'] }}<|im_end|>", "{{ message['content'] }}{{ '!' if loop.index is odd }}<|im_end|>"),
        ("assistant\n{% endif %}", "assistant\n{% if messages | length > 9 %}\n{% endif %}{% endif %}"),
    ],
)
def test_a_template_that_writes_turns_by_their_place_is_believed(old: str, new: str) -> None:
    jinja = CHATML.replace(old, new)
    assert jinja != CHATML
    fast = spans(jinja, rounds(12))
    with one_by_one():
        assert fast == spans(jinja, rounds(12))


def test_samples_that_differ_are_no_evidence() -> None:
    """A prompt that goes on to think late in a conversation: the first, the middle and the last turn tell."""
    jinja = CHATML.replace("assistant\n{% endif %}", "assistant\n{{ '<think>' if messages | length > 9 }}{% endif %}")
    for thought in ("", "hm"):
        fast = spans(jinja, rounds(12, thought=thought))
        with one_by_one():
            assert fast == spans(jinja, rounds(12, thought=thought))


def test_a_mistake_in_one_of_many_is_found() -> None:
    """One of the assistant's turns contains other speakers' text, with the same surroundings as all others."""
    words = "{{ message['content'] }}{{ messages[0].content if loop.index == 10 }}"
    jinja = CHATML.replace("{{ message['content'] }}", words)
    [error] = encoder(jinja, "chatml").tokenise([Example(messages=tuple(rounds(12)))])
    assert isinstance(error, MaskError)
    assert "writes other speakers' text into turn 10" in str(error)


def test_thoughts_that_are_left_out_are_counted_in_every_turn() -> None:
    maker = Encoder(tokens.make(QWEN3, QWEN_TOKENS, eos="<|im_end|>"), max_length=10**6)
    row = proved(maker, rounds(12, thought="hm"))
    assert row.unwritten == tuple(range(1, 23, 2)), "the last turn keeps its thought"

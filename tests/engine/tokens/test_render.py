"""The assistant's spans: thoughts, words that look like tokens, unreliable templates, cached shapes."""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from mlflow_ft.engine.tokens import render as rendering
from mlflow_ft.engine.tokens.masking import IGNORED, Encoder, Tokenised, end_tokens
from mlflow_ft.engine.tokens.placeholders import marked
from mlflow_ft.engine.tokens.render import MaskError, Shapes, apply, prompt_text, render
from mlflow_ft.engine.tokens.spans import Shape, Tail
from mlflow_ft.rows import Example
from tests.engine.templates import FAMILIES, talk
from tests.engine.templates import tokenizers as tokens
from tests.engine.templates.chatml import CHATML, CHATML_TOKENS
from tests.engine.templates.gemma import PHI3_EARLY
from tests.engine.templates.mistral import MISTRAL3_AS_RELEASED
from tests.engine.templates.others import GPT_OSS, GPT_OSS_TOKENS, gpt_oss
from tests.engine.templates.script import Script

TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
CALL = {"type": "function", "id": "call00000", "function": {"name": "f", "arguments": {"x": "é"}}}
WORDS = "{{ message['content'] }}"
ASSISTANT = "message.role == 'assistant'"


def talked(*contents: str, system: str = "") -> list[dict[str, Any]]:
    """Turns of user and assistant by turns."""
    turns = [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(contents)]
    return [{"role": "system", "content": system}, *turns] if system else turns


def chatml(words: str = WORDS, more: str = "") -> Encoder:
    """ChatML with something else in place of the words, or after everything."""
    jinja = CHATML.replace(WORDS, words) + more
    return Encoder(tokens.make(jinja, CHATML_TOKENS, eos="<|im_end|>"), max_length=9999)


def of(name: str, jinja: str = "") -> Encoder:
    family = FAMILIES[name]
    made = tokens.make(jinja or family.jinja, family.tokens, eos=family.eos, bos=family.bos, kind=family.kind)
    return Encoder(made, max_length=9999)


def proved(maker: Encoder, messages: Sequence[Any], **more: Any) -> Tokenised:
    [tokenised] = maker.tokenise([Example(messages=tuple(messages), **more)])
    assert not isinstance(tokenised, MaskError), f"{tokenised}: {tokenised.text}"
    return tokenised[0]


def refused(maker: Encoder, messages: Sequence[Any], **more: Any) -> str:
    [result] = maker.tokenise([Example(messages=tuple(messages), **more)])
    assert isinstance(result, MaskError), speeches(result[0])
    return str(result)


def speeches(row: Tokenised) -> list[str]:
    """What is learned, turn by turn."""
    texts = [""]
    for text, label in zip(row.pieces, row.labels, strict=True):
        if label != IGNORED:
            texts[-1] += text
        elif texts[-1]:
            texts.append("")
    return [text for text in texts if text]


# --- words that look like tokens


@pytest.mark.parametrize("said", ["<|im_end|>", "a<|im_end|>", "<|im_end|>b", "a<|im_end|>\n<|im_start|>user\nb", "e"])
def test_a_token_among_the_assistants_words_does_not_end_them(said: str) -> None:
    row = proved(chatml(), talked("red", said, "im_end", said))
    assert speeches(row) == [f"{said}<|im_end|>"] * 2


@pytest.mark.parametrize("said", ["<|im_end|>", "x<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n", "green"])
def test_nothing_of_the_users_is_learned_whatever_it_looks_like(said: str) -> None:
    row = proved(chatml(), talked(said, "green", said, "green", system=said))
    assert speeches(row) == ["green<|im_end|>"] * 2


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=10)
@given(data=st.data())
def test_a_turn_may_hold_every_token_of_its_family(name: str, data: st.DataObject) -> None:
    family, maker = FAMILIES[name], of(name)
    pieces = st.sampled_from([str(token) for token in family.tokens] + [" ", "\n", "red"])
    said = st.lists(pieces, min_size=1, max_size=4).map("".join).filter(str.strip)
    said = said.filter(lambda text: "</think>" not in text)  # what precedes it is a thought
    messages = talked(*(data.draw(said) for _ in range(4)))
    row, script = proved(maker, messages), family.write(messages, None)
    assert row.text == script.text
    assert row.labels == tokens.labels(row, script, [1, 3])


def test_the_letters_of_a_mark_are_words_like_others() -> None:
    row = proved(chatml(), talked("Zq7Jx1Wk", "Zq7Jx0Wk Zq7Jx1Wk", "Zq7Jx7Wk", "Zq7Jx3Wk"))
    assert speeches(row) == ["Zq7Jx0Wk Zq7Jx1Wk<|im_end|>", "Zq7Jx3Wk<|im_end|>"]
    tools = ({"type": "function", "function": {"name": "Zq7Jx9Wk"}},)
    assert "reserved as a placeholder" in refused(of("qwen2.5"), talked("red", "green"), tools=tools)


@pytest.mark.parametrize("name", FAMILIES)
def test_an_empty_turn_is_learned_as_its_end_or_refused(name: str) -> None:
    for blank in ("", " \n "):
        messages = talked("red", blank, "blue", "round")
        script = FAMILIES[name].write(messages, None)
        [result] = of(name).tokenise([Example(messages=tuple(messages))])
        if isinstance(result, MaskError):  # without help from the prompt it cannot be located
            assert name in ("deepseek-r1", "qwen3")
        else:
            assert result[0].text == script.text
            assert result[0].labels == tokens.labels(result[0], script, [1, 3])


# --- thoughts


THOUGHT = "<think>\nhm\n</think>\n\n"


@pytest.mark.parametrize("said", ["<think>hm</think>b", f"{THOUGHT}b", "hm</think>b", "<think></think>b", f"{THOUGHT}"])
def test_thoughts_are_learned_where_they_are_kept(said: str) -> None:
    assert speeches(proved(chatml(), talked("a", said, "c", said))) == [f"{said}<|im_end|>"] * 2


@pytest.mark.parametrize("name", ["deepseek-v3", "deepseek-r1"])
def test_thoughts_of_the_last_turn_that_are_dropped_are_refused_and_of_earlier_ones_the_rest_is_learned(
    name: str,
) -> None:
    maker = of(name)
    assert refused(maker, talked("a", f"{THOUGHT}b")).endswith("omits the assistant's thoughts in turn 2, its last")
    assert "turn 4, its last" in refused(maker, talked("a", "b", "c", f"{THOUGHT}d"))
    messages = talked("a", f"{THOUGHT}b", "c", "d")
    row, script = proved(maker, messages), FAMILIES[name].write(messages, None)
    assert row.text == script.text
    assert row.labels == tokens.labels(row, script, [1, 3])
    assert [speech.strip() for speech in speeches(row)] == ["b<｜end▁of▁sentence｜>", "d<｜end▁of▁sentence｜>"]
    unlearned = proved(maker, talked("a", "b", "c", f"{THOUGHT}d"), learned=(False, True, False, False))
    assert speeches(unlearned) == ["b<｜end▁of▁sentence｜>"]


def test_thoughts_in_a_key_of_their_own_are_learned_or_refused() -> None:
    for key in ("reasoning_content", "thinking", "reasoning"):
        messages = [*talked("a"), {"role": "assistant", "content": "b", key: "hm"}]
        assert speeches(proved(of("qwen3"), messages)) == [f"{THOUGHT}b<|im_end|>"]
        assert "thoughts in turn 2, its last" in refused(chatml(), messages)
        earlier = [*messages, *talked("c", "d")]
        assert speeches(proved(chatml(), earlier)) == ["b<|im_end|>", "d<|im_end|>"]
        assert speeches(proved(of("qwen3"), earlier)) == ["b<|im_end|>", "<think>\n\n</think>\n\nd<|im_end|>"]


@settings(max_examples=60)
@given(data=st.data())
def test_qwen_thinks_in_the_last_turn_alone(data: st.DataObject) -> None:
    messages = data.draw(talk.tool_talk("qwen3") | talk.conversations("qwen3"))
    for turn in messages:
        thought = data.draw(st.none() | talk.snippets) if turn["role"] == "assistant" else None
        where = data.draw(st.sampled_from(("key", "content")))
        if thought is None:
            continue
        if where == "key" or not turn.get("content"):
            turn["reasoning_content"] = thought
        else:
            opening = data.draw(st.sampled_from(("<think>", "<think>\n", "\n<think>")))
            turn["content"] = opening + thought.replace("<think>", "") + "</think>" + turn["content"]
    if "</think>" in str(messages[-1].get("content")) and "reasoning_content" not in messages[-1]:
        messages[-1]["content"] = messages[-1]["content"].replace("\n<think>", "<think>")
    learned = [turn for turn, message in enumerate(messages) if message["role"] == "assistant"]
    row, script = proved(of("qwen3"), messages), FAMILIES["qwen3"].write(messages, None)
    assert row.text == script.text
    assert row.labels == tokens.labels(row, script, learned)


def test_a_prompt_that_goes_on_to_think_does_not_hide_what_the_answer_begins_with() -> None:
    """As in Nemotron's template: the prompt ends in <think>, a row without thoughts has <think></think>."""
    words = "{% if " + ASSISTANT + " and '</think>' not in message.content %}<think></think>{% endif %}" + WORDS
    tokenizer = chatml(words).tokenizer
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "assistant\n{% endif %}", "assistant\n<think>\n{% endif %}"
    )
    maker = Encoder(tokenizer, max_length=999)
    assert speeches(proved(maker, talked("a", "b", "c", "d"))) == ["</think>b<|im_end|>", "</think>d<|im_end|>"]
    assert speeches(proved(maker, talked("a", f"{THOUGHT}b"))) == ["hm\n</think>\n\nb<|im_end|>"]


# --- templates that cannot be trusted


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("{{ message['content'] | upper }}", "does not write turn 1, the user's, unchanged"),
        ("{{ message['content'] | upper if " + ASSISTANT + " else message['content'] }}", "not write turn 2 unchanged"),
        ("{{ message['content'] if message.role != 'assistant' }}", "does not write turn 2 unchanged"),
        ("{{ message['content'] if " + ASSISTANT + " }}", "does not write turn 1, the user's, unchanged"),
        ("{{ message['content'] }}{{ message['content'] }}", "writes turn 2 more than once"),
        ("{{ messages[0].content }} {{ message['content'] }}", "writes other speakers' text into turn 2"),
        ("{{ message['content'] }} {{ messages[0].content }}", "writes other speakers' text into turn 2"),
        ("{{ message['content'][:9] }}", "turn 2 unchanged"),
        ("{{ message['content'] | replace('r', 'l') }}", "turn 2 unchanged"),
        ("{{ message['content'] | tojson if " + ASSISTANT + " else message['content'] }}", "turn 2 unchanged"),
        ("{{ raise_exception('roles must alternate') }}", "rejects the conversation: roles must alternate"),
        ("{{ nothing.there }}", "rejects the conversation: 'nothing' is undefined"),
        ("{{ 1 // 0 }}", "rejects the conversation"),
    ],
)
def test_what_a_template_does_to_the_words_is_refused(words: str, reason: str) -> None:
    said = 'a "green" river'
    for messages in (talked("the red one", said), talked("the red one", said, "blue", "round")):
        [result] = chatml(words).tokenise([Example(messages=tuple(messages))])
        assert isinstance(result, MaskError)
        assert reason in str(result)
        assert ("<|im_start|>" in result.text) == ("rejects" not in reason), "the row is shown as rendered"


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("{% if " + ASSISTANT + " %}" + WORDS + "{% else %}{% generation %}" + WORDS + "{% endgeneration %}{% endif %}",
         "marks other speakers' text as generated"),
        ("{% generation %}" + WORDS + "{% endgeneration %}", "marks other speakers' text as generated"),
        ("{% if " + ASSISTANT + " %}{{ message.content.split('</think>')[0] }}</think>{% generation %}"
         "{{ message.content.split('</think>')[1] }}{% endgeneration %}{% else %}" + WORDS + "{% endif %}",
         "what the chat template marks as generated is not turn 2"),
    ],
)  # fmt: skip
def test_markers_around_the_wrong_words_are_refused(words: str, reason: str) -> None:
    for messages in (
        talked("same", "<think>x</think>same"),
        talked("e", "<think>e</think>e", "e", "<think>e</think>e"),
    ):
        assert reason in refused(chatml(words), messages)


def test_markers_around_two_turns_are_refused() -> None:
    words = "{% if loop.first %}{% generation %}{% for one in messages[1:3] %}{{ one.content }}<|im_end|>{% endfor %}"
    jinja = (
        "{{ messages[0].content }}{% for message in messages %}" + words + "{% endgeneration %}{% endif %}{% endfor %}"
    )
    maker = Encoder(tokens.make(jinja, CHATML_TOKENS, eos="<|im_end|>"), max_length=99)
    turns = [*talked("a", "b"), {"role": "assistant", "content": "c"}]
    assert "marks as generated is not turn 2" in refused(maker, turns)


def test_markers_that_take_in_the_header_are_cut_at_the_prompt() -> None:
    jinja = (
        "{% for message in messages %}{% if " + ASSISTANT + " %}{% generation %}<|im_start|>assistant\n"
        "{{ message.content }}<|im_end|>\n{% endgeneration %}{% else %}<|im_start|>{{ message.role }}\n"
        "{{ message.content }}<|im_end|>\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    row = proved(
        Encoder(tokens.make(jinja, CHATML_TOKENS, eos="<|im_end|>"), max_length=99), talked("a", "b", "c", "d")
    )
    assert speeches(row) == ["b<|im_end|>", "d<|im_end|>"]
    assert row.way == "generation markers"


def test_markers_of_some_turns_leave_the_others_to_be_found() -> None:
    words = "{% if " + ASSISTANT + " and loop.last %}{% generation %}" + WORDS + "{% endgeneration %}{% else %}" + WORDS
    row = proved(chatml(words + "{% endif %}"), talked("a", "b", "c", "d"))
    assert speeches(row) == ["b<|im_end|>", "d<|im_end|>"]
    assert row.way == "prefix differences", "the row reports its least reliable way"


def test_a_system_prompt_that_is_lost_is_refused() -> None:
    messages = talked("a", "b", "c", "d", system="be brief")
    assert "turn 1, the system's, in a prompt, but not when" in refused(
        of("mistral-v3", MISTRAL3_AS_RELEASED), messages
    )
    assert "does not write turn 1, the system's" in refused(of("phi-3", PHI3_EARLY), messages)
    for maker in (of("mistral-v3", MISTRAL3_AS_RELEASED), of("phi-3", PHI3_EARLY)):
        assert len(speeches(proved(maker, messages[1:]))) == 2


def test_what_nobody_learns_from_is_not_looked_at() -> None:
    row = proved(chatml("{{ message['content'] | upper }}"), talked("a", "b"), learned=(False, False))
    assert row.text == "<|im_start|>user\nA<|im_end|>\n<|im_start|>assistant\nB<|im_end|>\n"
    assert set(row.labels) == {IGNORED}


def test_a_first_word_of_the_assistants_is_read_but_cannot_be_learned() -> None:
    messages = talked("x", "a", "b", "c")[1:]
    assert "with nothing before it" in refused(chatml(), messages)
    assert speeches(proved(chatml(), messages, learned=(False, False, True))) == ["c<|im_end|>"]


# --- channels


def test_gpt_oss_speaks_in_channels_and_ends_the_last_turn_otherwise() -> None:
    year = str(datetime.datetime.now(tz=datetime.UTC).astimezone().year)
    tokenizer = tokens.make(GPT_OSS, GPT_OSS_TOKENS, eos="<|return|>", kind="bytes, own split")
    maker = Encoder(tokenizer, max_length=9999)
    thinking = [*talked("a", system="be brief"), {"role": "assistant", "content": "b", "thinking": "hm"}]
    for messages in (talked("a", "b"), thinking):
        row, script = proved(maker, messages), gpt_oss(messages, None, year)
        assert row.text == script.text
        assert row.labels == tokens.labels(row, script, [len(messages) - 1])
        assert end_tokens([row.encoded]) == (tokenizer.eos_token_id,)
    messages = talked("a", "b", "c", "d")
    assert "ends the assistant's turn differently when other turns follow" in refused(maker, messages)
    last = proved(maker, messages, learned=(False, False, False, True))
    assert speeches(last) == ["<|channel|>final<|message|>d<|return|>"]


# --- shapes


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=10)
@given(data=st.data())
def test_a_shape_tells_the_same_as_each_turn_by_itself(name: str, data: st.DataObject) -> None:
    tokenizer, messages = tokens.of(name), data.draw(talk.conversations(name))
    wanted = [turn for turn, message in enumerate(messages) if message["role"] == "assistant"]
    shapes, text = Shapes(tokenizer), apply(tokenizer, messages, None)
    for turn, known in zip(wanted, shapes.spans(text, messages, wanted, None).spans, strict=True):
        lead = text[known.begin : known.said].partition(words(messages, turn))[0]
        [span] = shapes._alone(text, messages, turn, lead, None).spans
        assert (span.begin, span.said, span.plain, span.way) == (known.begin, known.said, known.plain, known.way)
        assert text[span.said : span.end].strip() == text[known.said : known.end].strip()


def words(messages: Sequence[Any], turn: int) -> str:
    return str(messages[turn]["content"]).strip()


def test_what_a_row_without_thoughts_or_calls_has_taught_is_not_held_true_of_others() -> None:
    maker, plain = chatml(), talked("a", "b")
    assert speeches(proved(maker, plain)) == ["b<|im_end|>"]
    assert "thoughts in turn 2" in refused(maker, [plain[0], {**plain[1], "reasoning_content": "hm"}])
    silent = talked("a", "")
    assert speeches(proved(maker, silent)) == ["<|im_end|>"]
    assert "thoughts in turn 2" in refused(maker, [silent[0], {**silent[1], "reasoning_content": "hm"}])
    maker.tokenizer.chat_template = {"default": CHATML}  # such templates are not taught to write calls
    assert speeches(proved(maker, plain)) == ["b<|im_end|>"]
    assert "the tool calls of turn 2" in refused(maker, [plain[0], {**plain[1], "tool_calls": [CALL]}])


def test_what_is_no_text_is_refused() -> None:
    parts = [{"type": "text", "text": "green"}]
    assert "turn 2 is not text" in refused(chatml(), [*talked("red"), {"role": "assistant", "content": parts}])


def test_another_template_is_looked_at_anew() -> None:
    maker = chatml()
    prompting = maker.tokenizer.chat_template
    maker.tokenizer.chat_template = prompting.partition("{% if add_generation_prompt")[0]
    assert speeches(proved(maker, talked("a", "b"))) == ["<|im_start|>assistant\nb<|im_end|>"], "what a server asks for"
    maker.tokenizer.chat_template = prompting
    assert speeches(proved(maker, talked("a", "b"))) == ["b<|im_end|>"]


def test_a_row_that_is_longer_or_put_together_otherwise_is_not_of_the_shape() -> None:
    def write(messages: Sequence[Any], *, prompt: bool = False) -> str:
        return "".join(f"<{message['content']}>" for message in messages) + "<" * prompt

    marks = marked(talked("a", "b"))
    shape = Shape(marks, write=write, tail=Tail(last=">", always=">"), text=write(marks.turns), generated=())
    assert shape.fit("<a><b>", marks) == [0, -7, -14]
    for other in ("<a><b>>", "<a>(b>", "<a><b", "<c><b>", "(a><b>", "<a><b)"):
        assert shape.fit(other, marks) is None
    assert shape.span(1)[:4] == (11, 19, 20, 20)


def counted(maker: Encoder, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []
    write = maker.tokenizer.apply_chat_template
    monkeypatch.setattr(
        maker.tokenizer,
        "apply_chat_template",
        lambda turns, **options: calls.append(len(turns)) or write(turns, **options),
    )
    return calls


@pytest.mark.parametrize("name", FAMILIES)
def test_a_row_of_a_known_shape_is_rendered_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    maker = of(name)
    rows = [talked(*(f"{word} {number}" for word in "abcd")) for number in range(20)]
    proved(maker, rows[0])
    calls = counted(maker, monkeypatch)
    for row in rows[1:]:
        proved(maker, row)
    assert calls == [4] * 19


def test_rows_of_several_known_shapes_are_rendered_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, thinking = talked("a", "b"), [*talked("a"), {"role": "assistant", "content": "b", "reasoning_content": "c"}]
    marked_on = [{**turn, "id": 7, "time": "noon"} for turn in plain]
    other: Any = {"type": "function", "function": {**TOOL["function"], "name": "g"}}  # type: ignore[dict-item]
    kinds = [(plain, None), (thinking, None), (marked_on, None), (plain, (TOOL,)), (plain, (other,))]
    maker = of("qwen3")
    for messages, tools in kinds:
        proved(maker, messages, tools=tools)
    calls = counted(maker, monkeypatch)
    for number in range(5):
        for messages, tools in kinds:
            rows = [{**turn, "content": f"{turn['content']}{number}"} for turn in messages]
            proved(maker, [{**turn, "id": number} if "id" in turn else turn for turn in rows], tools=tools)
    assert calls == [2] * 25


def test_few_shapes_are_kept_and_none_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [talked(*"abcdefghijkl"[: 2 * rounds]) for rounds in (1, 2, 3, 1, 4, 5, 2, 1)]
    kept, forgetful = chatml(), chatml()
    expected = [proved(kept, row).labels for row in rows]
    monkeypatch.setattr(rendering, "KEPT", 1)
    assert [proved(forgetful, row).labels for row in rows] == expected
    assert len(forgetful._steady._shapes._kept) == 1


def test_what_changes_with_time_costs_only_time() -> None:
    maker = chatml(more="")
    maker.tokenizer.chat_template = "{{ bos_token }}\n" + maker.tokenizer.chat_template
    for day in ("<|day1|>", "<|day2|>", "<|endoftext|>"):
        maker.tokenizer.bos_token = day
        assert speeches(proved(maker, talked("a", "b", "c", "d"))) == ["b<|im_end|>", "d<|im_end|>"]


def test_what_others_say_may_change_how_a_template_writes() -> None:
    words = "{% if 'quiet' in messages[0].content and not " + ASSISTANT + " %}(hush){% else %}" + WORDS + "{% endif %}"
    row = proved(chatml(words), talked("be quiet", "b", "c", "d"))
    assert row.text.startswith("<|im_start|>user\n(hush)<|im_end|>")
    assert speeches(row) == ["b<|im_end|>", "d<|im_end|>"]
    picky = "{% if 'Zq7' in messages[0].content %}{{ raise_exception('no') }}{% endif %}" + WORDS
    assert speeches(proved(chatml(picky), talked("a", "b", "c", "d"))) == ["b<|im_end|>", "d<|im_end|>"]


def test_without_an_encoder_a_conversation_can_be_rendered_too() -> None:
    tokenizer, messages = tokens.of("chatml"), talked("a", "b")
    rendered = render(tokenizer, messages, [False, True])
    [span] = rendered.spans
    assert rendered.text[span.begin : span.said] == "b"
    assert rendered.text[span.begin : span.end] == "b<|im_end|>\n"
    assert rendered.text[: span.begin] == prompt_text(tokenizer, messages[:1])
    assert render(tokenizer, messages, [False, False]).spans == ()


# --- the originals, where TRL ships them


ORIGINALS = {
    "qwen2.5": "qwen2_5",
    "qwen3": "qwen3",
    "llama-3": "llama3",
    "llama-3.1": "llama3_1",
    "gemma-2": "gemma",
    "gemma-3": "gemma3",
    "phi-3": "phi3",
    "command-r": "cohere",
    "deepseek-r1": "deepseekv3",
}
FOLDER = files("trl") / "chat_templates"


@pytest.mark.parametrize("name", ORIGINALS)
@settings(max_examples=15)
@given(data=st.data())
def test_our_templates_render_as_the_originals_do(name: str, data: st.DataObject) -> None:
    file = FOLDER / f"{ORIGINALS[name]}.jinja"
    if not file.is_file():
        pytest.skip("this release of TRL has no such file")
    messages = data.draw(talk.conversations(name))
    tools = data.draw(st.none() | talk.offers)
    if FAMILIES[name].tools == "all":
        messages = data.draw(st.just(messages) | talk.tool_talk(name))
    special: Any = tokens.of(name).special_tokens_map
    for turns, prompt in ((messages, False), (messages[:-1], True)):
        [[ours], [theirs]] = [
            render_jinja_template([turns], tools=tools, chat_template=jinja, add_generation_prompt=prompt, **special)[0]
            for jinja in (FAMILIES[name].jinja, file.read_text(encoding="utf-8"))
        ]
        assert ours == theirs


def test_script_is_of_use() -> None:
    """The descriptions by hand place speeches where they say."""
    assert Script().read("ab").say(3, "cd", "e").read("f").speeches() == {3: (2, 5)}


MARKED = (
    "cohere cohere2 deepseek_r1_distill deepseekv3 gemma gemma3 glm4moe lfm2 lfm2_v2 llama3 muse_glimmer "
    "nemotron_3_nano nemotron_3_ultra phi3 phi3_5 qwen2_5 qwen3 qwen3_5_think qwen3_5_nothink qwen3_instruct_2507"
)
"""Templates to which the authors of TRL have added generation markers."""
A_TOKEN = re.compile(r"<\|?/?[A-Za-z][A-Za-z_ -]*\|?>|<｜[^｜]+｜>|\[gMASK\]|<\|[a-z_]+>|<[a-z_]+\|>")
TALKS = (
    (talked("red", "green"), None),
    (talked("red", "green", "blue", "round", system="be brief"), None),
    (talked("red", f"{THOUGHT}green", "blue", f"{THOUGHT}round"), None),
    ([*talked("red"), {"role": "assistant", "content": "green", "reasoning_content": "hm"}], None),
    (
        [
            *talked("red"),
            {"role": "assistant", "tool_calls": [CALL]},
            {"role": "tool", "content": "lit", "tool_call_id": "call00000", "name": "f"},
            {"role": "assistant", "content": "round"},
        ],
        (TOOL,),
    ),
)


@pytest.mark.parametrize("name", MARKED.split())
def test_what_is_found_without_markers_is_what_trl_has_marked(name: str) -> None:
    file = FOLDER / f"{name}_training.jinja"
    if not file.is_file():
        pytest.skip("this release of TRL has no such file")
    jinja = file.read_text(encoding="utf-8")
    bare = re.sub(
        r"(%-?)\s*(end)?generation\s*(-?%)",
        lambda tag: f"{tag[1]} {tag[2] or ''}if {'' if tag[2] else 1} {tag[3]}",
        jinja,
    )
    proofs = 0
    for messages, tools in TALKS:
        rows = [Example(messages=tuple(messages), tools=tools)]
        spans = []
        for template in (jinja, bare):
            tokenizer = tokens.make(template, {"<s>", "</s>", *A_TOKEN.findall(jinja)}, bos="<s>", eos="</s>")
            spans += Encoder(tokenizer, max_length=9999).tokenise(rows)
        with_markers, without = spans
        if isinstance(with_markers, MaskError):
            assert str(with_markers) == str(without)
        else:
            assert with_markers[0].text == without[0].text
            assert with_markers[0].labels == without[0].labels
            assert (with_markers[0].way == "generation markers") != (without[0].way == "generation markers")
            proofs += 1
    assert proofs >= 2

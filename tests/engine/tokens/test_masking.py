"""What is learned of a row, token by token, for the turns and tokens of well-known families."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from itertools import groupby
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, normalizers

from mlflow_ft.engine.tokens import places
from mlflow_ft.engine.tokens.masking import IGNORED, Encoder, Tokenised, encode, end_tokens, ends
from mlflow_ft.engine.tokens.places import Places
from mlflow_ft.engine.tokens.render import MaskError
from mlflow_ft.rows import Encoded, Example
from tests.engine.templates import FAMILIES, talk
from tests.engine.templates import tokenizers as tokens
from tests.engine.templates.chatml import CHATML_TOKENS
from tests.engine.templates.others import GLM4, GLM4_TOKENS

MUCH = 10_000
WITHOUT_TOOLS = [name for name, family in FAMILIES.items() if family.tools == "no"]


@cache
def encoder(name: str, kind: str = "") -> Encoder:
    """One for all examples, as a job has one for all rows: what it keeps from row to row must do no harm."""
    return Encoder(tokens.of(name, kind), max_length=MUCH)


def chat(*contents: str, system: str | None = None, **more: Any) -> Example:
    """Turns of user and assistant by turns."""
    turns = [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(contents)]
    return Example(messages=(*([{"role": "system", "content": system}] if system else []), *turns), **more)


def proved(maker: Encoder, row: Example) -> list[Tokenised]:
    [tokenised] = maker.tokenise([row])
    assert not isinstance(tokenised, MaskError), f"{tokenised}: {tokenised.text}"
    return tokenised


def speeches(row: Tokenised) -> list[str]:
    """The text of every unbroken range of learned tokens."""
    ranges = groupby(zip(row.pieces, row.labels, strict=True), key=lambda pair: pair[1] != IGNORED)
    return ["".join(text for text, _ in pairs) for is_learned, pairs in ranges if is_learned]


def spoken(messages: Iterable[Any]) -> list[int]:
    return [turn for turn, message in enumerate(messages) if message["role"] == "assistant"]


def check(name: str, maker: Encoder, row: Tokenised, messages: Sequence[Any], learned: Iterable[int]) -> None:
    """Compare text and labels with what is known by hand."""
    family = FAMILIES[name]
    script = family.write(messages, None)
    assert row.text == script.text
    assert "".join(row.pieces) == script.text
    assert row.labels == tokens.labels(row, script, learned)
    assert row.ends == tuple(ends(row.encoded))
    if family.bos and script.text.startswith(family.bos):
        begin = maker.tokenizer.bos_token_id
        assert row.ids[0] == begin
        assert row.ids[1] != begin


# --- conversations


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=30)
@given(data=st.data())
def test_learned_is_what_the_assistant_says_and_its_end(name: str, data: st.DataObject) -> None:
    messages = data.draw(talk.conversations(name))
    kind = data.draw(st.sampled_from(("", *tokens.KINDS)))
    said = spoken(messages)
    learned = said if data.draw(st.booleans()) else data.draw(st.lists(st.sampled_from(said), unique=True))
    flags = None if learned == said else tuple(turn in learned for turn in range(len(messages)))

    maker = encoder(name, kind)
    [row] = proved(maker, Example(messages=tuple(messages), learned=flags))

    check(name, maker, row, messages, learned)


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=10)
@given(data=st.data())
def test_a_few_places_give_what_all_of_them_give(name: str, data: st.DataObject) -> None:
    row = Example(messages=tuple(data.draw(talk.conversations(name))))
    maker = encoder(name, data.draw(st.sampled_from(("", *tokens.KINDS))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(places, "keeps_order", lambda *_: False)
        [whole] = proved(maker, row)
    text = Example(text="red")
    [closed] = proved(maker, text)
    assert maker.tokenise([row, text], offsets=False) == [[replace(whole, offsets=[])], [replace(closed, offsets=[])]]
    assert len(whole.offsets) == len(whole.ids)


@settings(max_examples=200)
@given(text=st.text(), kind=st.sampled_from(tokens.KINDS), form=st.sampled_from([None, normalizers.NFC()]))
def test_tokens_are_in_order_where_only_a_few_places_are_taken(text: str, kind: str, form: Any) -> None:
    tokenizer = Tokenizer.from_str(tokens.of("chatml", kind).backend_tokenizer.to_str())
    tokenizer.normalizer = form or tokenizer.normalizer
    assert not places.keeps_order(normalizers.Lowercase(), text)
    if places.keeps_order(tokenizer.normalizer, text):
        stops = [end for _, end in tokenizer.encode(f"a{text}<|im_end|>{text}", add_special_tokens=False).offsets]
        assert stops == sorted(stops)


def test_places_are_taken_on_request() -> None:
    encoding = tokens.of("chatml")("red green", add_special_tokens=False).encodings[0]
    offsets = places.Offsets(encoding)
    assert list(offsets) == encoding.offsets == offsets[:]
    assert len(offsets) == len(encoding) > 1
    with pytest.raises(IndexError):
        offsets[len(offsets)]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_way_is_told(name: str) -> None:
    assert proved(encoder(name), chat("red", "green"))[0].way == FAMILIES[name].way


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=5)
@given(data=st.data())
def test_a_long_row_is_cut_at_its_end(name: str, data: st.DataObject) -> None:
    row = Example(messages=tuple(data.draw(talk.conversations(name))))
    [whole] = proved(encoder(name), row)
    length = data.draw(st.integers(1, len(whole.ids) + 1))
    [cut] = proved(Encoder(tokens.of(name), max_length=length), row)
    assert (cut.ids, cut.labels, cut.offsets) == (whole.ids[:length], whole.labels[:length], whole.offsets[:length])
    assert cut.encoded.truncated == (length < len(whole.ids))
    assert cut.length == whole.length == len(whole.ids)
    after = (*whole.labels[1:], IGNORED)
    last = [place for place, label in enumerate(whole.labels) if label != IGNORED == after[place]]
    assert cut.ends == tuple(whole.ids[place] for place in last if place < length)
    assert whole.text.startswith("".join(cut.pieces))


def test_a_row_cut_in_mid_speech_names_no_end_token() -> None:
    tokenizer = tokens.of("chatml")
    row = chat("red", "green blue round")
    [whole] = encode(tokenizer, [row], max_length=MUCH)
    assert isinstance(whole, Encoded)
    first = next(place for place, label in enumerate(whole.labels) if label != IGNORED)
    [cut] = encode(tokenizer, [row], max_length=first + 1)
    assert isinstance(cut, Encoded)
    assert cut.supervised == 1
    assert end_tokens([cut]) == ()
    assert end_tokens([cut, whole]) == (tokenizer.eos_token_id,)


def test_the_most_frequent_end_token_comes_first() -> None:
    rows = [
        Encoded(input_ids=(5, end), labels=(5, end)) for end, count in ((7, 1), (9, 3), (8, 2)) for _ in range(count)
    ]
    assert end_tokens(rows) == (9, 8, 7)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_end_of_turn_is_found_and_learned(name: str) -> None:
    tokenizer = tokens.of(name)
    rows = [chat("red", "green", "blue", "round"), chat("old", "apple")]
    encoded = [result for result in encode(tokenizer, rows, max_length=MUCH) if isinstance(result, Encoded)]
    (end,) = end_tokens(encoded)
    script = FAMILIES[name].write(rows[1].messages, None)
    assert script.text[slice(*script.speeches()[1])].endswith(str(tokenizer.added_tokens_decoder[end]))
    assert [row.labels.count(end) for row in encoded] == [2, 1]


def test_padding_with_the_end_token_changes_no_label() -> None:
    rows = [chat("red", "green", "blue", "round")]
    plain, padded = (encoder(name).encode(rows) for name in ("chatml", "chatml pad is eos"))
    assert plain == padded
    assert encoder("chatml pad is eos").tokenizer.pad_token_id in end_tokens(padded)  # type: ignore[arg-type]  # a MaskError fails here


# --- other kinds of rows


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=8)
@given(data=st.data())
def test_of_a_preference_both_answers_are_learned_and_no_prompt(name: str, data: st.DataObject) -> None:
    *prompt, chosen = data.draw(talk.conversations(name))
    rejected = {"role": "assistant", "content": data.draw(talk.text)}
    row = Example(messages=tuple(prompt), chosen=(chosen,), rejected=(rejected,))
    first, second = proved(encoder(name), row)
    for side, answer in ((first, chosen), (second, rejected)):
        check(name, encoder(name), side, [*prompt, answer], [len(prompt)])
    [encoded] = encoder(name).encode([row])
    assert isinstance(encoded, Encoded)
    assert encoded.rejected is not None
    assert (list(encoded.labels), list(encoded.rejected.labels)) == (first.labels, second.labels)


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=5)
@given(data=st.data())
def test_a_prompt_ends_where_the_assistant_would_speak(name: str, data: st.DataObject) -> None:
    messages = data.draw(talk.conversations(name))
    [row] = proved(encoder(name), Example(messages=tuple(messages[:-1])))
    script = FAMILIES[name].write(messages, None)
    begin, _ = script.speeches()[len(messages) - 1]
    assert row.text == script.text[:begin] + ("<think>\n" if name == "deepseek-r1" else "")
    assert set(row.labels) == {IGNORED}
    assert row.way == "prompt"


@pytest.mark.parametrize("name", FAMILIES)
def test_of_a_judged_answer_the_last_turn_is_learned(name: str) -> None:
    messages = chat("red", "green", "blue", "round").messages
    for label in (True, False):
        row = Example(messages=messages, learned=(False, False, False, True), label=label)
        [tokenised] = proved(encoder(name), row)
        check(name, encoder(name), tokenised, messages, [3])


@pytest.mark.parametrize("kind", tokens.KINDS)
@pytest.mark.parametrize("name", ["chatml", "llama-3", "phi-4"])
@settings(max_examples=15)
@given(said=talk.text, given=st.sampled_from(["", "begin", "end", "begin and end"]))
def test_a_text_is_learned_whole_between_one_beginning_and_one_end(name: str, kind: str, said: str, given: str) -> None:
    maker = encoder(name, kind)
    bos, eos = maker.tokenizer.bos_token or "", str(maker.tokenizer.eos_token)
    said = said.strip().replace(eos, "").replace(bos or eos, "") or "x"
    [row] = proved(maker, Example(text=bos * ("begin" in given) + said + eos * ("end" in given)))
    assert "".join(row.pieces) == row.text == f"{bos}{said}{eos}"
    assert row.ids[-1] == maker.tokenizer.eos_token_id != row.ids[-2]
    assert row.labels == [IGNORED] * bool(bos) + row.ids[bool(bos) :]
    if not given:  # how a server renders the same words, as a prompt to continue
        assert row.ids[:-1] == maker.tokenizer(said)["input_ids"]
    [again] = proved(maker, Example(text=row.text))
    assert (again.text, again.ids[0], again.ids[-1]) == (row.text, row.ids[0], row.ids[-1])


def test_a_text_has_no_beginning_where_the_tokenizer_writes_none() -> None:
    tokenizer = tokens.make(FAMILIES["chatml"].jinja, CHATML_TOKENS, eos="<|im_end|>")
    tokenizer.bos_token = "<|endoftext|>"  # Qwen's tokenizers name one, and never write it
    [row] = proved(Encoder(tokenizer, max_length=MUCH), Example(text="red green"))
    assert row.text == "red green<|im_end|>"
    assert row.labels == row.ids


# --- tokens that begin before the assistant speaks


def test_a_space_of_the_templates_before_the_first_word_is_learned_with_it() -> None:
    jinja = FAMILIES["vicuna"].jinja.replace("' ASSISTANT:' }}", "' ASSISTANT: ' }}")
    tokenizer = tokens.make(jinja, ("<s>", "</s>"), bos="<s>", eos="</s>")
    [row] = proved(Encoder(tokenizer, max_length=MUCH), chat("red", "green"))
    assert speeches(row) == [" green</s>"]


def test_a_token_with_letters_of_the_templates_and_of_the_assistants_is_refused() -> None:
    jinja = "{% for m in messages %}{{ m.role }}:{{ m.content }}</s>{% endfor %}"
    prompt = "{% if add_generation_prompt %}assistant:{% endif %}"
    tokenizer = tokens.make(jinja + prompt, ("</s>",), eos="</s>")
    assert ":(" in tokenizer.get_vocab()
    row, odd = chat("red", "green"), chat("red", "(green)")
    good, bad = Encoder(tokenizer, max_length=MUCH).encode([row, odd])
    assert isinstance(good, Encoded)
    assert isinstance(bad, MaskError)
    assert "both template text and the assistant's text" in str(bad)
    assert "':('" in str(bad)


def test_a_token_that_takes_in_the_white_space_behind_it_begins_where_it_is_written() -> None:
    located = Places("ab<e>  <e>", [(0, 2), (2, 7), (7, 10)])
    assert list(located.within(5, 10)) == [(2, "<e>")]
    assert list(located.within(2, 5)) == [(1, "<e>")]


# --- rows that are refused


def test_a_bad_row_does_not_shift_the_others() -> None:
    bad = [
        Example(messages=({"role": "assistant", "content": "x"},)),
        chat("a", "half a sign: \ud83d"),
        Example(text="\udc00"),
    ]
    results = encoder("llama-2").encode([chat("a", "red"), *bad, chat("b", "green")])
    assert [type(result) for result in results] == [Encoded, *[MaskError] * 3, Encoded]
    assert results[4] == encoder("llama-2").encode([chat("b", "green")])[0]


NO_END = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.mark.parametrize("jinja", [NO_END, NO_END.replace("\n", "{% if not loop.last %}</s>{% endif %}")])
def test_a_turn_without_an_end_of_its_own_is_refused(jinja: str) -> None:
    tokenizer = tokens.make(jinja, ("<s>", "</s>"), eos="</s>")
    for row in (chat("red", "green"), chat("red", "green", "blue", "round")):
        [result] = encode(tokenizer, [row], max_length=MUCH)
        assert "end" in str(result)
        assert isinstance(result, MaskError)


def test_an_unknown_sign_is_no_end() -> None:
    jinja = "{% for m in messages %}{{ m.role ~ ': ' ~ m.content ~ '☃' }}{% endfor %}"
    tokenizer = tokens.make(jinja, ("</s>",), eos="</s>")
    tokenizer.backend_tokenizer.pre_tokenizer = None  # type: ignore[assignment]  # then no sign beyond ASCII is known
    assert tokenizer("☃", add_special_tokens=False)["input_ids"] == [tokenizer.unk_token_id]
    assert tokenizer.unk_token_id in tokenizer.added_tokens_decoder
    [result] = encode(tokenizer, [chat("red", "green")], max_length=MUCH)
    assert "no end-of-turn token" in str(result)


def test_a_doubled_beginning_is_refused() -> None:
    family = FAMILIES["llama-3"]
    tokenizer = tokens.make("{{ bos_token }}" + family.jinja, family.tokens, eos=family.eos, bos=family.bos)
    [result] = encode(tokenizer, [chat("red", "green")], max_length=MUCH)
    assert "twice" in str(result)


def test_glm_ends_no_turn_but_by_the_next_role_and_is_refused() -> None:
    tokenizer = tokens.make(GLM4, GLM4_TOKENS, eos="<|endoftext|>")
    for row in (chat("red", "green"), chat("red", "green", "blue", "round")):
        [result] = encode(tokenizer, [row], max_length=MUCH)
        assert "writes no end-of-turn token" in str(result)

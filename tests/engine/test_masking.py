"""What is learned of a conversation, for the shapes of turns that the well-known model families have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from mlflow_ft.engine.masking import IGNORED, encode, end_tokens
from mlflow_ft.engine.render import MaskError, prompt_text
from mlflow_ft.job import Encoded
from mlflow_ft.rows import Example
from mlflow_ft.testing import CHATML, WORDS


@dataclass(frozen=True, kw_only=True)
class Family:
    """A chat template, and by hand what it writes around a turn: (not learned, learned, not learned)."""

    jinja: str
    special: tuple[str, ...]
    eos: str
    turn: Callable[[str, str], tuple[str, str, str]]
    bos: str | None = None
    final: str = ""
    """What stands behind the last turn."""
    system: bool = True
    sentencepiece: bool = False


def role_marks(opening: str, closing: str, end: str, after: str = "\n", **names: str) -> Any:
    """Turns like `<|im_start|>ROLE\\n ... <|im_end|>\\n`."""

    def turn(role: str, content: str) -> tuple[str, str, str]:
        head = opening + names.get(role, role) + closing
        return (head, content + end, after) if role == "assistant" else (head + content + end + after, "", "")

    return turn


def instructions(before: str, between: str, after: str) -> Any:
    """Turns like `[INST] ... [/INST] ... </s>`."""

    def turn(role: str, content: str) -> tuple[str, str, str]:
        content = content.strip()
        return ("", between + content + after, "") if role == "assistant" else (f"{before}{content} [/INST]", "", "")

    return turn


LLAMA2 = (
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + message['content'].strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "[INST] {{ message['content'].strip() }} [/INST]{% else %} {{ message['content'].strip() }}{{ eos_token }}"
    "{% endif %}{% endfor %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "<start_of_turn>{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n"
    "{{ message['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
PHI3 = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
ZEPHYR = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] + eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def trimmed(turn: Any) -> Any:
    return lambda role, content: turn(role, content.strip())


LLAMA3_TURN = trimmed(role_marks("<|start_header_id|>", "<|end_header_id|>\n\n", "<|eot_id|>", after=""))
GEMMA_TURN = trimmed(role_marks("<start_of_turn>", "\n", "<end_of_turn>", assistant="model"))
INST = ("<s>", "</s>", "[INST]", "[/INST]")
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")

FAMILIES = {
    "chatml": Family(
        jinja=CHATML,
        special=("<|im_start|>", "<|im_end|>"),
        eos="<|im_end|>",
        turn=role_marks("<|im_start|>", "\n", "<|im_end|>"),
    ),
    "llama-2": Family(
        jinja=LLAMA2,
        special=INST[:2],
        bos="<s>",
        eos="</s>",
        turn=instructions("<s>[INST] ", " ", " </s>"),
        system=False,
    ),
    "mistral": Family(
        jinja=MISTRAL, special=INST, bos="<s>", eos="</s>", turn=instructions("[INST] ", " ", "</s>"), system=False
    ),
    "mistral-sentencepiece": Family(
        jinja=MISTRAL,
        special=INST,
        bos="<s>",
        eos="</s>",
        turn=instructions("[INST] ", " ", "</s>"),
        system=False,
        sentencepiece=True,
    ),
    "llama-3": Family(
        jinja=LLAMA3,
        special=("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|end_of_text|>"),
        bos="<|begin_of_text|>",
        eos="<|end_of_text|>",
        turn=LLAMA3_TURN,
    ),
    "gemma": Family(
        jinja=GEMMA,
        special=("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        bos="<bos>",
        eos="<eos>",
        turn=GEMMA_TURN,
        system=False,
    ),
    "phi-3": Family(
        jinja=PHI3,
        special=("<|endoftext|>", "<|end|>", *ROLES),
        eos="<|endoftext|>",
        turn=role_marks("<|", "|>\n", "<|end|>"),
        final="<|endoftext|>",
    ),
    "zephyr": Family(
        jinja=ZEPHYR, special=("<s>", "</s>"), bos="<s>", eos="</s>", turn=role_marks("<|", "|>\n", "</s>")
    ),
}


def make_tokenizer(
    jinja: str, special: Sequence[str], *, eos: str, bos: str | None = None, sentencepiece: bool = False
) -> PreTrainedTokenizerFast:
    """A tokenizer like those of GPT-2 or, with `sentencepiece`, like Llama-2's; it puts `bos` in front where it may."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if sentencepiece:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
        alphabet = [chr(code) for code in range(32, 127)]
    every = list(dict.fromkeys(["<unk>", "<pad>", *special]))
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=every, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([" ".join(WORDS), "user assistant system model INST"] * 9, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", eos_token=eos, bos_token=bos
    )
    fast.add_special_tokens({"additional_special_tokens": [one for one in special if one not in (bos, eos)]})
    fast.chat_template = jinja
    return fast


@cache
def tokenizer_of(name: str) -> PreTrainedTokenizerFast:
    family = FAMILIES[name]
    return make_tokenizer(
        family.jinja, family.special, eos=family.eos, bos=family.bos, sentencepiece=family.sentencepiece
    )


def chat(*contents: str, system: str | None = None) -> Example:
    """Turns of user and assistant by turns."""
    turns = [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(contents)]
    return Example(messages=(*([{"role": "system", "content": system}] if system else []), *turns))


def proved(tokenizer: PreTrainedTokenizerFast, row: Example, *, max_length: int = 10_000) -> Encoded:
    (found,) = encode(tokenizer, [row], max_length=max_length)
    assert isinstance(found, Encoded), found
    return found


def learned(tokenizer: PreTrainedTokenizerFast, row: Encoded) -> list[str]:
    """The text of every unbroken range of learned tokens."""
    ranges = groupby(zip(row.input_ids, row.labels, strict=True), key=lambda pair: pair[1] != IGNORED)
    found = [tokenizer.decode([token for token, _ in pairs]) for is_learned, pairs in ranges if is_learned]
    return [text.removeprefix(" ") for text in found]


def expected(family: Family, row: Example) -> tuple[str, list[str]]:
    """By hand: the whole text, and of every assistant's turn what is to be learned."""
    start = family.bos if family.bos and family.jinja.startswith("{{ bos_token") else ""
    parts = [family.turn(message["role"], message["content"]) for message in row.messages]
    whole = (start or "") + "".join(map("".join, parts)) + family.final
    return whole, [speech.removeprefix(" ") for _, speech, _ in parts if speech]


def text_of(name: str) -> st.SearchStrategy[str]:
    """What people write; a sentencepiece tokenizer without bytes knows ASCII only, and drops spaces when it decodes."""
    if FAMILIES[name].sentencepiece:
        return st.lists(st.text("abcxyz.,:{}'\"", min_size=1), min_size=1, max_size=6).map(" ".join)
    letters = st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"], exclude_characters="<>")
    # A token that begins before the assistant speaks is not the assistant's: no white space in front.
    return st.text(st.one_of(letters, st.sampled_from("\n \t")), min_size=1).map(str.lstrip).filter(str.strip)


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_learned_is_what_the_assistant_says_and_its_end(name: str, data: st.DataObject) -> None:
    family, tokenizer, text = FAMILIES[name], tokenizer_of(name), text_of(name)
    turns = data.draw(st.lists(st.tuples(text, text), min_size=1, max_size=3), label="turns")
    system = data.draw(st.none() | text, label="system") if family.system else None
    row = chat(*(part for turn in turns for part in turn), system=system)
    whole, speeches = expected(family, row)

    found = proved(tokenizer, row)

    assert learned(tokenizer, found) == speeches
    assert all(label in (token, IGNORED) for token, label in zip(found.input_ids, found.labels, strict=True))
    if not family.sentencepiece:
        assert tokenizer.decode(found.input_ids) == whole
    assert not found.truncated
    assert found.supervised == sum(label != IGNORED for label in found.labels)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_end_of_turn_is_found_and_learned(name: str) -> None:
    tokenizer = tokenizer_of(name)
    rows = [proved(tokenizer, chat("red", "green", "blue", "round")), proved(tokenizer, chat("old", "apple"))]
    _, (speech, *_) = expected(FAMILIES[name], chat("red", "green"))
    (end,) = end_tokens(rows)
    assert speech.endswith(tokenizer.decode([end]))
    assert [row.labels.count(end) for row in rows] == [2, 1]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_prompt_is_all_that_stands_before_the_answer(name: str) -> None:
    tokenizer, row = tokenizer_of(name), chat("red", "green", "blue", "round")
    whole, _ = expected(FAMILIES[name], row)
    prompt = prompt_text(tokenizer, row.messages[:-1])
    assert whole.startswith(prompt)
    assert whole[len(prompt) :].strip().startswith("round")


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.bos])
def test_one_beginning_of_sequence_though_tokenizer_and_template_write_one(name: str) -> None:
    tokenizer = tokenizer_of(name)
    begin = tokenizer.bos_token_id
    assert tokenizer("red")["input_ids"][0] == begin
    found = proved(tokenizer, chat("red", "green")).input_ids
    assert found.count(begin) == (0 if name == "zephyr" else 1)


@settings(max_examples=60, deadline=None)
@given(length=st.integers(1, 60))
@example(length=1)
def test_a_long_row_is_cut_at_its_end(length: int) -> None:
    tokenizer = tokenizer_of("chatml")
    whole = proved(tokenizer, chat("red green", "blue", "round flat", "heavy"))
    found = proved(tokenizer, chat("red green", "blue", "round flat", "heavy"), max_length=length)
    assert (found.input_ids, found.labels) == (whole.input_ids[:length], whole.labels[:length])
    assert found.truncated == (length < len(whole.input_ids))


def test_a_row_cut_in_mid_speech_names_no_end_token() -> None:
    tokenizer = tokenizer_of("chatml")
    whole = proved(tokenizer, chat("red", "green blue round"))
    first = next(place for place, label in enumerate(whole.labels) if label != IGNORED)
    cut = proved(tokenizer, chat("red", "green blue round"), max_length=first + 1)
    assert cut.supervised == 1
    assert end_tokens([cut]) == ()
    assert end_tokens([cut, whole]) == (tokenizer.eos_token_id,)


def test_the_most_frequent_end_token_comes_first() -> None:
    rows = [
        Encoded(input_ids=(5, end), labels=(5, end)) for end, count in ((7, 1), (9, 3), (8, 2)) for _ in range(count)
    ]
    assert end_tokens(rows) == (9, 8, 7)


def refusal(jinja: str, row: Example, **options: Any) -> str:
    tokenizer = make_tokenizer(jinja, ("<s>", "</s>", "<|im_start|>", "<|im_end|>"), eos="</s>", **options)
    (found,) = encode(tokenizer, [row], max_length=99)
    assert isinstance(found, MaskError), learned(tokenizer, found)
    return str(found)


NO_END = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
SHOUTING = CHATML.replace("message['content']", "message['content'] | upper")
THINKING = CHATML.replace(
    "{{ message['content'] }}", "{{ message['content'] if loop.last else message['content'].split('</think>')[-1] }}"
)


@pytest.mark.parametrize(
    ("jinja", "row", "words"),
    [
        pytest.param(NO_END, chat("red", "green"), "no end-of-turn token", id="no end"),
        pytest.param(NO_END, chat("red", "green ☃"), "no end-of-turn token", id="an unknown sign is no end"),
        pytest.param(SHOUTING, chat("a", "b"), "as it is", id="alters"),
        pytest.param("{{ bos_token }}" + LLAMA2, chat("a", "b"), "twice", id="two beginnings"),
        pytest.param(LLAMA2, Example(messages=chat("a", "b").messages[1:]), "roles must alternate", id="raises"),
        pytest.param("{{ nothing.there }}", chat("a", "b"), "refuses", id="undefined"),
    ],
)
def test_a_mask_that_cannot_be_proved_is_refused(jinja: str, row: Example, words: str) -> None:
    unknown = "☃" in str(row)
    assert words in refusal(jinja, row, bos="<s>", sentencepiece=unknown)


def test_thinking_is_learned_where_it_is_kept() -> None:
    tokenizer = make_tokenizer(THINKING, ("<|im_start|>", "<|im_end|>"), eos="<|im_end|>")
    found = proved(tokenizer, chat("a", "<think>hm</think>b"))
    assert learned(tokenizer, found) == ["<think>hm</think>b<|im_end|>"]


def test_a_bad_row_does_not_shift_the_others() -> None:
    tokenizer = tokenizer_of("llama-2")
    bad = Example(messages=({"role": "assistant", "content": "x"},))
    found = encode(tokenizer, [chat("a", "red"), bad, chat("b", "green")], max_length=99)
    assert [type(one) for one in found] == [Encoded, MaskError, Encoded]
    assert learned(tokenizer, found[2]) == ["green </s>"]


def test_tool_calls_are_learned_and_the_tools_result_is_not() -> None:
    jinja = CHATML.replace("{{ message['content'] }}", "{{ message['content'] or message['tool_calls'] | tojson }}")
    tokenizer = make_tokenizer(jinja, ("<|im_start|>", "<|im_end|>"), eos="<|im_end|>")
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "lamp"}]}
    result = {"role": "tool", "content": "lit"}
    row = Example(messages=(*chat("light").messages, call, result, {"role": "assistant", "content": "done"}))
    assert learned(tokenizer, proved(tokenizer, row)) == ['[{"name": "lamp"}]<|im_end|>', "done<|im_end|>"]

"""Text made comparable."""

from __future__ import annotations

import string
import unicodedata

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mlflow_ft import wording
from mlflow_ft.builtin.checks import words as text

ANY_TEXT = st.text(st.characters(exclude_categories=[]))
WORDS = st.lists(st.text(string.ascii_lowercase, min_size=1, max_size=6), max_size=30)


@given(ANY_TEXT)
@example("ᾷͅ ŉ İ ΐ")  # folds into signs that compose anew
@example("a\u00adb\u200dc e\u00ad\u0301")
def test_normalising_twice_is_normalising_once(value: str) -> None:
    once = text.normalise(value)
    assert text.normalise(once) == once
    assert once == " ".join(once.split())


@given(st.text(string.printable))
def test_the_fast_way_for_ascii_is_the_same(value: str) -> None:
    assert text.normalise(value) == wording._plain(value)


@pytest.mark.parametrize(
    ("first", "other"),
    [
        ("Hello, World!", "hello world"),
        ("don’t — “stop”", 'DON\'T - "stop"'),
        ("ﬁne Straße ｆｕｌｌ", "fine STRASSE full"),
        (unicodedata.normalize("NFD", "Café Zoë"), "café zoë"),
        ("co\u00adoperate", "cooperate"),
        ("cafe\u00ad\u0301", "café"),
        ("a\t\n  b", "a b"),
    ],
)
def test_what_differs_in_form_only_is_the_same(first: str, other: str) -> None:
    assert text.normalise(first) == text.normalise(other)


@pytest.mark.parametrize(("first", "other"), [("हिन्दी", "हन्द"), ("naïve", "naive"), ("3.5", "35"), ("ab", "a b")])
def test_what_differs_in_letters_is_not(first: str, other: str) -> None:
    assert text.normalise(first) != text.normalise(other)


def test_words_where_there_are_no_spaces() -> None:
    assert text.words("Hello, big-world!") == ["hello", "big", "world"]
    assert text.words("我喜欢 Python 3。") == ["我", "喜", "欢", "python", "3"]
    assert text.words("ひらカナ") == ["ひ", "ら", "カ", "ナ"]
    assert text.words("한국어 문장") == ["한국어", "문장"]
    assert text.words("  …  ") == []


def test_operators_make_the_difference_that_words_do_not() -> None:
    assert text.normalise("What is 2 + 3?") == text.normalise("What is 2 * 3?")
    assert text.operators("What is 2 + 3?") != text.operators("What is 2 * 3?")
    assert text.operators("x-1") == text.operators("“x”-1") == "-"
    assert text.operators("a well-known state-of-the-art “method”") == ""
    assert text.operators("2 × 3 ≤ 7") == "×≤"


@given(WORDS, st.integers(1, 9))
def test_one_hash_for_every_run_of_words(words: list[str], size: int) -> None:
    hashes = text.ngrams(words, size)
    runs = [tuple(words[start : start + size]) for start in range(max(0, len(words) - size + 1))]
    assert hashes.dtype == np.uint64
    assert len(hashes) == len(runs)
    assert len(set(zip(runs, hashes.tolist(), strict=True))) == len(set(runs)) == len(set(hashes.tolist()))


def test_hashes_are_the_same_on_every_machine() -> None:
    assert text.fingerprint("mlflow") == 0x772A400DAEBE67FF
    assert text.ngrams(["a", "b", "c"], 2).tolist() == [6355122750691602634, 17499410341094839622]


def test_the_hashes_of_words_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "_KEPT_WORDS", 10)
    hashes = text._WordHashes()
    values = [hashes[f"word{number}"] for number in range(100)]
    assert len(hashes) <= 10
    assert values == [text.fingerprint(f"word{number}") for number in range(100)]


@given(ANY_TEXT, st.integers(2, 50))
def test_an_excerpt_is_short_on_one_line_and_can_be_written(value: str, longest: int) -> None:
    shown = text.excerpt(value, longest)
    assert len(shown) <= longest
    assert "\n" not in shown
    shown.encode()


def test_an_excerpt_tells_that_it_was_cut() -> None:
    assert text.excerpt("a  b\nc") == "a b c"
    assert text.excerpt("abcdef", 4) == "abc…"


@given(st.text(string.ascii_letters + string.digits, min_size=1, max_size=80))
def test_a_mask_shows_a_third_at_most(secret: str) -> None:
    shown = text.mask(secret).replace("…", "", 1)
    assert len(shown) <= min(6, len(secret) / 3)
    assert secret not in text.mask(secret)
    start, _, end = text.mask(secret).partition("…")
    assert secret.startswith(start)
    assert secret.endswith(end)

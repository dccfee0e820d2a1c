"""The words of texts, and keys by which texts that differ only in case, punctuation or white space are the same."""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from typing import Any

_PROMPT_WORDS = 8
_PROMPT_CHARACTERS = 16
"""A prompt with fewer may occur twice by chance."""
_ASCII = "".join(chr(code).lower() if chr(code).isalnum() else " " for code in range(128))
_TYPOGRAPHIC = (("’", "'"), ("‘", "'"), ("“", '"'), ("”", '"'), ("–", "-"), ("—", "-"))
"""The commonest non-ASCII characters in English; without them most texts take the fast path."""
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff]")
_HYPHEN = re.compile(r"-(?=[^\W\d_])(?<=[^\W\d_]-)")
_OPERATORS = "+-*/^=<>%&|~@#$×÷±−≠≤≥∑√∂∫∞¬∧∨∈∉⊂∪∩←→↔⇒⇔"
_OPERATOR = re.compile(f"[{re.escape(_OPERATORS)}]+")
_NO_OPERATOR = bytes(code for code in range(128) if chr(code) not in _OPERATORS)


def normalise(text: str) -> str:
    """The letters, marks and digits of a text in one form (NFKC, case folded); anything else is one space.

    Two texts that differ in case, punctuation, width or white space only come out the same.
    """
    for character, plain in _TYPOGRAPHIC:
        text = text.replace(character, plain)
    if text.isascii():
        return " ".join(text.translate(_ASCII).split())
    return _plain(text)


def _plain(text: str) -> str:
    text = str(_patterns()["others"].sub(" ", _INVISIBLE.sub("", _folded(text)))).strip()
    again = _folded(text)  # a removed character may have kept composable ones apart
    return text if again == text else _plain(again)


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


@cache
def _patterns() -> dict[str, Any]:
    import regex

    unspaced = "".join(
        rf"\p{{Script={script}}}" for script in ("Han", "Hiragana", "Katakana", "Thai", "Lao", "Khmer", "Myanmar")
    )
    return {
        "others": regex.compile(r"[^\p{L}\p{M}\p{N}]+"),
        "unspaced": regex.compile(f"[{unspaced}]"),
        "words": regex.compile(rf"[{unspaced}]\p{{M}}*|[^\s{unspaced}]+"),
    }


def words(text: str) -> list[str]:
    """The normalised words of a text; in scripts without spaces (Chinese, Thai ...) each character is a word."""
    return _split(normalise(text))


def _split(normalised: str) -> list[str]:
    if normalised.isascii() or not _patterns()["unspaced"].search(normalised):
        return normalised.split()
    return list(_patterns()["words"].findall(normalised))


def operators(text: str) -> str:
    """The operators of a text, which tell 2 + 3 from 2 * 3; without hyphens in words."""
    text = _HYPHEN.sub("", text)
    if text.isascii():
        return text.encode().translate(None, _NO_OPERATOR).decode()
    return "".join(_OPERATOR.findall(text))


def fingerprint(text: str) -> int:
    """A 64-bit hash that is the same on every machine and in every process."""
    from xxhash import xxh3_64_intdigest

    return xxh3_64_intdigest(text.encode("utf-8", "surrogatepass"))


def text_key(text: str) -> int | None:
    """The key of a text, which tells its operators apart; None where it has no words."""
    normalised = normalise(text)
    return _key(normalised, text) if normalised else None


def prompt_key(prompt: str) -> int | None:
    """The key of a prompt; None where it is so short that others may be the same by chance."""
    normalised = normalise(prompt)
    is_long = len(normalised) >= _PROMPT_CHARACTERS and len(_split(normalised)) >= _PROMPT_WORDS
    return _key(normalised, prompt) if is_long else None


def _key(normalised: str, text: str) -> int:
    return fingerprint(f"{normalised} {operators(text)}")

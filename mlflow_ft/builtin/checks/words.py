"""Shared by the data checks: normalised text, its words, hashes of runs of words, and excerpts to show."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Hashes = npt.NDArray[np.uint64]

_ASCII = "".join(chr(code).lower() if chr(code).isalnum() else " " for code in range(128))
_TYPOGRAPHIC = (("’", "'"), ("‘", "'"), ("“", '"'), ("”", '"'), ("–", "-"), ("—", "-"))
"""The commonest non-ASCII characters in English; without them most texts take the fast path."""
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff]")
_HYPHEN = re.compile(r"-(?=[^\W\d_])(?<=[^\W\d_]-)")
_OPERATORS = "+-*/^=<>%&|~@#$×÷±−≠≤≥∑√∂∫∞¬∧∨∈∉⊂∪∩←→↔⇒⇔"
_OPERATOR = re.compile(f"[{re.escape(_OPERATORS)}]+")
_NO_OPERATOR = bytes(code for code in range(128) if chr(code) not in _OPERATORS)
_KEPT_WORDS = 200_000
_MULTIPLIER = 0x9E3779B97F4A7C15


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
    text = normalise(text)
    if text.isascii() or not _patterns()["unspaced"].search(text):
        return text.split()
    return list(_patterns()["words"].findall(text))


def operators(text: str) -> str:
    """The operators of a text, which tell 2 + 3 from 2 * 3; without hyphens in words."""
    text = _HYPHEN.sub("", text)
    if text.isascii():
        return text.encode().translate(None, _NO_OPERATOR).decode()
    return "".join(_OPERATOR.findall(text))


class _WordHashes(dict[str, int]):
    """Hash by word, made once; forgotten when there are too many, so that memory stays bounded."""

    def __missing__(self, word: str) -> int:
        if len(self) >= _KEPT_WORDS:
            self.clear()
        value = self[word] = fingerprint(word)
        return value


_word_hashes = _WordHashes()


def fingerprint(text: str) -> int:
    """A 64-bit hash that is the same on every machine and in every process."""
    from xxhash import xxh3_64_intdigest

    return xxh3_64_intdigest(text.encode("utf-8", "surrogatepass"))


def ngrams(words: Sequence[str], size: int) -> Hashes:
    """A 64-bit hash of each run of `size` words, in order; none where there are fewer words."""
    import numpy as np

    count = len(words) - size + 1
    if count < 1:
        return np.empty(0, np.uint64)
    hashes = np.fromiter(map(_word_hashes.__getitem__, words), np.uint64, len(words))
    mixed = hashes[:count].copy()
    for start in range(1, size):
        mixed = mixed * np.uint64(_MULTIPLIER) + hashes[start : start + count]
    return mixed


def excerpt(text: str, longest: int = 200) -> str:
    """The beginning of a text on one line, at most `longest` characters; what UTF-8 cannot encode becomes `?`."""
    line = " ".join(text[: 4 * longest].split()).encode("utf-8", "replace").decode("utf-8")
    return line if len(line) <= longest else line[: longest - 1] + "…"


def mask(secret: str) -> str:
    """A secret that can be recognised but not used: its beginning and end, at most a third of it."""
    shown = min(6, len(secret) // 3)
    end = shown // 3
    return f"{secret[: shown - end]}…{secret[len(secret) - end :]}"

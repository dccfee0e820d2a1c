"""Shared by the data checks: normalised text, its words, hashes of runs of words, and excerpts to show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mlflow_ft.wording import fingerprint as fingerprint
from mlflow_ft.wording import normalise as normalise
from mlflow_ft.wording import operators as operators
from mlflow_ft.wording import prompt_key as prompt_key
from mlflow_ft.wording import text_key as text_key
from mlflow_ft.wording import words as words

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Hashes = npt.NDArray[np.uint64]

_KEPT_WORDS = 200_000
_MULTIPLIER = 0x9E3779B97F4A7C15


class _WordHashes(dict[str, int]):
    """Hash by word, made once; forgotten when there are too many, so that memory stays bounded."""

    def __missing__(self, word: str) -> int:
        if len(self) >= _KEPT_WORDS:
            self.clear()
        value = self[word] = fingerprint(word)
        return value


_word_hashes = _WordHashes()


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

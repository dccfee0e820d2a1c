"""Where the tokens of a text are in it, in characters.

    "Hi  <|im_end|>"        tokens   "Hi"  "  "  "<|im_end|>"
                            offsets  0, 2  2, 4  4, 14

A turn needs the places of a few tokens near its ends. If a tokenizer keeps the order of the text, only these are taken
from it; if not, all are compared. As Python objects, the places of all tokens take a tenth of the time of preparing a
row.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import Any, overload

from tokenizers import Encoding, normalizers

from mlflow_ft.engine.tokens.span_types import MaskError

Offset = tuple[int, int]
"""Where a token begins, and where it ends (exclusive)."""


class Offsets(Sequence[Offset]):
    """The places of a text's tokens, each taken from the tokenizer on access."""

    def __init__(self, encoding: Encoding) -> None:
        self._encoding = encoding

    def __len__(self) -> int:
        return len(self._encoding)

    @overload
    def __getitem__(self, index: int) -> Offset: ...

    @overload
    def __getitem__(self, index: slice) -> list[Offset]: ...

    def __getitem__(self, index: int | slice) -> Offset | list[Offset]:
        if isinstance(index, slice):
            return self._encoding.offsets[index]
        place = self._encoding.token_to_chars(index)
        if place is None:
            raise IndexError(index)
        return place


def keeps_order(normalizer: Any, text: str) -> bool:
    """Whether no token of a text ends before an earlier one does: its letters are not changed before it is split."""
    return normalizer is None or (isinstance(normalizer, normalizers.NFC) and text.isascii())


class Places:
    """Where the tokens of a text are in it; white space that a token's offsets omit belongs to the token."""

    def __init__(self, text: str, offsets: Sequence[Offset], *, in_order: bool = False) -> None:
        self.text = text
        self._offsets = offsets
        self._latest = () if in_order else tuple(itertools.accumulate((end for _, end in offsets), max, initial=0))

    @classmethod
    def of(cls, text: str, encoding: Encoding, normalizer: Any) -> Places:
        """The places of a text's tokens: only a few of them are taken where that is enough."""
        in_order = keeps_order(normalizer, text)
        return cls(text, Offsets(encoding) if in_order else encoding.offsets, in_order=in_order)

    def _begin(self, at: int) -> int:
        return self._offsets[at][0]

    def _before(self, at: int) -> int:
        """Where the tokens before a token end."""
        if self._latest:
            return self._latest[at]
        return self._offsets[at - 1][1] if at else 0

    def first(self, begin: int) -> int:
        """The first token of a speech, which may also contain a space that the template writes before it.

        Raises:
            MaskError: it also contains other text of the template.
        """
        tokens = range(len(self._offsets))
        at = max(
            bisect_left(tokens, begin, key=self._begin),
            bisect_left(range(len(tokens) + 1), begin, key=self._before),
        )
        if not self.text[begin : self._before(at)].strip():
            return at
        across = self._across(begin)
        if self.text[self._before(across) : begin].strip():
            both = self.text[self._before(across) : self._before(across + 1)]
            raise MaskError(f"one token contains both template text and the assistant's text: {both!r}", text=self.text)
        return across

    def within(self, begin: int, end: int) -> Iterator[tuple[int, str]]:
        """The tokens between two places that are more than white space, and their texts."""
        for at in range(self._across(begin), len(self._offsets)):
            start, stop = self._offsets[at]
            written = self.text[start:stop]
            core = written.strip()
            start += len(written) - len(written.lstrip())
            if start + len(core) > end:
                return
            if core and start >= begin:
                yield at, core

    def _across(self, place: int) -> int:
        """The last token that is at a place, or after it, if those before it end there."""
        return bisect_right(range(len(self._offsets) + 1), place, key=self._before) - 1

"""From rows to token ids and labels: only the assistant's turns are learned, with their end-of-turn tokens.

`render` finds the assistant's spans in the text; here they become tokens. What follows the end-of-turn token (a
newline, in ChatML) is not learned: the model has stopped by then. The end of sequence that Phi's templates write after
the last turn of any speaker is not learned either.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from tokenizers import Encoding
from transformers import PreTrainedTokenizerFast

from mlflow_ft.engine.tokens import tool_text
from mlflow_ft.engine.tokens.determinism import Steady
from mlflow_ft.engine.tokens.places import Offset, Places
from mlflow_ft.engine.tokens.render import MaskError, Rendered, Span, Way
from mlflow_ft.engine.tokens.span_types import WAYS
from mlflow_ft.rows import Encoded, Example, Kind

IGNORED = -100
"""Label of a token that is not learned, as in torch's cross entropy and in transformers."""
BATCH = 1000
NO_END = "the chat template writes no end-of-turn token after the assistant's turn"
OTHER_END = (
    "the chat template ends the assistant's turn differently when other turns follow, and a model that learns both "
    "does not know when to stop; train each turn as a separate row (--data.turns each), or only the last turn "
    '(--data.turns last, or "train": false in the others)'
)


@dataclass(frozen=True, kw_only=True)
class Tokenised:
    """One conversation, text or prompt as tokens, with their places in the text."""

    text: str
    ids: list[int]
    offsets: list[Offset]
    """Each token's place in the text, in characters; empty if it was not asked for."""
    labels: list[int]
    ends: tuple[int, ...]
    """The tokens that end the assistant's turns, as far as they are not cut off."""
    way: Way
    length: int
    """In tokens, before truncation."""
    unwritten: tuple[int, ...] = ()
    """The learned turns, from 0, whose thoughts the template omits."""

    @cached_property
    def pieces(self) -> list[str]:
        """The text of each token; joined, they give the text up to its truncation."""
        texts, place = [], 0
        for _, end in self.offsets:
            texts.append(self.text[place:end] if end > place else "")
            place = max(place, end)
        return texts

    @property
    def encoded(self) -> Encoded:
        return Encoded(
            input_ids=tuple(self.ids), labels=tuple(self.labels), truncated=self.length > len(self.ids), way=self.way
        )


class Encoder:
    """Tokenises rows with one tokenizer, and proves the mask of each.

    If rows use tools and the template does not support them, it is extended once; see `tool_text`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, *, max_length: int) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        # an end-of-turn token is one that was added to the vocabulary: ordinary text cannot produce it
        self._added = {token: str(text).strip() for token, text in tokenizer.added_tokens_decoder.items()}
        self.special = tuple(str(text) for text in tokenizer.added_tokens_decoder.values() if text.special)
        self._steady = Steady(tokenizer)
        self._lacks: set[str] | None = None
        """Which parts of tool use the template cannot write; None until a row uses tools."""

    @property
    def dates(self) -> dict[str, str]:
        """The dates and times that the template has written into rows so far, by format."""
        return self._steady.dates

    def encode(self, examples: Sequence[Example]) -> list[Encoded | MaskError]:
        """Tokenise rows and label them; a row whose mask cannot be proved is returned as its error.

        Every returned row has been proved: every learned turn ends in a learned end-of-turn token, the
        beginning-of-sequence token is not doubled, and nothing outside the spans is learned. A row longer than
        `max_length` is truncated at its end, and may have no learned tokens left.
        """
        return [row if isinstance(row, MaskError) else joined(row) for row in self.tokenise(examples)]

    def tokenise(self, examples: Sequence[Example], *, offsets: bool = True) -> list[list[Tokenised] | MaskError]:
        """Each row's conversations as tokens: one, or the chosen and the rejected one; faster without offsets."""
        results: list[list[Tokenised] | MaskError] = []
        for start in range(0, len(examples), BATCH):
            rendered = [self._rendered(example) for example in examples[start : start + BATCH]]
            tokens = self._tokens(
                [rendering.text for row in rendered if not isinstance(row, MaskError) for rendering in row]
            )
            for example, row in zip(examples[start : start + BATCH], rendered, strict=True):
                if isinstance(row, MaskError):
                    results.append(row)
                else:
                    parts = [(rendering, *next(tokens)) for rendering in row]
                    results.append(self._labelled_row(example, parts, offsets=offsets))
        return results

    def _labelled_row(
        self, example: Example, parts: list[tuple[Rendered, list[int], Encoding]], *, offsets: bool
    ) -> list[Tokenised] | MaskError:
        try:
            return [self._labelled(example, *part, offsets=offsets) for part in parts]
        except MaskError as error:
            return error

    def _rendered(self, example: Example) -> list[Rendered] | MaskError:
        """The texts of a row, each with its spans; plain texts and prompts have none."""
        try:
            self._know_tools(example)
            renderings = self._steady.rendered(example)
            for rendering in renderings:
                rendering.text.encode()
        except MaskError as error:
            return error
        except UnicodeEncodeError:
            return MaskError("it contains an unpaired surrogate, which is not valid text")
        return renderings

    def _know_tools(self, example: Example) -> None:
        """Extend the template at the first row with tools, by everything it lacks, so that no later row changes it.

        Each row is still checked for its calls and results.
        """
        if self._lacks is None and tool_text.needs(example):
            self._lacks = tool_text.teach_tools(self.tokenizer)
        if example.tools and self._lacks and "offer" in self._lacks:
            raise MaskError("the chat template does not write the offered tools")

    @cached_property
    def _begins(self) -> bool:
        """Whether the tokenizer puts its beginning-of-sequence token before a text."""
        bos = self.tokenizer.bos_token_id
        return bos is not None and self.tokenizer("a")["input_ids"][:1] == [bos]

    def _tokens(self, texts: list[str]) -> Iterator[tuple[list[int], Encoding]]:
        if not texts:
            return
        # the text already has its special tokens: adding them again would double the first one
        batch = self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False)
        yield from zip(batch["input_ids"], batch.encodings or (), strict=True)

    # --- from spans to labels

    def _labelled(
        self, example: Example, rendered: Rendered, ids: list[int], encoding: Encoding, *, offsets: bool
    ) -> Tokenised:
        text, bos = rendered.text, self.tokenizer.bos_token_id
        placed = encoding.offsets if offsets else []
        if example.kind == "text":
            text, ids, placed = self._closed(text, ids, placed)
        if bos is not None and ids[:2] == [bos, bos]:
            raise MaskError("the beginning-of-sequence token appears twice", text=text)
        labels, turns = [IGNORED] * len(ids), list[tuple[int, int]]()
        if example.kind == "text":
            turns = [(int(bos is not None and ids[:1] == [bos]), len(ids) - 1)]
        elif rendered.spans:
            places = Places.of(text, encoding, self._normalizer)
            turns = [self._tokens_of(span, places, ids) for span in rendered.spans]
        for first, last in turns:
            labels[first : last + 1] = ids[first : last + 1]
        weakest: Way = max((span.way for span in rendered.spans), key=WAYS.index, default="prefix differences")
        return Tokenised(
            text=text,
            ids=ids[: self.max_length],
            offsets=placed[: self.max_length] if offsets else [],
            labels=labels[: self.max_length],
            ends=tuple(ids[last] for first, last in turns if first <= last < self.max_length),
            way=WHOLE.get(example.kind, weakest),
            length=len(ids),
            unwritten=rendered.unwritten,
        )

    @cached_property
    def _normalizer(self) -> Any:
        return self.tokenizer.backend_tokenizer.normalizer

    def _closed(self, text: str, ids: list[int], offsets: list[Offset]) -> tuple[str, list[int], list[Offset]]:
        """A plain text between the tokens that begin and end a sequence, if the tokenizer has them."""
        bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        if bos is not None and self._begins and ids[:1] != [bos]:
            opening = str(self.tokenizer.bos_token)
            ahead = len(opening)
            text, ids = opening + text, [bos, *ids]
            offsets = [(0, ahead), *((begin + ahead, end + ahead) for begin, end in offsets)]
        if eos is not None and ids[-1:] != [eos]:
            closing = str(self.tokenizer.eos_token)
            offsets = [*offsets, (len(text), len(text) + len(closing))]
            text, ids = text + closing, [*ids, eos]
        return text, ids, offsets

    def _tokens_of(self, span: Span, places: Places, ids: list[int]) -> tuple[int, int]:
        """The first token of the assistant's turn, and the one that ends it."""
        first, last = places.first(span.begin), None
        for at, written in places.within(span.said, span.close):
            if not self._is_added(ids[at], written):
                break
            last = at
        after = list(places.within(span.said, span.end)) if last is None else []
        if span.plain and last is None:
            last = next((at for at, written in after if self._is_added(ids[at], written)), None)
        elif after and after[-1][1] in self.special and self._is_added(ids[after[-1][0]], after[-1][1]):
            last = after[-1][0]
        if last is None or last < first:
            raise MaskError(NO_END if span.closed else OTHER_END, text=places.text)
        return first, last

    def _is_added(self, token: int, written: str) -> bool:
        # a character that the vocabulary lacks becomes a special token, too, but was not written as one
        return self._added.get(token) == written


def joined(parts: Sequence[Tokenised]) -> Encoded:
    """A row's conversations as one value: for a preference the chosen one, with the rejected one in it."""
    first, *others = (part.encoded for part in parts)
    return replace(first, rejected=others[0]) if others else first


WHOLE: dict[Kind, Way] = {"text": "whole text", "prompt": "prompt"}


def encode(
    tokenizer: PreTrainedTokenizerFast, examples: Sequence[Example], *, max_length: int
) -> list[Encoded | MaskError]:
    """Tokenise and label rows; see `Encoder.encode`."""
    return Encoder(tokenizer, max_length=max_length).encode(examples)


def ends(row: Encoded) -> Iterator[int]:
    """The tokens that end the assistant's turns in a row, once for each turn; by its labels, as the spans are gone."""
    for part in (row, row.rejected) if row.rejected else (row,):
        cut = part.truncated and part.labels[-1] != IGNORED
        following = (*part.labels[1:], *(() if cut else (IGNORED,)))
        both = zip(part.labels, following, strict=False)
        yield from [label for label, after in both if after == IGNORED and label != IGNORED]


def end_tokens(encoded: Iterable[Encoded]) -> tuple[int, ...]:
    """The token ids that end the assistant's turns in these rows, most frequent first."""
    counts = Counter(itertools.chain.from_iterable(map(ends, encoded)))
    return tuple(token for token, _ in counts.most_common())

"""From rows to token ids and labels: only what the assistant says is learned, its end of turn included.

`render` finds the assistant's spans in the text; here they become tokens. What stands behind the end-of-turn token (a
newline, in ChatML) is not learned: the model has stopped by then. Phi's templates write an end of sequence behind the
last turn, whichever that is; it is not learned either.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

from transformers import PreTrainedTokenizerFast

from mlflow_ft.engine.tokens import tool_text
from mlflow_ft.engine.tokens.places import WAYS
from mlflow_ft.engine.tokens.render import MaskError, Rendered, Span, Way
from mlflow_ft.engine.tokens.steady import Steady
from mlflow_ft.rows import Encoded, Example, Kind

IGNORED = -100
"""Label of a token that is not learned, as torch's cross entropy and transformers have it."""
BATCH = 1000
NO_END = "the chat template writes no end-of-turn token after the assistant's turn"
OTHER_END = (
    "the chat template ends the assistant's turn differently when other turns follow, and a model that learns both "
    "does not know when to stop; train each turn as a separate row (--data.turns each), or only the last turn "
    '(--data.turns last, or "train": false in the others)'
)


@dataclass(frozen=True, kw_only=True)
class Tokenised:
    """One conversation, text or prompt as tokens, with the place of each in the text."""

    text: str
    ids: list[int]
    offsets: list[tuple[int, int]]
    """Of each token, where it stands in the text: first letter and behind the last."""
    labels: list[int]
    way: Way
    length: int
    """In tokens, before it was cut."""
    unwritten: tuple[int, ...] = ()
    """The learned turns, from 0, whose thoughts the template leaves out."""

    @cached_property
    def pieces(self) -> list[str]:
        """The text of each token; joined, they are the text, up to where it is cut."""
        found, place = [], 0
        for _, end in self.offsets:
            found.append(self.text[place:end] if end > place else "")
            place = max(place, end)
        return found

    @property
    def encoded(self) -> Encoded:
        return Encoded(
            input_ids=tuple(self.ids), labels=tuple(self.labels), truncated=self.length > len(self.ids), way=self.way
        )


class Encoder:
    """Tokenises rows with one tokenizer, and proves the mask of each.

    The template is extended once where rows use tools and it knows none; see `tool_text`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, *, max_length: int) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        # an end-of-turn token is one that was added to the vocabulary: it cannot come about by chance
        self._added = {token: str(text).strip() for token, text in tokenizer.added_tokens_decoder.items()}
        self.special = tuple(str(text) for text in tokenizer.added_tokens_decoder.values() if text.special)
        self._steady = Steady(tokenizer)
        self._lacks: set[str] | None = None
        """What the template cannot write of tools; None until a row has some."""

    @property
    def dates(self) -> dict[str, str]:
        """By format, the date or time that the template wrote into the rows so far, as the held clock told it."""
        return self._steady.dates

    def encode(self, examples: Sequence[Example]) -> list[Encoded | MaskError]:
        """Tokenise rows and make their labels; a row that cannot be proved is returned as its error.

        Every returned row has been proved: every turn that is learned ends in a learned end-of-turn token, the
        beginning-of-sequence token is not doubled, nothing outside the spans is learned. A row longer than
        `max_length` is cut at its end, and has no learned token left where all of them stood behind the cut.
        """
        return [found if isinstance(found, MaskError) else joined(found) for found in self.tokenise(examples)]

    def tokenise(self, examples: Sequence[Example]) -> list[list[Tokenised] | MaskError]:
        """Of each row its conversations as tokens: one, or the chosen and the rejected one."""
        results: list[list[Tokenised] | MaskError] = []
        for start in range(0, len(examples), BATCH):
            rendered = [self._rendered(example) for example in examples[start : start + BATCH]]
            tokens = self._tokens([one.text for row in rendered if not isinstance(row, MaskError) for one in row])
            for example, row in zip(examples[start : start + BATCH], rendered, strict=True):
                if isinstance(row, MaskError):
                    results.append(row)
                else:
                    parts = [(one, *next(tokens)) for one in row]
                    results.append(self._labelled_row(example, parts))
        return results

    def _labelled_row(
        self, example: Example, parts: list[tuple[Rendered, list[int], list[tuple[int, int]]]]
    ) -> list[Tokenised] | MaskError:
        try:
            return [self._labelled(example, *part) for part in parts]
        except MaskError as error:
            return error

    def _rendered(self, example: Example) -> list[Rendered] | MaskError:
        """The texts of a row, each with its spans; a text that is learned whole, and a prompt, have none."""
        try:
            self._know_tools(example)
            found = self._steady.rendered(example)
            for one in found:
                one.text.encode()
        except MaskError as error:
            return error
        except UnicodeEncodeError:
            return MaskError("it contains an unpaired surrogate, which is not valid text")
        return found

    def _know_tools(self, example: Example) -> None:
        """Extend the template at the first row that has tools, by all that it lacks, so that no later row changes it.

        That the template writes calls and results is proved row by row.
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

    def _tokens(self, texts: list[str]) -> Iterator[tuple[list[int], list[tuple[int, int]]]]:
        if not texts:
            return
        # the text has its special tokens already: adding them again would double the first one
        batch = self.tokenizer(
            texts, add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False
        )
        yield from zip(batch["input_ids"], batch["offset_mapping"], strict=True)

    # --- from spans to labels

    def _labelled(
        self, example: Example, rendered: Rendered, ids: list[int], offsets: list[tuple[int, int]]
    ) -> Tokenised:
        text, bos = rendered.text, self.tokenizer.bos_token_id
        if example.kind == "text":
            text, ids, offsets = self._closed(text, ids, offsets)
        if bos is not None and ids[:2] == [bos, bos]:
            raise MaskError("the beginning-of-sequence token appears twice", text=text)
        labels = [IGNORED] * len(ids)
        if example.kind == "text":
            start = 1 if bos is not None and ids[:1] == [bos] else 0
            labels[start:] = ids[start:]
        if rendered.spans:
            places = _Places(text, offsets)
            for turn in rendered.spans:
                first, last = self._tokens_of(turn, places, ids)
                labels[first : last + 1] = ids[first : last + 1]
        weakest: Way = max((span.way for span in rendered.spans), key=WAYS.index, default="prefix differences")
        return Tokenised(
            text=text,
            ids=ids[: self.max_length],
            offsets=offsets[: self.max_length],
            labels=labels[: self.max_length],
            way=WHOLE.get(example.kind, weakest),
            length=len(ids),
            unwritten=rendered.unwritten,
        )

    def _closed(
        self, text: str, ids: list[int], offsets: list[tuple[int, int]]
    ) -> tuple[str, list[int], list[tuple[int, int]]]:
        """A plain text between the tokens that begin and end a sequence, where the tokenizer has such."""
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

    def _tokens_of(self, span: Span, places: _Places, ids: list[int]) -> tuple[int, int]:
        """The first token that is the assistant's, and the one that ends the turn."""
        first, last = places.first(span.begin), None
        for at, written in places.within(span.said, span.close):
            if not self._is_added(ids[at], written):
                break
            last = at
        behind = list(places.within(span.said, span.end)) if last is None else []
        if span.plain and last is None:
            last = next((at for at, written in behind if self._is_added(ids[at], written)), None)
        elif behind and behind[-1][1] in self.special and self._is_added(ids[behind[-1][0]], behind[-1][1]):
            last = behind[-1][0]
        if last is None or last < first:
            raise MaskError(NO_END if span.closed else OTHER_END, text=places.text)
        return first, last

    def _is_added(self, token: int, written: str) -> bool:
        # a sign that the vocabulary lacks becomes a special token too; it was not written as one
        return self._added.get(token) == written


class _Places:
    """Where the tokens of a text stand in it; white space that a token's offsets leave out belongs to it."""

    def __init__(self, text: str, offsets: list[tuple[int, int]]) -> None:
        self.text = text
        self._offsets = offsets
        self._before = list(itertools.accumulate([end for _, end in offsets], max, initial=0))
        """Of each token, how far those before it reach."""

    def first(self, begin: int) -> int:
        """The token with which a speech begins, for which a space of the template's may stand in front of its letters.

        Raises:
            MaskError: it holds letters of the template too.
        """
        at = max(bisect_left(self._offsets, (begin,)), bisect_left(self._before, begin))
        if not self.text[begin : self._before[at]].strip():
            return at
        across = bisect_right(self._before, begin) - 1
        if self.text[self._before[across] : begin].strip():
            both = self.text[self._before[across] : self._before[across + 1]]
            raise MaskError(f"one token contains both template text and the assistant's text: {both!r}", text=self.text)
        return across

    def within(self, begin: int, end: int) -> Iterator[tuple[int, str]]:
        """The tokens between two places that hold more than white space, and what they hold."""
        for at in range(bisect_right(self._before, begin) - 1, len(self._offsets)):
            start, stop = self._offsets[at]
            written = self.text[start:stop]
            core = written.strip()
            start += len(written) - len(written.lstrip())
            if start + len(core) > end:
                return
            if core and start >= begin:
                yield at, core


def joined(parts: Sequence[Tokenised]) -> Encoded:
    """A row's conversations as one value: of a preference the chosen one, with the rejected one beside it."""
    first, *others = (one.encoded for one in parts)
    return replace(first, rejected=others[0]) if others else first


WHOLE: dict[Kind, Way] = {"text": "whole text", "prompt": "prompt"}


def encode(
    tokenizer: PreTrainedTokenizerFast, examples: Sequence[Example], *, max_length: int
) -> list[Encoded | MaskError]:
    """Tokenise rows and make their labels, as `Encoder.encode` does."""
    return Encoder(tokenizer, max_length=max_length).encode(examples)


def ends(row: Encoded) -> Iterator[int]:
    """The tokens that end an assistant's turn in a row, as often as they do."""
    for one in (row, row.rejected) if row.rejected else (row,):
        cut = one.truncated and one.labels[-1] != IGNORED
        for label, following in pairwise((*one.labels, *(() if cut else (IGNORED,)))):
            if label != IGNORED and following == IGNORED:
                yield label


def end_tokens(encoded: Iterable[Encoded]) -> tuple[int, ...]:
    """The token ids that end an assistant's turn in these rows, the most frequent first."""
    counts = Counter(itertools.chain.from_iterable(map(ends, encoded)))
    return tuple(token for token, _ in counts.most_common())

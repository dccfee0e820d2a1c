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

from mlflow_ft.engine import tool_text
from mlflow_ft.engine.render import MaskError, Rendered, Span, Way, prompt_text, render
from mlflow_ft.job import Encoded
from mlflow_ft.rows import Example, Kind

IGNORED = -100
"""Label of a token that is not learned, as torch's cross entropy and transformers have it."""
BATCH = 1000


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
        self._added = {token: str(text) for token, text in tokenizer.added_tokens_decoder.items()}
        self.special = tuple(str(text) for text in tokenizer.added_tokens_decoder.values() if text.special)
        self._marks = tuple(
            sorted((text.strip() for text in self._added.values() if text.strip()), key=len, reverse=True)
        )
        self._known = set(tool_text.PROBES) if tool_text.taught(tokenizer) else set[str]()

    def encode(self, examples: Sequence[Example]) -> list[Encoded | MaskError]:
        """Tokenise rows and make their labels; a row that cannot be proved is returned as its error.

        Every returned row has been proved: every turn that is learned ends in a learned end-of-turn token, the
        beginning-of-sequence token is not doubled, nothing outside the spans is learned. A row longer than
        `max_length` is cut at its end, and has no learned token left where all of them stood behind the cut.
        """
        results: list[Encoded | MaskError] = []
        for found in self.tokenise(examples):
            if isinstance(found, MaskError):
                results.append(found)
            else:
                results.append(joined(found))
        return results

    def tokenise(self, examples: Sequence[Example]) -> list[list[Tokenised] | MaskError]:
        """Of each row its conversations as tokens: one, or the chosen and the rejected one."""
        results: list[list[Tokenised] | MaskError] = []
        for start in range(0, len(examples), BATCH):
            rendered = [self._rendered(example) for example in examples[start : start + BATCH]]
            texts = [one.text for row in rendered if not isinstance(row, MaskError) for one in row]
            tokens = iter(self._tokens(texts))
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
        self._know(tool_text.needs(example))
        try:
            if example.kind == "text":
                return [Rendered(text=self._closed(example.text or ""), spans=())]
            if example.kind == "prompt":
                return [Rendered(text=prompt_text(self.tokenizer, example.messages, example.tools), spans=())]
            return [
                render(self.tokenizer, messages, learned, example.tools, marks=self._marks)
                for messages, learned in example.conversations
            ]
        except MaskError as error:
            return error

    def _know(self, needs: set[str]) -> None:
        """Extend the template where a row needs what it passes over."""
        if needs <= self._known:
            return
        if tool_text.lacks(self.tokenizer, needs - self._known):
            tool_text.teach_tools(self.tokenizer)
            self._known = set(tool_text.PROBES)  # taught, or beyond help, which every row is told
        self._known |= needs

    def _closed(self, text: str) -> str:
        """A plain text between the tokens that begin and end a sequence, where the tokenizer has such."""
        begin = self.tokenizer.bos_token if self._begins else ""
        end = self.tokenizer.eos_token or ""
        return f"{'' if text.startswith(begin) else begin}{text}{'' if end and text.endswith(end) else end}"

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
        bos = self.tokenizer.bos_token_id
        if bos is not None and ids[:2] == [bos, bos]:
            raise MaskError("the beginning-of-sequence token stands there twice", text=rendered.text)
        labels = [IGNORED] * len(ids)
        if example.kind == "text":
            start = 1 if bos is not None and ids[:1] == [bos] else 0
            labels[start:] = ids[start:]
        ends = [end for _, end in offsets]
        for span in rendered.spans:
            first, last = self._tokens_of(span, rendered.text, ids, offsets, ends)
            labels[first : last + 1] = ids[first : last + 1]
        ways: dict[Kind, Way] = {"text": "whole text", "prompt": "prompt"}
        weakest: Way = max((span.way for span in rendered.spans), key=WAYS.index, default="prefix differences")
        return Tokenised(
            text=rendered.text,
            ids=ids[: self.max_length],
            offsets=offsets[: self.max_length],
            labels=labels[: self.max_length],
            way=ways.get(example.kind, weakest),
            length=len(ids),
        )

    def _tokens_of(
        self, span: Span, text: str, ids: list[int], offsets: list[tuple[int, int]], ends: list[int]
    ) -> tuple[int, int]:
        """The first token that is the assistant's, and the one that ends the turn."""
        first = bisect_right(ends, span.begin)
        if first < len(ids) and text[offsets[first][0] : span.begin].strip():
            first += 1  # begins before the assistant speaks, with letters of the template's
        behind = bisect_right(ends, span.end)
        if span.plain:
            start = bisect_left(offsets, (span.said, span.said))
            found = next((at for at in range(start, behind) if self._is_mark(text, ids[at], offsets[at])), None)
        else:
            written = (at for at in range(behind - 1, first - 1, -1) if text[slice(*offsets[at])].strip())
            found = next(written, None)
        if found is None or found < first or not self._is_mark(text, ids[found], offsets[found]):
            raise MaskError("the chat template writes no end-of-turn token behind what the assistant says", text=text)
        return first, found

    def _is_mark(self, text: str, token: int, place: tuple[int, int]) -> bool:
        # a sign that the vocabulary lacks becomes a special token too; it was not written as one
        return token in self._added and text[slice(*place)].strip() == self._added[token].strip()


def joined(parts: Sequence[Tokenised]) -> Encoded:
    """A row's conversations as one value: of a preference the chosen one, with the rejected one beside it."""
    first, *others = (one.encoded for one in parts)
    return replace(first, rejected=others[0]) if others else first


WAYS: tuple[Way, ...] = ("generation markers", "prefix differences", "substitution", "whole text", "prompt")
"""From the surest to the weakest, and the two that need no span."""


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

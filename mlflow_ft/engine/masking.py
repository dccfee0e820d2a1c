"""From a conversation to token ids and labels: only what the assistant says is learned, its end of turn included.

The assistant's spans are found by the differences of two renderings, which works for every template whose rendering
of the first turns is a prefix of the rendering of all of them:

    render(messages[:i], add_generation_prompt=True)   "<|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n"
    render(messages[:i + 1])                           "...same...Hello!<|im_end|>\\n"
    learned                                                       "Hello!<|im_end|>"

What stands behind the end-of-turn token (a newline, in ChatML) is not learned: the model has stopped by then. Phi's
templates write an end of sequence behind the last turn, whichever that is; it is not learned either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from os.path import commonprefix
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerFast

from mlflow_ft.job import Encoded
from mlflow_ft.records import Example, Message

IGNORED = -100
"""Label of a token that is not learned, as torch's cross entropy and transformers have it."""
BATCH = 1000


class MaskError(ValueError):
    """The loss mask of one row cannot be proved; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """A conversation as text, and where the assistant speaks."""

    text: str
    spans: tuple[tuple[int, int, int], ...]
    """Of each turn: where it begins, where its content ends (its end, where it is not text alone), where it ends."""


def render(tokenizer: PreTrainedTokenizerFast, example: Example) -> Rendered:
    """Render a conversation with the tokenizer's chat template and find the assistant's spans.

    Raises:
        MaskError: the template refuses the turns, or its rendering of the first turns is no prefix of the whole.
    """
    messages = [dict(message) for message in example.messages]
    whole = _apply(tokenizer, messages, example, prompt=False)
    spans = []
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = _apply(tokenizer, messages[:index], example, prompt=True)
        after = whole if index == len(messages) - 1 else _apply(tokenizer, messages[: index + 1], example, prompt=False)
        spans.append(_span(message, index + 1, before=before, after=after, whole=whole))
    return Rendered(text=whole, spans=tuple(spans))


def _span(message: Message, number: int, *, before: str, after: str, whole: str) -> tuple[int, int, int]:
    """Where turn `number` stands in `whole`, by its rendering as a prompt, as the last turn, and among the others."""
    content = message.get("content")
    words = content.strip() if isinstance(content, str) else ""
    plain = bool(words) and not message.get("tool_calls")
    common = commonprefix([after, whole])  # noqa: RUF071  # characters are what is meant
    speech = common[len(before) :]
    if not common.startswith(before) or (common != after and not (plain and words in speech)):
        raise MaskError(
            f"the chat template renders turn {number} differently when later turns follow, "
            "so what the assistant says cannot be told from the rest"
        )
    if words not in speech:
        raise MaskError(f"the chat template does not write turn {number} as it is")
    said = len(before) + speech.rindex(words) + len(words) if plain else len(common)
    return len(before), said, len(common)


def prompt_text(tokenizer: PreTrainedTokenizerFast, messages: Sequence[Message], example: Example) -> str:
    """Render the turns that come before an answer, ready for the model to go on."""
    return _apply(tokenizer, [dict(message) for message in messages], example, prompt=True)


def _apply(
    tokenizer: PreTrainedTokenizerFast, messages: list[dict[str, Any]], example: Example, *, prompt: bool
) -> str:
    tools: Any = [dict(tool) for tool in example.tools] if example.tools else None
    try:
        text = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=prompt)
    except (TemplateError, TypeError, KeyError, IndexError, ValueError) as error:
        raise MaskError(f"the chat template refuses the conversation: {error}") from error
    return str(text)


def encode(
    tokenizer: PreTrainedTokenizerFast, examples: Sequence[Example], *, max_length: int
) -> list[Encoded | MaskError]:
    """Tokenise conversations and make their labels; a row that cannot be proved is returned as its error.

    Every returned row has been proved: every assistant's turn ends in a learned end-of-turn token, the
    beginning-of-sequence token is not doubled, nothing outside the spans is learned. A row longer than `max_length`
    is cut at its end, and has no learned token left where all of them stood behind the cut.
    """
    special = {token: str(text) for token, text in tokenizer.added_tokens_decoder.items() if text.special}
    results: list[Encoded | MaskError] = []
    for start in range(0, len(examples), BATCH):
        batch = [_rendered(tokenizer, example) for example in examples[start : start + BATCH]]
        texts = [rendered.text for rendered in batch if isinstance(rendered, Rendered)]
        tokens = iter(_tokenise(tokenizer, texts))
        results.extend(
            one
            if isinstance(one, MaskError)
            else _label(one, *next(tokens), special=special, bos=tokenizer.bos_token_id, max_length=max_length)
            for one in batch
        )
    return results


def _rendered(tokenizer: PreTrainedTokenizerFast, example: Example) -> Rendered | MaskError:
    try:
        return render(tokenizer, example)
    except MaskError as error:
        return error


def _tokenise(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
    if not texts:
        return []
    # The template has written the special tokens already: adding them again would double the first one.
    batch = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False)
    return list(zip(batch["input_ids"], batch["offset_mapping"], strict=True))


def _label(
    rendered: Rendered,
    ids: list[int],
    offsets: list[tuple[int, int]],
    *,
    special: Mapping[int, str],
    bos: int | None,
    max_length: int,
) -> Encoded | MaskError:
    def words(i: int) -> str:
        return rendered.text[slice(*offsets[i])].strip()

    labels = [IGNORED] * len(ids)
    for begin, said, end in rendered.spans:
        inside = [i for i, (a, b) in enumerate(offsets) if begin <= a and b <= end and a < b]
        # A sign that the vocabulary lacks becomes a special token too; it was not written as one.
        marks = [i for i in inside if ids[i] in special and words(i) == special[ids[i]]]
        last = next((i for i in marks if said <= offsets[i][0]), None)
        if last is None:
            last = next((i for i in reversed(inside) if words(i)), None)
        if last is None or last not in marks:
            return MaskError("the chat template writes no end-of-turn token behind what the assistant says")
        for i in inside:
            if i <= last:
                labels[i] = ids[i]
    if bos is not None and ids[:2] == [bos, bos]:
        return MaskError("the chat template writes the beginning-of-sequence token twice")
    if not rendered.spans:
        return MaskError("there is nothing to learn: the conversation has no turn of the assistant")
    return Encoded(
        input_ids=tuple(ids[:max_length]), labels=tuple(labels[:max_length]), truncated=len(ids) > max_length
    )


def shown(tokenizer: PreTrainedTokenizerFast, rows: Sequence[Encoded]) -> str:
    """Rows as the trainer sees them, for people: what is learned stands between `[[` and `]]`."""
    lines = ["What stands between [[ and ]] is learned; the rest is read.", ""]
    for number, row in enumerate(rows, 1):
        text = ""
        for learned, run in groupby(zip(row.input_ids, row.labels, strict=True), key=lambda pair: pair[1] != IGNORED):
            part = str(tokenizer.decode([token for token, _ in run]))
            text += f"[[{part}]]" if learned else part
        lines += [f"--- row {number}: {row.supervised} of {len(row.input_ids)} tokens", text, ""]
    return "\n".join(lines)


def end_tokens(encoded: Sequence[Encoded]) -> tuple[int, ...]:
    """The token ids that end an assistant's turn in these rows, the most frequent first."""
    counts: dict[int, int] = {}
    for row in encoded:
        for label, following in pairwise((*row.labels, IGNORED)):
            if label != IGNORED and following == IGNORED and not (row.truncated and row.labels[-1] == label):
                counts[label] = counts.get(label, 0) + 1
    return tuple(sorted(counts, key=lambda token: -counts[token]))

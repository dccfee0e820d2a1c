"""Conversations as text, by the tokenizer's own chat template, and where in the text the assistant speaks.

Three ways lead to the assistant's spans, the surest that a template allows for each turn:

generation markers   the template says itself what is generated: {% generation %} ... {% endgeneration %}
prefix differences   what the template adds to the prompt that a server would render:
                         render(messages[:i], add_generation_prompt=True)  "...<|im_start|>assistant\\n"
                         render(messages[:i + 1])                          "...<|im_start|>assistant\\nHi!<|im_end|>"
substitution         where later turns change how an earlier one is written (thoughts are dropped, the system prompt
                     moves), the turn's words are replaced by a mark, and the text around the mark must stay the same

They are taken in the conversation's shape (`spans`), once for all rows that have it; then each row must fit its shape.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from mlflow_ft.engine.tokens import thoughts
from mlflow_ft.engine.tokens.marks import NOTHING, Marked, marked, signature
from mlflow_ft.engine.tokens.spans import MaskError, Shape, Span, Tail, Way, tail
from mlflow_ft.engine.tokens.template_code import Code, read
from mlflow_ft.rows import Example, Message

__all__ = ["MaskError", "Rendered", "Shapes", "Span", "Way", "apply", "prompt_ids", "prompt_text", "render"]

MARKERS = re.compile(r"\{%-?\s*generation\s*-?%\}")
REFUSALS = (TemplateError, TypeError, LookupError, ValueError, AttributeError, ArithmeticError)
"""What a template raises that cannot write a conversation."""
MANY = 8
"""Turns that are found one by one in a row that has no shape in common with others."""
KEPT = 256
"""Shapes that are kept: as many as there are lengths of conversations, and more."""
Tools = Sequence[Mapping[str, Any]] | None


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """A conversation as text, and where the assistant speaks in it."""

    text: str
    spans: tuple[Span, ...]
    unwritten: tuple[int, ...] = ()
    """The learned turns whose thoughts the template leaves out."""


class Found(NamedTuple):
    """Where the turns that are learned stand, and which of them lose their thoughts."""

    spans: tuple[Span, ...]
    unwritten: tuple[int, ...]


def render(
    tokenizer: PreTrainedTokenizerFast,
    messages: Sequence[Message],
    learned: Sequence[bool],
    tools: Tools = None,
    *,
    shapes: Shapes | None = None,
) -> Rendered:
    """Render a conversation, and find the span of every turn that is learned.

    `shapes` keeps what was found, for the next row of the same tokenizer.

    Raises:
        MaskError: the template refuses the turns, or what the assistant says cannot be told from the rest.
    """
    text = apply(tokenizer, messages, tools)
    wanted = [turn for turn, is_learned in enumerate(learned) if is_learned]
    try:
        found = (shapes or Shapes(tokenizer)).spans(text, messages, wanted, tools)
    except MaskError as error:
        raise MaskError(str(error), text=text) from error
    template = str(tokenizer.chat_template)
    aside = [turn for turn in wanted if thoughts.are_lost(messages[turn], text, template)]
    return Rendered(text=text, spans=found.spans, unwritten=tuple(sorted({*found.unwritten, *aside})))


def prompt_text(tokenizer: PreTrainedTokenizerFast, messages: Sequence[Message], tools: Tools = None) -> str:
    """Render the turns that come before an answer, ready for the model to go on."""
    return apply(tokenizer, messages, tools, prompt=True)


def prompt_ids(tokenizer: PreTrainedTokenizerFast, example: Example) -> list[int]:
    """The tokens of what comes before an example's answer, the generation prompt at their end."""
    text = prompt_text(tokenizer, example.prompt, example.tools)
    found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return found


# --- the template


def apply(
    tokenizer: PreTrainedTokenizerFast,
    messages: Sequence[Message],
    tools: Tools,
    *,
    prompt: bool = False,
    template: str | None = None,
) -> str:
    """What the chat template, or another `template`, makes of the turns; arguments are text where it wants them so.

    Raises:
        MaskError: the template refuses the conversation.
    """
    listed: Any = [dict(tool) for tool in tools] if tools else None
    given: Any = {"tools": listed, "chat_template": template, "add_generation_prompt": prompt, "tokenize": False}
    refusal: Exception | None = None
    for turns in _ways_to_put(messages):
        try:
            text = str(tokenizer.apply_chat_template(turns, **given))
        except REFUSALS as error:
            refusal = refusal or error  # the first one is the one to tell
        else:
            if not _written_as_python(turns, text):
                return text
            refusal = refusal or ValueError("it writes the arguments of a call as Python, not as JSON")
    raise MaskError(f"the chat template rejects the conversation: {refusal}") from refusal


def _ways_to_put(messages: Sequence[Message]) -> Iterator[list[dict[str, Any]]]:
    """The turns as they are; then with words and with arguments as templates want them that take no others."""
    plain = [dict(message) for message in messages]
    yield plain
    if any(turn.get("tool_calls") for turn in plain):
        worded = [{"content": "", **turn} if turn.get("tool_calls") else turn for turn in plain]
        yield worded
        yield [_arguments_as_text(turn) for turn in plain]
        yield [_arguments_as_text(turn) for turn in worded]


def _arguments_as_text(message: Mapping[str, Any]) -> dict[str, Any]:
    calls = [
        {**call, "function": {**call["function"], "arguments": json.dumps(given, ensure_ascii=False)}}
        if isinstance(given := call.get("function", {}).get("arguments"), Mapping)
        else call
        for call in message.get("tool_calls") or ()
    ]
    return {**message, "tool_calls": calls} if calls else dict(message)


def _written_as_python(turns: Sequence[Message], text: str) -> bool:
    """Whether the text holds the arguments of a call as Python writes them, and nobody has said so."""
    given = [call.get("function", call).get("arguments") for turn in turns for call in turn.get("tool_calls") or ()]
    written = {str(one) for one in given if isinstance(one, Mapping) and one}
    if not any(start in text for start in {one[:2] for one in written}):  # `{'`, which no JSON has
        return False
    said = "\0".join(str(turn.get("content")) for turn in turns)
    return any(one in text and one not in said for one in written)


def _generated(
    tokenizer: PreTrainedTokenizerFast, messages: Sequence[Message], tools: Tools, text: str
) -> list[tuple[int, int]]:
    """What the template marks as generated, in characters of the text; [] where it has no markers."""
    listed = [dict(tool) for tool in tools] if tools else None
    template = str(tokenizer.get_chat_template(tools=listed))
    if not MARKERS.search(template):
        return []
    render_marked: Any = render_jinja_template  # its annotations leave out what it returns
    special: dict[str, Any] = tokenizer.special_tokens_map
    for turns in _ways_to_put(messages):
        present = [{key: value for key, value in turn.items() if value is not None} for turn in turns]
        try:
            (written,), (regions,) = render_marked(
                [present], tools=listed, chat_template=template, return_assistant_tokens_mask=True, **special
            )
        except REFUSALS:
            continue
        if written == text:
            return [(begin, end) for begin, end in regions if end > begin]
    return []


# --- shapes


class Shapes:
    """The shapes of one tokenizer's conversations; a row whose shape is known is rendered only once."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        self._kept: dict[tuple[str, str, str], Shape] = {}
        self._tails: dict[str, Tail] = {}

    def spans(self, text: str, messages: Sequence[Message], wanted: Sequence[int], tools: Tools) -> Found:
        """The spans of the turns that are wanted, in a conversation and its text.

        Raises:
            MaskError: one of them cannot be told from the rest.
        """
        if not wanted:
            return Found((), ())
        marks = marked(messages, self._code)
        shape = self._shape(marks, tools)
        if shape is not None:
            for turn in wanted:
                shape.span(turn)  # what is wrong with the template is told first
            if found := _placed(shape, text, marks, wanted):
                return found
        if len(wanted) > MANY and (found := self._by_own_words(text, messages, wanted, tools)):
            return found
        alone = [self._alone(text, messages, turn, shape.lead(turn) if shape else None, tools) for turn in wanted]
        return Found(
            tuple(span for one in alone for span in one.spans), tuple(turn for one in alone for turn in one.unwritten)
        )

    def _by_own_words(
        self, text: str, messages: Sequence[Message], wanted: Sequence[int], tools: Tools
    ) -> Found | None:
        """The spans where what others say changes how the template writes: what the assistant says is replaced alone.

        None where they cannot be told so.
        """
        marks = marked(messages, self._code, role="assistant")
        try:
            return _placed(self._made(marks, tools), text, marks, wanted)
        except MaskError:
            return None

    def _alone(self, text: str, messages: Sequence[Message], turn: int, lead: str | None, tools: Tools) -> Found:
        """The span of a turn where its own words alone are replaced."""
        marks = marked(messages, self._code, only=turn)
        found = _placed(self._made(marks, tools, lead), text, marks, [turn])
        if found is None:
            raise MaskError(f"the chat template does not write turn {turn + 1} unchanged")
        return found

    def _shape(self, marks: Marked, tools: Tools) -> Shape | None:
        key = (self._template, signature(marks.turns), repr(tools) if tools else "")
        found = self._kept.pop(key, None)
        if found is None:
            try:
                found = self._made(marks, tools)
            except MaskError:
                return None  # a template may refuse marks where it takes the row's own words
        self._kept[key] = found
        if len(self._kept) > KEPT:
            del self._kept[next(iter(self._kept))]  # the one that was not asked for the longest
        return found

    def _made(self, marks: Marked, tools: Tools, lead: str | None = None) -> Shape:
        write = partial(apply, self._tokenizer, tools=tools)
        text = write(marks.turns)
        if self._template not in self._tails:
            self._tails[self._template] = tail(partial(apply, self._tokenizer, tools=None))
        return Shape(
            marks,
            write=write,
            tail=self._tails[self._template],
            text=text,
            generated=_generated(self._tokenizer, marks.turns, tools, text),
            lead=lead,
        )

    @property
    def _template(self) -> str:
        return str(self._tokenizer.chat_template)

    @property
    def _code(self) -> Code:
        """What the template looks for in words; nothing of several templates, which are not told apart here."""
        template = self._tokenizer.chat_template
        return read(template) if isinstance(template, str) else NOTHING


def _placed(shape: Shape, text: str, marks: Marked, wanted: Sequence[int]) -> Found | None:
    """The turns of a row, by its shape; None where it does not fit."""
    ahead = shape.fit(text, marks)
    if ahead is None:
        return None
    unwritten = tuple(turn for turn in wanted if shape.unwritten(turn))
    return Found(tuple(shape.placed(turn, ahead) for turn in wanted), unwritten)

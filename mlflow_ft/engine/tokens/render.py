"""Conversations as text, by the tokenizer's own chat template, and where in the text the assistant speaks.

There are three ways to find the assistant's spans; each turn uses the most reliable one that its template allows:

generation markers   the template marks what is generated: {% generation %} ... {% endgeneration %}
prefix differences   what the template adds to the prompt that a server would render:
                         render(messages[:i], add_generation_prompt=True)  "...<|im_start|>assistant\\n"
                         render(messages[:i + 1])                          "...<|im_start|>assistant\\nHi!<|im_end|>"
substitution         where later turns change how an earlier one is written (thoughts are dropped, the system prompt
                     moves), a mark replaces the turn's words, and the text around the mark must stay the same

They are found in the conversation's shape (`spans`), once for all rows with that shape; then each row must match it.
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
from mlflow_ft.engine.tokens.placeholders import NOTHING, Marked, marked, signature
from mlflow_ft.engine.tokens.spans import MaskError, Shape, Span, Tail, Way, tail
from mlflow_ft.engine.tokens.template_code import Code, read
from mlflow_ft.rows import Example, Message

__all__ = ["MaskError", "Rendered", "Shapes", "Span", "Way", "apply", "prompt_ids", "prompt_text", "render"]

MARKERS = re.compile(r"\{%-?\s*generation\s*-?%\}")
REFUSALS = (TemplateError, TypeError, LookupError, ValueError, AttributeError, ArithmeticError)
"""What a template raises when it cannot write a conversation."""
MANY = 8
"""At most so many turns are located one by one in a row that shares no shape with others."""
KEPT = 256
"""Shapes kept in memory: enough for every usual number of turns."""
Tools = Sequence[Mapping[str, Any]] | None


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """A conversation as text, and where the assistant speaks in it."""

    text: str
    spans: tuple[Span, ...]
    unwritten: tuple[int, ...] = ()
    """The learned turns whose thoughts the template omits."""


class Located(NamedTuple):
    """The spans of the learned turns, and which of these turns lose their thoughts."""

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
    """Render a conversation, and find the span of every learned turn.

    `shapes` caches results for later rows of the same tokenizer.

    Raises:
        MaskError: the template rejects the turns, or the assistant's text cannot be separated from the rest.
    """
    text = apply(tokenizer, messages, tools)
    wanted = [turn for turn, is_learned in enumerate(learned) if is_learned]
    try:
        located = (shapes or Shapes(tokenizer)).spans(text, messages, wanted, tools)
    except MaskError as error:
        raise MaskError(str(error), text=text) from error
    template = str(tokenizer.chat_template)
    aside = [turn for turn in wanted if thoughts.are_lost(messages[turn], text, template)]
    return Rendered(text=text, spans=located.spans, unwritten=tuple(sorted({*located.unwritten, *aside})))


def prompt_text(tokenizer: PreTrainedTokenizerFast, messages: Sequence[Message], tools: Tools = None) -> str:
    """Render the turns before an answer, ready for the model to continue."""
    return apply(tokenizer, messages, tools, prompt=True)


def prompt_ids(tokenizer: PreTrainedTokenizerFast, example: Example) -> list[int]:
    """The tokens before an example's answer, ending with the generation prompt."""
    text = prompt_text(tokenizer, example.prompt, example.tools)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


# --- the template


def apply(
    tokenizer: PreTrainedTokenizerFast,
    messages: Sequence[Message],
    tools: Tools,
    *,
    prompt: bool = False,
    template: str | None = None,
) -> str:
    """Render the turns with the chat template, or with `template`; arguments are passed as text where it needs that.

    Raises:
        MaskError: the template rejects the conversation.
    """
    listed: Any = [dict(tool) for tool in tools] if tools else None
    options: Any = {"tools": listed, "chat_template": template, "add_generation_prompt": prompt, "tokenize": False}
    refusal: Exception | None = None
    for turns in _ways_to_put(messages):
        try:
            text = str(tokenizer.apply_chat_template(turns, **options))
        except REFUSALS as error:
            refusal = refusal or error  # report the first
        else:
            if not _written_as_python(turns, text):
                return text
            refusal = refusal or ValueError("it writes the arguments of a call as Python, not as JSON")
    raise MaskError(f"the chat template rejects the conversation: {refusal}") from refusal


def _ways_to_put(messages: Sequence[Message]) -> Iterator[list[dict[str, Any]]]:
    """The turns unchanged; then with the empty content and the text arguments that some templates require."""
    plain = [dict(message) for message in messages]
    yield plain
    if any(turn.get("tool_calls") for turn in plain):
        worded = [{"content": "", **turn} if turn.get("tool_calls") else turn for turn in plain]
        yield worded
        yield [_arguments_as_text(turn) for turn in plain]
        yield [_arguments_as_text(turn) for turn in worded]


def _arguments_as_text(message: Mapping[str, Any]) -> dict[str, Any]:
    calls = [
        {**call, "function": {**call["function"], "arguments": json.dumps(arguments, ensure_ascii=False)}}
        if isinstance(arguments := call.get("function", {}).get("arguments"), Mapping)
        else call
        for call in message.get("tool_calls") or ()
    ]
    return {**message, "tool_calls": calls} if calls else dict(message)


def _written_as_python(turns: Sequence[Message], text: str) -> bool:
    """Whether the text has the arguments of a call as Python writes them, without a turn that says so."""
    arguments = [call.get("function", call).get("arguments") for turn in turns for call in turn.get("tool_calls") or ()]
    written = {str(value) for value in arguments if isinstance(value, Mapping) and value}
    if not any(start in text for start in {form[:2] for form in written}):  # `{'`, which JSON never has
        return False
    said = "\0".join(str(turn.get("content")) for turn in turns)
    return any(form in text and form not in said for form in written)


def _generated(
    tokenizer: PreTrainedTokenizerFast, messages: Sequence[Message], tools: Tools, text: str
) -> list[tuple[int, int]]:
    """What the template marks as generated, in characters of the text; [] if it has no markers."""
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
    """The shapes of one tokenizer's conversations; a row with a known shape is rendered only once."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        self._kept: dict[tuple[str, str, str], Shape] = {}
        self._tails: dict[str, Tail] = {}

    def spans(self, text: str, messages: Sequence[Message], wanted: Sequence[int], tools: Tools) -> Located:
        """The spans of the wanted turns in the text of a conversation.

        Raises:
            MaskError: one of them cannot be separated from the rest.
        """
        if not wanted:
            return Located((), ())
        marks = marked(messages, self._code)
        shape = self._shape(marks, tools)
        if shape is not None:
            for turn in wanted:
                shape.span(turn)  # report errors of the template first
            if located := _placed(shape, text, marks, wanted):
                return located
        if len(wanted) > MANY and (located := self._by_own_words(text, messages, wanted, tools)):
            return located
        alone = [self._alone(text, messages, turn, shape.lead(turn) if shape else None, tools) for turn in wanted]
        return Located(
            tuple(span for part in alone for span in part.spans),
            tuple(turn for part in alone for turn in part.unwritten),
        )

    def _by_own_words(
        self, text: str, messages: Sequence[Message], wanted: Sequence[int], tools: Tools
    ) -> Located | None:
        """The spans with only the assistant's text replaced, for templates that depend on what others say.

        None if they cannot be found this way.
        """
        marks = marked(messages, self._code, role="assistant")
        try:
            return _placed(self._made(marks, tools), text, marks, wanted)
        except MaskError:
            return None

    def _alone(self, text: str, messages: Sequence[Message], turn: int, lead: str | None, tools: Tools) -> Located:
        """The span of a turn with only its own words replaced."""
        marks = marked(messages, self._code, only=turn)
        located = _placed(self._made(marks, tools, lead), text, marks, [turn])
        if located is None:
            raise MaskError(f"the chat template does not write turn {turn + 1} unchanged")
        return located

    def _shape(self, marks: Marked, tools: Tools) -> Shape | None:
        key = (self._template, signature(marks.turns), repr(tools) if tools else "")
        shape = self._kept.pop(key, None)
        if shape is None:
            try:
                shape = self._made(marks, tools)
            except MaskError:
                return None  # a template may reject marks but accept the row's own words
        self._kept[key] = shape
        if len(self._kept) > KEPT:
            del self._kept[next(iter(self._kept))]  # the least recently used
        return shape

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
        """What the template looks for in words; nothing if there are several templates."""
        template = self._tokenizer.chat_template
        return read(template) if isinstance(template, str) else NOTHING


def _placed(shape: Shape, text: str, marks: Marked, wanted: Sequence[int]) -> Located | None:
    """The turns of a row, by its shape; None if the row does not match it."""
    ahead = shape.fit(text, marks)
    if ahead is None:
        return None
    unwritten = tuple(turn for turn in wanted if shape.unwritten(turn))
    return Located(tuple(shape.placed(turn, ahead) for turn in wanted), unwritten)

"""Conversations as text, by the tokenizer's own chat template, and where in the text the assistant speaks.

Three ways lead to the assistant's spans, the surest that a template allows for each turn:

generation markers   the template says itself what is generated: {% generation %} ... {% endgeneration %}
prefix differences   what the template adds to the prompt that a server would render:
                         render(messages[:i], add_generation_prompt=True)  "...<|im_start|>assistant\\n"
                         render(messages[:i + 1])                          "...<|im_start|>assistant\\nHi!<|im_end|>"
substitution         where later turns change how an earlier one is written (thoughts are dropped, the system prompt
                     moves), the turn's words are replaced by a mark, and the text around the mark must stay the same
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os.path import commonprefix
from typing import Any, Literal

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from mlflow_ft.rows import Message

Way = Literal["generation markers", "prefix differences", "substitution", "whole text", "prompt"]
MARKERS = re.compile(r"\{%-?\s*generation\s*-?%\}")
SUBSTITUTE = "Zq7Jx0Wk"
"""Stands for a turn's words; letters and digits alone, which no template trims or splits."""
THOUGHT_ENDS = "</think>"


class MaskError(ValueError):
    """The loss mask of one row cannot be proved; the message says why, `text` is the row as the template writes it."""

    def __init__(self, message: str, *, text: str = "") -> None:
        super().__init__(message)
        self.text = text


@dataclass(frozen=True, kw_only=True)
class Span:
    """Where the assistant speaks in a rendered text, in characters."""

    begin: int
    said: int
    """Behind the last word of the turn; its end, where it is not words alone (a tool call)."""
    end: int
    """No token behind this place belongs to the turn; its end-of-turn token stands before."""
    plain: bool
    """Words alone, so that the first mark behind them ends the turn."""
    way: Way


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """A conversation as text, and where the assistant speaks in it."""

    text: str
    spans: tuple[Span, ...]


def render(
    tokenizer: PreTrainedTokenizerFast,
    messages: Sequence[Message],
    learned: Sequence[bool],
    tools: Sequence[Mapping[str, Any]] | None = None,
    *,
    marks: tuple[str, ...] = (),
) -> Rendered:
    """Render a conversation, and find the span of every turn that is learned.

    `marks` are the tokens that were added to the vocabulary, by which templates end turns.

    Raises:
        MaskError: the template refuses the turns, or what the assistant says cannot be told from the rest.
    """
    turns = _Turns(tokenizer, messages, tools, marks)
    wanted = [index for index, is_learned in enumerate(learned) if is_learned]
    marked = turns.marked() if wanted and turns.has_markers else {}
    spans = tuple(turns.span(index, marked.get(index)) for index in wanted)
    return Rendered(text=turns.whole, spans=spans)


def prompt_text(
    tokenizer: PreTrainedTokenizerFast, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None = None
) -> str:
    """Render the turns that come before an answer, ready for the model to go on."""
    return apply(tokenizer, messages, tools, prompt=True)


def apply(
    tokenizer: PreTrainedTokenizerFast,
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]] | None,
    *,
    prompt: bool = False,
) -> str:
    """What the chat template makes of the turns. Calls whose arguments it wants as text are given so.

    Raises:
        MaskError: the template refuses the conversation.
    """
    plain, listed = [dict(message) for message in messages], [dict(tool) for tool in tools] if tools else None
    try:
        return _applied(tokenizer, plain, listed, prompt=prompt)
    except (TemplateError, TypeError, KeyError, IndexError, ValueError, AttributeError) as error:
        written = [_arguments_as_text(message) for message in plain]
        if written != plain:
            try:
                return _applied(tokenizer, written, listed, prompt=prompt)
            except (TemplateError, TypeError, KeyError, IndexError, ValueError, AttributeError):
                pass  # the first refusal is the one to tell
        raise MaskError(f"the chat template refuses the conversation: {error}") from error


def _applied(tokenizer: PreTrainedTokenizerFast, messages: list[Any], tools: Any, *, prompt: bool) -> str:
    return str(tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=prompt))


def _arguments_as_text(message: Mapping[str, Any]) -> dict[str, Any]:
    calls = [
        {**call, "function": {**call["function"], "arguments": json.dumps(call["function"]["arguments"])}}
        for call in message.get("tool_calls", ())
        if isinstance(call.get("function", {}).get("arguments"), Mapping)
    ]
    return {**message, "tool_calls": calls} if calls else dict(message)


class _Turns:
    """One conversation and its renderings."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None,
        marks: tuple[str, ...],
    ) -> None:
        self._tokenizer = tokenizer
        self._marks = marks
        self._messages = messages
        self._tools = tools
        self.whole = apply(tokenizer, messages, tools)

    def _up_to(self, index: int, *, prompt: bool = False) -> str:
        if index == 0:
            raise self._refused("turn 1 is the assistant's, and nothing stands before it")
        return apply(self._tokenizer, self._messages[:index], self._tools, prompt=prompt)

    def _refused(self, reason: str) -> MaskError:
        return MaskError(reason, text=self.whole)

    # --- the surest way that the template allows

    def span(self, index: int, marked: tuple[int, int] | None) -> Span:
        if marked:
            return self._from_markers(index, *marked)
        last = index == len(self._messages) - 1
        before = self._up_to(index, prompt=True)
        after = self.whole if last else self._up_to(index + 1)
        found = self._by_prefix(index, before, after)
        return found or self._by_substitution(index, before)

    # --- generation markers

    @property
    def has_markers(self) -> bool:
        return bool(MARKERS.search(self._template))

    @property
    def _template(self) -> str:
        return str(self._tokenizer.get_chat_template(tools=self._listed))

    @property
    def _listed(self) -> Any:
        return [dict(tool) for tool in self._tools] if self._tools else None

    def marked(self) -> dict[int, tuple[int, int]]:
        """By turn of the assistant, what the template marks; {} where it does not mark each of them once."""
        messages = [{key: value for key, value in turn.items() if value is not None} for turn in self._messages]
        special: dict[str, Any] = self._tokenizer.special_tokens_map
        render_marked: Any = render_jinja_template  # its annotations leave out what it returns
        (text,), (indices,) = render_marked(
            [messages],
            tools=self._listed,
            chat_template=self._template,
            return_assistant_tokens_mask=True,
            **special,
        )
        turns = [index for index, turn in enumerate(self._messages) if turn["role"] == "assistant"]
        found = [(begin, end) for begin, end in indices if end > begin]
        return dict(zip(turns, found, strict=True)) if text == self.whole and len(turns) == len(found) else {}

    def _from_markers(self, index: int, begin: int, end: int) -> Span:
        speech = self.whole[begin:end]
        said, plain = self._said(index, speech)
        if said is None:
            raise self._refused(f"what the chat template marks as generated is not turn {index + 1}")
        # an end-of-turn token that the markers leave out stands right behind them, whether or not turns follow
        after = self.whole if index == len(self._messages) - 1 else self._up_to(index + 1)
        behind = len(_common(after, self.whole))
        return Span(begin=begin, said=begin + said, end=max(end, behind), plain=plain, way="generation markers")

    # --- prefix differences

    def _by_prefix(self, index: int, before: str, after: str) -> Span | None:
        """The turn is what the template adds to the prompt; None where later turns change how it is written."""
        common = _common(after, self.whole)
        if not common.startswith(before):
            return None
        speech = common[len(before) :]
        said, plain = self._said(index, speech)
        if said is None and common != after:
            return None
        if said is None:
            raise self._refused(self._missing(index, speech))
        if common != after and not plain:
            return None
        return Span(begin=len(before), said=len(before) + said, end=len(common), plain=plain, way="prefix differences")

    def _said(self, index: int, speech: str) -> tuple[int | None, bool]:
        """Where in a speech the turn's words end (None where it does not hold them), and whether it is words alone."""
        turn = self._messages[index]
        content = turn.get("content")
        words = content.strip() if isinstance(content, str) else ""
        place = _find_end(words, speech, self._marks)
        names = [str(call.get("function", call).get("name")) for call in turn.get("tool_calls", ())]
        if place is None or not all(name in speech for name in names):
            return None, False
        return (place, True) if not names else (len(speech), False)

    def _missing(self, index: int, speech: str) -> str:
        turn = self._messages[index]
        if turn.get("tool_calls"):
            return f"the chat template does not write the tool calls of turn {index + 1}"
        if _find_end(str(turn["content"]).rpartition(THOUGHT_ENDS)[2].strip(), speech, self._marks) is not None:
            return f"the chat template leaves out what the assistant thinks in turn {index + 1}, its last"
        return f"the chat template does not write turn {index + 1} as it is"

    # --- substitution

    def _by_substitution(self, index: int, before: str) -> Span:
        """The turn's words are what changes where they are replaced; the text on either side must stay."""
        content = self._messages[index].get("content")
        if not isinstance(content, str) or not content.strip() or self._messages[index].get("tool_calls"):
            raise self._refused(self._differs(index))
        if SUBSTITUTE in self.whole:
            raise self._refused(f"turn {index + 1} cannot be found: the row holds the letters {SUBSTITUTE}")
        messages = [dict(turn) for turn in self._messages]
        messages[index]["content"] = SUBSTITUTE
        around = apply(self._tokenizer, messages, self._tools).split(SUBSTITUTE)
        alone = apply(self._tokenizer, messages[: index + 1], self._tools).split(SUBSTITUTE)
        if len(around) != 2 or len(alone) != 2 or len(around[0]) + len(around[1]) > len(self.whole):
            raise self._refused(self._differs(index))
        head, tail = around
        words = self.whole[len(head) : len(self.whole) - len(tail)]
        if not (self.whole.startswith(head) and self.whole.endswith(tail) and _ends_with(content, words)):
            raise self._refused(self._differs(index))
        begin = len(before) if head.startswith(before) else len(head)
        said = len(self.whole) - len(tail)
        end = said + len(_common(tail, alone[1]))
        return Span(begin=begin, said=said, end=end, plain=True, way="substitution")

    def _differs(self, index: int) -> str:
        return (
            f"the chat template renders turn {index + 1} differently when later turns follow, "
            "so what the assistant says cannot be told from the rest"
        )


def _common(one: str, other: str) -> str:
    return commonprefix([one, other])  # noqa: RUF071  # letters are what is meant


def _find_end(words: str, speech: str, marks: tuple[str, ...]) -> int | None:
    """Behind the last of the words in a speech; white space, which templates trim and add, does not count."""
    if not words:
        return 0
    core = speech.rstrip()
    while marks and core.endswith(marks):
        core = core.removesuffix(next(mark for mark in marks if core.endswith(mark))).rstrip()
    if core.endswith(words):
        return len(core)  # the usual case; looking for a short word would find it in `<|im_end|>` as well
    exact = speech.rfind(words)
    if exact >= 0:
        return exact + len(words)
    letters = [place for place, letter in enumerate(speech) if not letter.isspace()]
    squashed = "".join(speech[place] for place in letters)
    wanted = "".join(words.split())
    found = squashed.rfind(wanted)
    return letters[found + len(wanted) - 1] + 1 if found >= 0 else None


def _ends_with(content: str, words: str) -> bool:
    """Whether the words are the turn's, or the end of them, where the template drops what was thought before."""
    said, whole = "".join(words.split()), "".join(content.split())
    return bool(said) and (said == whole or (THOUGHT_ENDS in content and whole.endswith(said)))

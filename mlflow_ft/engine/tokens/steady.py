"""Is a row written the same way every time? The first row of each form is written again, also at another time.

A template that draws random numbers, or writes where an object lies in memory, writes each prompt otherwise: what was
proved of a row then holds no more when the model is trained, judged or served. One that writes the date is told that of
the run (`clock`); what is learned must not depend on it, for the model will be served on other days.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedTokenizerFast

from mlflow_ft.engine.tokens import clock
from mlflow_ft.engine.tokens.render import MaskError, Rendered, Shapes, apply, prompt_text, render
from mlflow_ft.engine.tokens.template_code import read
from mlflow_ft.rows import Example

MOST_FORMS = 64
"""Rows that are written again."""
FRESH = "{##}\n"
"""Before a template, so that it is compiled anew; Jinja takes both away."""
REMEDY = "use a template that does not (--data.chat_template)"


class Steady:
    """Renders the rows of one tokenizer, and watches what they depend on."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        self._shapes = Shapes(tokenizer)
        self._seen: set[str] = set()
        self.dates: dict[str, str] = {}
        """By format, what the held clock told the template, and the template wrote into a row."""

    def rendered(self, example: Example) -> list[Rendered]:
        """The texts of a row, each with its spans; a text that is learned whole, and a prompt, have none.

        Raises:
            MaskError: a mask cannot be proved, or the template writes the row otherwise the next time.
        """
        if example.kind == "text":
            return [Rendered(text=example.text or "", spans=())]
        form = _form(example)
        is_new = form not in self._seen and len(self._seen) < MOST_FORMS
        if is_new:
            self._seen.add(form)
        with self._drawing_nothing(example), clock.listening() as asked:
            try:
                found = self._written(example, self._shapes)
            except MaskError:
                if is_new:
                    self._again(example, self._texts(example))  # it may be the reason
                raise
            if is_new:
                self._again(example, [one.text for one in found])
        self.dates |= {wanted: told for wanted, told in asked.items() if any(told in one.text for one in found)}
        if is_new and asked:
            self._at_another_time(example, found, asked)
        return found

    def _written(self, example: Example, shapes: Shapes) -> list[Rendered]:
        if example.kind == "prompt":
            return [Rendered(text=prompt_text(self._tokenizer, example.messages, example.tools), spans=())]
        return [
            render(self._tokenizer, messages, learned, example.tools, shapes=shapes)
            for messages, learned in example.conversations
        ]

    @contextmanager
    def _drawing_nothing(self, example: Example) -> Iterator[None]:
        """Refuse a row for which the template draws random numbers, whatever else is wrong with it then."""
        if not any(read(one).draws for one in clock.templates(self._tokenizer)):
            yield
            return
        state = random.getstate()
        try:
            yield
        finally:
            if random.getstate() != state:
                raise MaskError(f"the chat template draws random numbers; {REMEDY}", text=self._texts(example)[0])

    def _again(self, example: Example, first: list[str]) -> None:
        """Write a row by the template as if it were read for the first time: what lies elsewhere in memory shows."""
        listed: Any = [dict(tool) for tool in example.tools] if example.tools else None
        if self._texts(example, FRESH + str(self._tokenizer.get_chat_template(tools=listed))) != first:
            message = f"the chat template writes the row differently each time; {REMEDY}"
            raise MaskError(message, text=first[0])

    def _texts(self, example: Example, template: str | None = None) -> list[str]:
        prompt = example.kind == "prompt"
        talks = [example.messages] if prompt else [messages for messages, _ in example.conversations]
        return [apply(self._tokenizer, talk, example.tools, prompt=prompt, template=template) for talk in talks]

    def _at_another_time(self, example: Example, found: list[Rendered], asked: Mapping[str, str]) -> None:
        """Write the row at another time, when the same must be learned of it."""
        with clock.held(clock.moved(clock.current())):
            later = self._written(example, Shapes(self._tokenizer))
        if [one.text for one in later] != [one.text for one in found]:
            self.dates |= asked
        if [_learned(one) for one in later] != [_learned(one) for one in found]:
            message = f"the chat template writes the date or time into the assistant's turns; {REMEDY}"
            raise MaskError(message, text=found[0].text)


def _form(example: Example) -> str:
    """The same for rows of which a template can hardly write one steadily and the other not."""
    turns = (*example.messages, *example.chosen)
    parts = {repr((turn["role"], sorted(turn), bool(turn.get("content")))) for turn in turns}
    return repr((example.kind, bool(example.tools), sorted(parts)))


def _learned(one: Rendered) -> list[tuple[Any, ...]]:
    """The speeches of a text, wherever they stand in it."""
    return [
        (one.text[span.begin : span.end], *(place - span.begin for place in (span.said, span.close)), span.plain)
        for span in one.spans
    ]

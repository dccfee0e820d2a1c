"""Check that rendering is deterministic: the first row of each form is rendered again, also at another time.

A template that draws random numbers, or writes memory addresses, renders each prompt differently: what was proved of a
row then does not hold when the model is trained, judged or served. A template that writes the date gets that of the run
(`clock`); what is learned must not depend on it, because the model will be served on other days.
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
"""At most so many rows are rendered again."""
FRESH = "{##}\n"
"""Put before a template so that it is compiled again; Jinja removes both characters and line end."""
REMEDY = "use a template that does not (--data.chat_template)"


class Steady:
    """Renders rows with one tokenizer, and checks that the result is reproducible."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        self._shapes = Shapes(tokenizer)
        self._seen: set[str] = set()
        self.dates: dict[str, str] = {}
        """The dates and times that the template has written into rows, by format."""

    def rendered(self, example: Example) -> list[Rendered]:
        """The texts of a row, each with its spans; plain texts and prompts have none.

        Raises:
            MaskError: a mask cannot be proved, or the template does not render the row the same way again.
        """
        if example.kind == "text":
            return [Rendered(text=example.text or "", spans=())]
        form = _form(example)
        is_new = form not in self._seen and len(self._seen) < MOST_FORMS
        if is_new:
            self._seen.add(form)
        with self._drawing_nothing(example), clock.listening() as dates:
            try:
                renderings = self._written(example, self._shapes)
            except MaskError:
                if is_new:
                    self._again(example, self._texts(example))  # it may be the reason
                raise
            if is_new:
                self._again(example, [rendering.text for rendering in renderings])
        self.dates |= {
            wanted: text for wanted, text in dates.items() if any(text in rendering.text for rendering in renderings)
        }
        if is_new and dates:
            self._at_another_time(example, renderings, dates)
        return renderings

    def _written(self, example: Example, shapes: Shapes) -> list[Rendered]:
        if example.kind == "prompt":
            return [Rendered(text=prompt_text(self._tokenizer, example.messages, example.tools), spans=())]
        return [
            render(self._tokenizer, messages, learned, example.tools, shapes=shapes)
            for messages, learned in example.conversations
        ]

    @contextmanager
    def _drawing_nothing(self, example: Example) -> Iterator[None]:
        """Refuse a row for which the template draws random numbers; this error takes precedence over others."""
        if not any(read(template).draws for template in clock.templates(self._tokenizer)):
            yield
            return
        state = random.getstate()
        try:
            yield
        finally:
            if random.getstate() != state:
                raise MaskError(f"the chat template draws random numbers; {REMEDY}", text=self._texts(example)[0])

    def _again(self, example: Example, first: list[str]) -> None:
        """Render a row with a newly compiled template: memory addresses then differ."""
        listed: Any = [dict(tool) for tool in example.tools] if example.tools else None
        if self._texts(example, FRESH + str(self._tokenizer.get_chat_template(tools=listed))) != first:
            message = f"the chat template writes the row differently each time; {REMEDY}"
            raise MaskError(message, text=first[0])

    def _texts(self, example: Example, template: str | None = None) -> list[str]:
        prompt = example.kind == "prompt"
        talks = [example.messages] if prompt else [messages for messages, _ in example.conversations]
        return [apply(self._tokenizer, talk, example.tools, prompt=prompt, template=template) for talk in talks]

    def _at_another_time(self, example: Example, renderings: list[Rendered], dates: Mapping[str, str]) -> None:
        """Render the row at another time: the learned text must be the same."""
        with clock.held(clock.moved(clock.current())):
            later = self._written(example, Shapes(self._tokenizer))
        if [rendering.text for rendering in later] != [rendering.text for rendering in renderings]:
            self.dates |= dates
        if [_learned(rendering) for rendering in later] != [_learned(rendering) for rendering in renderings]:
            message = f"the chat template writes the date or time into the assistant's turns; {REMEDY}"
            raise MaskError(message, text=renderings[0].text)


def _form(example: Example) -> str:
    """The same string for rows that a template should render alike."""
    turns = (*example.messages, *example.chosen)
    parts = {repr((turn["role"], sorted(turn), bool(turn.get("content")))) for turn in turns}
    return repr((example.kind, bool(example.tools), sorted(parts)))


def _learned(rendering: Rendered) -> list[tuple[Any, ...]]:
    """The learned parts of a text, wherever they are in it."""
    return [
        (rendering.text[span.begin : span.end], *(place - span.begin for place in (span.said, span.close)), span.plain)
        for span in rendering.spans
    ]

"""The finding about answers that do not fit the prompt that a server writes: it opens thoughts, and they have none.

template, for a prompt    <|im_start|>assistant\\n<think>\\n         of a model that always thinks
row                       <|im_start|>assistant\\nParis.<|im_end|>   learned where no server lets it begin
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from mlflow_ft.config.schema import Config
from mlflow_ft.data import store
from mlflow_ft.preparing.checking import OPENED, Side
from mlflow_ft.rows import Example
from mlflow_ft.values import CheckResult

TAG = re.compile(r"[<\[◁](?:\w+:)?(?:think|thinking|thoughts?|reason|reasoning)[>\]▷]")
ENDING = re.compile(rf"({TAG.pattern})\s*$")
MOST_ROWS = 200
"""Rows that are looked at: a template treats all alike, and rendering long ones takes time."""


def find(side: Side, config: Config, tokenizer: Any) -> Iterator[CheckResult]:
    """The finding about the first training rows; none if the template opens no thoughts."""
    template = tokenizer.chat_template
    if side.stored.record.kind != "conversation" or not isinstance(template, str) or not TAG.search(template):
        return
    rows = side.indices[:MOST_ROWS]
    places = store.places(side.stored.table, side.stored.files, rows)
    found = [
        {"file": place.file, "line": place.line, "message": message}
        for place, example in zip(places, store.examples(side.stored.table, rows), strict=True)
        if (message := misfit(tokenizer, example))
    ]
    if found:
        yield CheckResult(
            name=OPENED,
            severity="warn",
            summary=f"of the first {len(rows)} rows: the prompt that a server writes opens thoughts, and the "
            "answer has none or opens them again",
            count=len(found),
            share=len(found) / len(rows),
            examples=tuple(found[: config.checks.max_examples]),
            remedy="put thoughts into the answers (`reasoning_content`), or train and serve with a template whose "
            "prompt does not open them (--data.chat_template)",
        )


def misfit(tokenizer: Any, example: Example) -> str | None:
    """What is wrong with the last answer after the prompt that a server writes, if that opens thoughts."""
    from mlflow_ft.engine.tokens import render

    if example.learned is not None and not example.learned[-1]:
        return None
    with suppress(render.MaskError, *render.REFUSALS):  # whatever asks for an answer reports these
        prompt = render.prompt_text(tokenizer, example.messages[:-1], example.tools)
        opened = ENDING.search(prompt)
        if opened is None:
            return None
        tag = opened[1]
        whole = render.apply(tokenizer, example.messages, example.tools)
        said = whole[len(prompt) :] if whole.startswith(prompt) else ""
        if said.lstrip().startswith(tag):
            return f"a server's prompt ends in {tag}, and the answer begins with it again"
        if f"{tag[0]}/{tag[1:]}" not in said:
            return f"a server's prompt ends in {tag}, and the answer has no thoughts"
    return None

"""Answers without thoughts, for a template whose prompt opens them."""

from __future__ import annotations

from typing import Any

import pytest

from mlflow_ft.preparing import opened_thoughts
from mlflow_ft.rows import Example
from mlflow_ft.testing import CHATML, make_tiny_tokenizer
from tests.engine.templates.qwen import QWEN3
from tests.preparing.test_turns import THINKS, Make, check, make, model, talks

__all__ = ["make", "model"]

TURNS = "{% for turn in messages %}<|im_start|>{{ turn.role }}\n{{ turn.content }}<|im_end|>\n{% endfor %}"
OPENED = "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
ALWAYS = TURNS + OPENED
"""As DeepSeek-R1's distilled models and Qwen3's thinking ones: a row is written as it is."""
CLOSES = (
    TURNS.replace(
        "{{ turn.content }}",
        "{% if turn.role == 'assistant' and '</think>' not in turn.content %}<think>\n\n</think>\n\n{% endif %}"
        "{{ turn.content }}",
    )
    + OPENED
)
"""As Qwen3.5: a row without thoughts is written with empty ones."""
TWICE = TURNS.replace("{{ turn.content }}", "{{ '<think>\n' if turn.role == 'assistant' }}{{ turn.content }}") + OPENED
"""As Nemotron Nano 2: the tag is written before any answer."""
PLAIN, THINKING = "say it", THINKS.format("it")


@pytest.mark.parametrize(
    ("template", "answer", "wrong"),
    [
        (ALWAYS, PLAIN, "ends in <think>, and the answer has no thoughts"),
        (ALWAYS, THINKING, None),
        (CLOSES, PLAIN, None),
        (CLOSES, THINKING, None),
        (TWICE, PLAIN, "ends in <think>, and the answer has no thoughts"),
        (TWICE, THINKING, "ends in <think>, and the answer begins with it again"),
        (TWICE, THINKING.removeprefix("<think>\n"), None),
        *((template, answer, None) for template in (CHATML, QWEN3) for answer in (PLAIN, THINKING)),
    ],
)
def test_an_answer_fits_the_prompt_or_is_reported(template: str, answer: str, wrong: str | None) -> None:
    """trl#2919, ms-swift#5927."""
    turns = ({"role": "user", "content": "ask"}, {"role": "assistant", "content": answer})
    tokenizer = make_tiny_tokenizer(chat_template=template)
    found = opened_thoughts.misfit(tokenizer, Example(messages=turns))
    assert found == (f"a server's prompt {wrong}" if wrong else None)
    assert opened_thoughts.misfit(tokenizer, Example(messages=turns, learned=(False, False))) is None


def test_it_is_a_finding_of_the_training_rows(make: Make) -> None:
    data: list[Any] = [*talks(6, rounds=1, answer="plainly {0}"), *talks(6, rounds=1)]
    for number, row in enumerate(data):
        row["messages"][0] = {"role": "user", "content": f"ask {number} of it"}
    checked = make(data, chat_template=ALWAYS)
    finding = check(checked, "opened-thoughts")
    assert (finding.severity, finding.count in (5, 6), len(finding.examples)) == ("warn", True, 5)
    assert finding.summary.startswith(f"of the first {checked.train.count} rows: the prompt that a server writes opens")
    assert "opened-thoughts" not in {result.name for result in make(data, chat_template=CHATML).report.checks}

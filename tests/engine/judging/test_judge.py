"""Losses and answers do not depend on what else is in the batch."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
from torch.nn import functional

from mlflow_ft.engine.judging import judge
from mlflow_ft.rows import Encoded, Example


def asked(*questions: str) -> list[Example]:
    return [
        Example(messages=({"role": "user", "content": text}, {"role": "assistant", "content": "?"}))
        for text in questions
    ]


def uneven(rows: list[Encoded]) -> list[Encoded]:
    """Rows of different lengths, from a few tokens learned to none."""
    cut = [Encoded(input_ids=row.input_ids[: 6 + 3 * n], labels=row.labels[: 6 + 3 * n]) for n, row in enumerate(rows)]
    return [*cut, *rows]


def answers(module: Any, run: SimpleNamespace, examples: list[Example], **more: int) -> list[Any]:
    return judge.answers(module, run.bench.data, examples, **({"max_new_tokens": 12, "batch_size": 3} | more))


def test_answers_are_those_that_were_learned(module: Any, learned: SimpleNamespace) -> None:
    examples = list(learned.bench.data.train.examples[:7])
    answered = answers(module, learned, examples)
    assert [answer.text for answer in answered] == [answer.expected for answer in answered]
    assert [answer.expected for answer in answered] == [example.messages[-1]["content"] for example in examples]
    assert [answer.prompt for answer in answered] == [example.messages[:-1] for example in examples]
    assert all(answer.finished for answer in answered)


@pytest.mark.parametrize("batch_size", [2, 5])
def test_padding_changes_no_answer(module: Any, learned: SimpleNamespace, batch_size: int) -> None:
    examples = [*learned.bench.data.train.examples[:4], *asked("x", "red " * 20, "apple, stone; river? lamp " * 4)]
    alone = answers(module, learned, examples, batch_size=1)
    assert len({answer.text for answer in alone}) > 4
    assert answers(module, learned, examples, batch_size=batch_size) == alone


def test_finished_says_whether_the_model_ended_its_turn(module: Any, learned: SimpleNamespace) -> None:
    (example,) = learned.bench.data.train.examples[:1]
    tokenizer = learned.bench.data.tokenizer
    needed = len(tokenizer(example.messages[-1]["content"], add_special_tokens=False)["input_ids"]) + 1
    (whole,) = answers(module, learned, [example], max_new_tokens=needed)
    (cut,) = answers(module, learned, [example], max_new_tokens=needed - 1)
    assert (whole.finished, whole.text) == (True, whole.expected)
    assert (cut.finished, cut.text) == (False, whole.expected)


def test_the_pad_token_ends_no_turn(module: Any, learned: SimpleNamespace) -> None:
    ends = module.generation_config.eos_token_id
    assert ends == list(learned.bench.data.stop_token_ids)
    assert learned.bench.data.tokenizer.pad_token_id not in ends


@pytest.mark.parametrize("batch_size", [2, 3, 64])
def test_losses_do_not_depend_on_the_batch(module: Any, learned: SimpleNamespace, batch_size: int) -> None:
    rows = uneven(list(learned.bench.data.eval.encoded))
    alone = [loss for row in rows for loss in judge.row_losses(module, [row], batch_size=1, pad_token_id=1)]
    losses = judge.row_losses(module, rows, batch_size=batch_size, pad_token_id=1)
    assert [count for _, count in losses] == [count for _, count in alone] == [row.supervised for row in rows]
    assert [total for total, _ in losses] == pytest.approx([total for total, _ in alone], rel=1e-3, abs=1e-4)


def test_a_loss_by_hand(module: Any, learned: SimpleNamespace) -> None:
    import torch

    row = learned.bench.data.eval.encoded[0]
    with torch.no_grad():
        logits = module(input_ids=torch.tensor([row.input_ids])).logits[0, :-1]
    wanted = functional.cross_entropy(logits, torch.tensor(row.labels[1:]), ignore_index=-100, reduction="sum").item()
    ((loss, count),) = judge.row_losses(module, [row], batch_size=4, pad_token_id=0)
    assert loss == pytest.approx(wanted, rel=1e-4)
    assert count == row.supervised


def test_the_mean_is_over_tokens_and_not_over_rows() -> None:
    assert judge.mean_loss([(2.0, 1), (3.0, 9), (0.0, 0)]) == pytest.approx(0.5)
    assert math.isnan(judge.mean_loss([(0.0, 0)]))


def test_the_held_out_loss_of_the_curve_is_that_of_the_judge(module: Any, learned: SimpleNamespace) -> None:
    losses = judge.row_losses(module, learned.bench.data.eval.encoded, batch_size=1, pad_token_id=1)
    assert learned.bench.curve("eval/loss")[-1] == pytest.approx(judge.mean_loss(losses), rel=1e-3)

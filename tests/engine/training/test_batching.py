"""`training.batching`: rows laid end to end teach the same as padded ones; unproved they are padded, or refused."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file

from mlflow_ft.engine.models import beginnings, row_isolation
from mlflow_ft.engine.models.unpadding import Unpadding
from mlflow_ft.engine.training import batching
from mlflow_ft.errors import ConfigError
from mlflow_ft.rows import Example
from mlflow_ft.testing import WORDS
from tests.rarely import some_always

Bench = Callable[..., Any]
METHODS = ("sft", "lora", "full", "qlora", "dpo", "simpo", "orpo", "kto", "reward")


def rows(*, preferences: bool) -> list[Example]:
    """Conversations, or preferences, of very different lengths."""
    draw = random.Random(1)
    made = []
    for number in range(24):
        words = draw.choices(WORDS, k=(2, 30, 7)[number % 3])
        ask = ({"role": "user", "content": " ".join(words)},)
        good, bad = (
            {"role": "assistant", "content": " ".join(order)} for order in (words[::-1], words[: number % 3 + 1])
        )
        made.append(
            Example(messages=ask, chosen=(good,), rejected=(bad,)) if preferences else Example(messages=(*ask, good))
        )
    return made


def trained(bench: Bench, method: str, how: str, **more: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    preferences = method in ("dpo", "simpo", "orpo", "kto", "reward")
    quick = {"learning_rate": 5e-3, "max_steps": 3, "eval_steps": 3, "training.batching": how}
    setup = bench(method, rows=rows(preferences=preferences), **quick | more)
    result = setup.train()
    [file] = [*(result.folder / "adapter").glob("*.safetensors"), *(result.folder / "model").glob("*.safetensors")]
    return setup, load_file(file)


@pytest.mark.parametrize("method", some_always(METHODS, "sft", "qlora", "dpo", "kto", "reward"))
def test_it_learns_the_same(bench: Bench, method: str) -> None:
    padded, weights = trained(bench, method, "padded")
    joined, others = trained(bench, method, "tokens")
    for key in ("train/loss", "train/grad_norm", "eval/loss"):
        assert joined.curve(key) == pytest.approx(padded.curve(key), rel=1e-4, abs=1e-6), key
    assert len(padded.curve("train/loss")) == 3
    apart = [float((others[name] - weight).abs().max()) for name, weight in weights.items()]
    assert max(apart) < 2e-3, "less than half a step of the optimizer, whose steps have the sign of gradients near 0"


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[Unpadding]:
    """Those that were taken off their model."""
    ended: list[Unpadding] = []
    off = Unpadding.off

    def record(self: Unpadding) -> None:
        ended.append(self)
        off(self)

    monkeypatch.setattr(Unpadding, "off", record)
    return ended


@pytest.mark.parametrize("method", ["dpo", "reward"])
def test_the_prompt_of_two_answers_is_computed_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, ended: list[Unpadding], method: str
) -> None:
    once, _ = trained(bench, method, "tokens")
    monkeypatch.setattr(beginnings, "plan", lambda *_: None)
    twice, _ = trained(bench, method, "tokens")
    first, *_, last = (one.tokens for one in ended)
    assert 0 < first < 0.9 * last
    for key in ("train/loss", "train/grad_norm", "eval/loss"):
        assert once.curve(key) == pytest.approx(twice.curve(key), rel=1e-4, abs=1e-6), key


@pytest.mark.parametrize(("method", "how"), [("lora", "auto"), ("lora", "padded"), ("dpo", "auto")])
def test_auto_leaves_padding_out(bench: Bench, ended: list[Unpadding], method: str, how: str) -> None:
    setup, _ = trained(bench, method, how)
    assert ended, "the model is put back after the training"
    tokens = sum(len(row.input_ids) for row in setup.data.train.encoded)
    assert (ended[0].tokens > tokens) is (how == "auto")
    assert ended[0].tokens <= ended[0].positions
    assert setup.job.run.tags.get("mlflow.mlflow_ft.batching") == ("tokens" if how == "auto" else None)


def test_rows_that_are_all_long_do_without_padding_too(bench: Bench) -> None:
    """The proof is on the beginnings of rows."""
    draw = random.Random(1)
    long = [
        Example(
            messages=(
                {"role": "user", "content": " ".join(draw.choices(WORDS, k=120 + number))},
                {"role": "assistant", "content": " ".join(draw.choices(WORDS, k=20))},
            )
        )
        for number in range(16)
    ]
    setup = bench("lora", rows=long, max_steps=1)
    assert min(len(row.input_ids) for row in setup.data.train.encoded) > 2 * row_isolation.LONG
    setup.train()
    assert setup.job.run.tags["mlflow.mlflow_ft.batching"] == "tokens"


def test_a_model_that_needs_padding_gets_it_or_the_setting_is_refused(bench: Bench, small: Callable[..., Path]) -> None:
    model = {"model": small("gpt_oss"), "data.max_length": 64}
    setup, _ = trained(bench, "lora", "auto", **model)
    assert len(setup.curve("train/loss")) == 3
    assert setup.job.run.tags["mlflow.mlflow_ft.batching"].startswith("padded: rows laid end to end affect each other")
    with pytest.raises(
        ConfigError, match=r"training\.batching tokens: rows laid end to end affect each other"
    ) as refused:
        trained(bench, "lora", "tokens", **model)
    assert "--training.batching by_length" in str(refused.value)


def test_noise_that_depends_on_the_length_of_rows_keeps_padding(bench: Bench) -> None:
    """NEFTune divides its noise by the root of a row's length: rows laid end to end would get less."""
    noise = {"objective.options": "neftune_noise_alpha=5"}
    setup, _ = trained(bench, "lora", "auto", **noise)
    assert setup.job.run.tags["mlflow.mlflow_ft.batching"] == "padded: NEFTune's noise depends on the length of rows"
    with pytest.raises(ConfigError, match=r"training\.batching tokens: NEFTune's noise"):
        trained(bench, "lora", "tokens", **noise)


@pytest.mark.parametrize("method", ["lora", "dpo", "kto", "reward"])
def test_rows_of_similar_length_come_together(bench: Bench, method: str) -> None:
    setup, _ = trained(bench, method, "by_length")
    assert len(setup.curve("train/loss")) == 3


def test_a_window_of_rows_is_drawn_by_length() -> None:
    """Each batch spans a small part of the lengths, which batches in random order do not."""
    lengths = torch.randperm(400, generator=torch.Generator().manual_seed(0)).tolist()
    trainer = SimpleNamespace(
        train_dataset=Dataset.from_dict({"input_ids": [[0] * (1 + length) for length in lengths]}),
        args=SimpleNamespace(gradient_accumulation_steps=2),
        _train_batch_size=4,
    )
    batching._by_length(trainer)
    order = list(trainer._get_train_sampler())
    assert sorted(order) == list(range(400))
    spans = [
        max(batch) - min(batch) for batch in ([lengths[row] for row in order[at : at + 8]] for at in range(0, 400, 8))
    ]
    assert sum(spans) / len(spans) < 40

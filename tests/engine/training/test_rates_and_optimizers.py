"""The learning rate of short trainings, and optimizers that train other weights than those to use."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import trainer_optimizer

from mlflow_ft.engine.judging import judge
from mlflow_ft.engine.models import loading
from mlflow_ft.engine.training import loop
from mlflow_ft.errors import RefusedError
from mlflow_ft.progress import Progress
from tests.engine.conftest import Bench

Bencher = Callable[..., Bench]


@pytest.mark.parametrize(
    ("setting", "steps", "expected"),
    [(0.03, 1, 0), (0.03, 2, 1), (0.03, 100, 3), (0.99, 4, 3), (0.0, 1, 0), (1.0, 1, 1), (100.0, 4, 100)],
)
def test_a_share_of_warm_up_leaves_a_step(setting: float, steps: int, expected: int) -> None:
    assert loop.warm_up(setting, steps) == expected


def test_a_training_of_one_step_learns(bench: Bencher) -> None:
    setup = bench("lora", max_steps=1, learning_rate=1e-3)
    trained = setup.train()
    assert setup.curve("train/learning_rate") == [1e-3]
    assert trained.adapter
    weights = load_file(trained.adapter / "adapter_model.safetensors")
    assert any(bool(weight.any()) for name, weight in weights.items() if "lora_B" in name)


def test_a_warm_up_that_is_longer_than_the_training_is_reported(bench: Bencher) -> None:
    setup, told = bench("lora", max_steps=2, warmup_steps=50, learning_rate=1e-3), io.StringIO()
    replace(setup, job=replace(setup.job, progress=Progress(stream=told))).train()
    assert "this training has 2 steps, so the learning rate does not reach 0.001" in told.getvalue()


def test_a_training_whose_rate_is_always_0_is_refused(bench: Bencher) -> None:
    with pytest.raises(RefusedError, match="the learning rate was 0 in all 1 steps"):
        bench("lora", max_steps=1, warmup_steps=1).train()


class Apart(torch.optim.SGD):
    """Trains weights that are 1 larger than those to use: `train` and `eval` change between the two."""

    apart = False

    @torch.no_grad()
    def _move(self, by: float) -> None:
        for group in self.param_groups:
            for weight in group["params"]:
                weight += by

    def train(self) -> None:
        if not self.apart:
            self._move(1.0)
        self.apart = True

    def eval(self) -> None:
        if self.apart:
            self._move(-1.0)
        self.apart = False


@pytest.mark.parametrize("eval_steps", [2, 100])
def test_the_weights_to_use_are_measured_and_saved(
    bench: Bencher, monkeypatch: pytest.MonkeyPatch, eval_steps: int
) -> None:
    """As transformers makes an optimizer of `schedulefree`."""
    monkeypatch.setitem(
        trainer_optimizer._OPTIMIZER_HANDLERS, "schedule_free_sgd", lambda context: (Apart, context.optimizer_kwargs)
    )
    setup = bench("full", max_steps=2, eval_steps=eval_steps, optim="schedule_free_sgd")
    module: Any = loading.load_trained(setup.job, setup.data, setup.train())
    base = load_file(setup.base.path / "model.safetensors")
    changes = [(weight - base[name]).abs().max() for name, weight in module.named_parameters() if name in base]
    assert max(changes) < 0.5
    if eval_steps == 2:
        pad = setup.data.tokenizer.pad_token_id
        losses = judge.row_losses(module, setup.data.eval.encoded, batch_size=8, pad_token_id=pad)
        assert setup.curve("eval/loss")[-1] == pytest.approx(judge.mean_loss(losses), rel=1e-4)

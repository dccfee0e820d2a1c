"""Settings that must not change what dpo and the reward model learn."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mlflow_ft.engine.models import loading
from mlflow_ft.rows import Example
from mlflow_ft.testing import WORDS
from tests.rarely import some_always

Bench = Callable[..., Any]
METHODS = [("dpo", 1e-3), ("reward", 1e-3)]


def pairs(count: int = 32) -> list[Example]:
    draw = random.Random(0)
    rows = []
    for number in range(count):
        words = draw.sample(WORDS, 3)
        prompt = ({"role": "user", "content": f"{' '.join(words)} {number}"},)
        answers = [" ".join(reversed(words)), " ".join(words[: number % 3 + 1])]
        chosen, rejected = ({"role": "assistant", "content": answer} for answer in answers)
        rows.append(Example(messages=prompt, chosen=(chosen,), rejected=(rejected,)))
    return rows


def weights(trained: Any) -> dict[str, torch.Tensor]:
    folder: Path = trained.adapter or trained.model
    return {name: weight for file in folder.glob("*.safetensors") for name, weight in load_file(file).items()}


@pytest.mark.parametrize(("method", "rate"), METHODS)
@pytest.mark.parametrize("adapter", some_always(["none", "lora"], "lora"))
@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8}, id="8 x 1"),
        pytest.param({"gradient_checkpointing": True}, id="checkpointing"),
        pytest.param({"eval_steps": 1}, id="evaluated at every step", marks=pytest.mark.long),
    ],
)
def test_one_loss_trajectory(bench: Bench, method: str, rate: float, adapter: str, change: dict[str, Any]) -> None:
    settings = {"max_steps": 5, "learning_rate": rate * (30 if adapter == "lora" else 1), "adapter.kind": adapter}
    settings["per_device_train_batch_size"] = 8
    plain, changed = (bench(method, rows=pairs(), **values) for values in (settings, settings | change))
    plain.train()
    changed.train()
    expected, actual = plain.curve("train/loss"), changed.curve("train/loss")
    assert len(expected) == len(actual) == 5
    spread = max(expected) - min(expected)
    assert spread > 4e-4  # the loss does change; on random weights an adapter changes little
    assert actual == pytest.approx(expected, abs=0.02 * spread)


@pytest.mark.parametrize(("method", "rate"), METHODS)
def test_the_same_seed_makes_the_same_weights(bench: Bench, method: str, rate: float) -> None:
    first, second = (weights(bench(method, rows=pairs(), learning_rate=rate).train()) for _ in range(2))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(("method", "rate"), METHODS)
def test_merged_is_adapter(bench: Bench, tmp_path: Path, method: str, rate: float) -> None:
    from mlflow_ft.engine.merging import fold

    trial = bench(method, rows=pairs(), learning_rate=rate * 30, **{"package.dtype": "float32"})
    trained = trial.train()
    fold.merge(trial.job, trained, tmp_path / "merged")
    adapter = loading.load_trained(trial.job, trial.data, trained)
    merged = loading.load_saved(trial.job.config, trial.base, tmp_path / "merged")
    ids = torch.tensor([trial.data.eval.encoded[0].input_ids])
    with torch.no_grad():
        base = loading.load_base(trial.job.config, trial.base)(input_ids=ids).logits
        expected, actual = adapter(input_ids=ids).logits, merged(input_ids=ids).logits
    assert torch.allclose(actual, expected, atol=1e-5)
    assert not torch.allclose(base, expected, atol=1e-3), "the adapter does something"

"""Settings that must not change what is learned, and a plain TRL script that must learn the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, set_seed
from trl import SFTConfig, SFTTrainer

from mlflow_ft.engine.judging import judge
from mlflow_ft.engine.models import loading

Bench = Callable[..., Any]
STEPS = 6


def near(actual: Sequence[float], expected: Sequence[float], *, largest: float, mean: float) -> None:
    """Compare two curves by their largest and their mean difference."""
    assert len(actual) == len(expected) > 1
    differences = [abs(left - right) for left, right in zip(actual, expected, strict=True)]
    assert max(differences) <= largest, (actual, expected)
    assert sum(differences) / len(differences) <= mean, (actual, expected)


def weights(trained: Any) -> dict[str, torch.Tensor]:
    folder = trained.adapter or trained.model
    return {name: weight for file in folder.glob("*.safetensors") for name, weight in load_file(file).items()}


@pytest.mark.parametrize(("method", "rate"), [("full", 5e-3), ("lora", 2e-2), ("qlora", 2e-2)])
@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8}, id="8 x 1"),
        pytest.param(
            {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}, id="2 x 4", marks=pytest.mark.long
        ),
        pytest.param({"gradient_checkpointing": True}, id="checkpointing", marks=pytest.mark.long),
        pytest.param({"eval_steps": 1}, id="evaluated at every step", marks=pytest.mark.long),
    ],
)
def test_one_loss_trajectory(bench: Bench, method: str, rate: float, change: dict[str, Any]) -> None:
    settings = {"max_steps": STEPS, "learning_rate": rate, "per_device_train_batch_size": 8}
    plain, other = bench(method, **settings), bench(method, **(settings | change))
    plain.train()
    other.train()
    curve = plain.curve("train/loss")
    assert len(curve) == STEPS
    assert abs(curve[-1] - curve[0]) > 0.05  # the loss does change
    near(other.curve("train/loss"), curve, largest=2e-3, mean=5e-4)
    near(other.curve("train/grad_norm"), plain.curve("train/grad_norm"), largest=2e-2, mean=5e-3)
    assert other.curve("eval/loss")[-1] == pytest.approx(plain.curve("eval/loss")[-1], abs=2e-3)


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_the_same_seed_makes_the_same_weights(bench: Bench, method: str) -> None:
    first = weights(bench(method).train())
    torch.rand(7)  # earlier random draws must not matter
    again, other = weights(bench(method).train()), weights(bench(method, seed=7).train())
    assert first.keys() == again.keys() == other.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def plain_trl(trial: Any, model: Any, folder: Path, *, steps: int) -> SFTTrainer:
    """TRL's own trainer on a bench's rows, as a script without mlflow-ft would set it up."""
    set_seed(42)
    adapter = trial.job.registry.adapters[trial.job.config.adapter.kind].configure(
        trial.job, SimpleNamespace(module=model)
    )
    return SFTTrainer(
        model=model,
        peft_config=adapter,
        args=SFTConfig(
            output_dir=str(folder),
            max_steps=steps,
            learning_rate=5e-3,
            lr_scheduler_type="cosine",
            warmup_steps=0.03,
            per_device_train_batch_size=4,
            activation_checkpointing=False,
            seed=42,
            data_seed=42,
            logging_steps=1,
            bf16=False,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            max_length=None,
            disable_tqdm=True,
            dataloader_pin_memory=False,
            dataset_kwargs={"skip_prepare_dataset": True},
        ),
        train_dataset=Dataset.from_list(
            [{"input_ids": list(row.input_ids), "labels": list(row.labels)} for row in trial.data.train.encoded]
        ),
        processing_class=trial.data.tokenizer,
    )


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_plain_trl_script_learns_the_same(bench: Bench, tmp_path: Path, method: str) -> None:
    trial = bench(method, max_steps=STEPS, learning_rate=5e-3)
    trial.train()
    trainer = plain_trl(trial, AutoModelForCausalLM.from_pretrained(trial.base.path), tmp_path, steps=STEPS)
    trainer.train()
    theirs = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    near(trial.curve("train/loss"), theirs, largest=2e-3, mean=1e-3)
    norms = [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry]
    near(trial.curve("train/grad_norm"), norms, largest=2e-2, mean=1e-2)


def test_full_fine_tuning_learns(bench: Bench) -> None:
    trial = bench("full", max_steps=80, learning_rate=5e-3, per_device_train_batch_size=8)
    trained = trial.train()
    curve = trial.curve("train/loss")
    assert sum(curve[-5:]) < 0.5 * sum(curve[:5])
    before, after = trial.curve("eval/loss")
    assert after < 0.5 * before

    def exact(module: Any) -> int:
        answers = judge.answers(module, trial.data, trial.data.eval.examples, max_new_tokens=16, batch_size=8)
        return sum(answer.text == answer.expected for answer in answers)

    base = loading.load_base(trial.job.config, trial.base)
    loading.agree(base, trial.data)
    assert exact(base) < exact(loading.load_trained(trial.job, trial.data, trained)) >= 6

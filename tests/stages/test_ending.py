"""Ending a training by its held-out loss: refused where there is none, and told wherever the run is looked at."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from mlflow_ft import plugins
from mlflow_ft.config.schema import Config
from mlflow_ft.errors import ConfigError
from mlflow_ft.registry import Registry
from mlflow_ft.stages import ending, start
from mlflow_ft.testing import write_jsonl
from mlflow_ft.values.inspected import Caution


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry(plugins.load({}))


def config(method: str, **training: Any) -> Config:
    more = {"rollout": {"reward_funcs": ["terse"]}} if method in ("grpo", "rloo", "ppo") else {}
    return Config.model_validate({"method": method, "adapter": {"kind": "lora"}, "training": training, **more})


@pytest.mark.parametrize("method", ["grpo", "rloo", "ppo"])
@pytest.mark.parametrize(
    ("training", "named"),
    [
        ({"early_stopping": 3}, "training.early_stopping: not"),
        ({"load_best": True}, "training.load_best: not"),
        ({"early_stopping": 3, "load_best": True}, "training.early_stopping and training.load_best: not"),
    ],
)
def test_without_a_held_out_loss_it_is_refused(
    registry: Registry, method: str, training: dict[str, Any], named: str
) -> None:
    if method not in registry.trainers:
        pytest.skip("the plugin is not installed")
    with pytest.raises(ConfigError, match=f"{named} available for method {method}") as error:
        start.check_method(config(method, **training), registry)
    assert "--training.max_steps" in error.value.hint


def test_without_asking_nothing_is_refused(registry: Registry) -> None:
    for name in ("grpo", "rloo"):
        ending.check(config(name, load_best=False), registry.trainers[name])
        ending.check(config(name), registry.trainers[name])
    with_one = [record.name for record in registry.trainers if record.held_out_loss]
    assert {"sft", "full", "lora", "prompt", "dpo", "cpo", "simpo", "orpo", "kto", "reward"} <= set(with_one)
    for name in with_one:
        ending.check(config(name, early_stopping=1, load_best=True), registry.trainers[name])


@pytest.mark.parametrize(
    ("training", "kept"),
    [
        ({}, False),
        ({"early_stopping": 2}, True),
        ({"early_stopping": 2, "load_best": False}, False),
        ({"load_best": True}, True),
    ],
)
def test_the_best_weights_are_kept_with_early_stopping(training: dict[str, Any], *, kept: bool) -> None:
    assert config("lora", **training).training.loads_best is kept


@pytest.mark.parametrize(
    ("training", "often"),
    [
        ({}, ""),
        ({"early_stopping": 2}, ""),  # at 25, 50 and 75 % of the steps
        ({"early_stopping": 3}, "0.08"),
        ({"early_stopping": 3, "eval_steps": 0.2}, ""),
        ({"early_stopping": 3, "eval_steps": 10, "max_steps": 50}, ""),
        ({"early_stopping": 3, "eval_steps": 10, "max_steps": 40}, "3"),
        ({"early_stopping": 3, "eval_steps": 10}, ""),  # the number of steps is not known yet
        ({"early_stopping": 3, "max_steps": 40}, "0.08"),
    ],
)
def test_a_patience_that_cannot_run_out_is_a_caution(training: dict[str, Any], often: str) -> None:
    found = ending.patience(config("lora", **training))
    assert isinstance(found, Caution) is bool(often)
    if isinstance(found, Caution):
        assert f"--training.eval_steps {often})" in found.remedy


# --- a run


def rows(answer: str, count: int) -> list[dict[str, Any]]:
    return [
        {"messages": [{"role": "user", "content": f"say {number}"}, {"role": "assistant", "content": answer}]}
        for number in range(count)
    ]


def test_a_run_says_why_it_ended_and_what_it_kept(
    fine_tune: Callable[..., Any], tiny_model: Path, tmp_path: Path
) -> None:
    """The held-out rows ask for the opposite of what is learned."""
    settings = {
        "data": write_jsonl(tmp_path / "train.jsonl", rows("red green blue red", 12)),
        "data.eval_path": write_jsonl(tmp_path / "held.jsonl", rows("stone river lamp door", 4)),
        "data.fail_on": "never",
        "evaluation.on_worse": "warn",
        "evaluation.samples": 0,
        "training.lr_scheduler_type": "constant",
        "per_device_train_batch_size": 4,
        "warmup_steps": 0,
    }
    outcome = fine_tune("full", model=tiny_model, learning_rate=0.01, max_steps=12, early_stopping=2, **settings)
    client = MlflowClient()
    run = client.get_run(outcome.run_id)
    curve = {point.step: point.value for point in client.get_metric_history(outcome.run_id, "eval/loss")}
    last, lowest = max(curve), min(list(curve)[1:], key=lambda step: curve[step])
    assert (run.info.status, last) == ("FINISHED", lowest + 2)
    assert run.data.metrics["eval/tuned/loss"] == pytest.approx(curve[lowest], rel=1e-5)
    assert all(value < 1e-6 for name, value in run.data.metrics.items() if name.endswith("kl_mean"))  # parity

    stopped = f"at step {last} of 12: 2 held-out losses in a row not below the lowest one"
    kept = f"step {lowest} of {last}, held-out loss {curve[lowest]:.4g}"
    finding = f"the held-out loss rose after step {lowest}"
    tags = run.data.tags
    assert tags["mlflow_ft.stopped_early"].startswith(stopped)
    assert tags["mlflow_ft.chosen_checkpoint"] == kept
    assert tags["mlflow_ft.training_findings"].startswith(finding)
    assert (run.data.metrics["train/chosen_step"], run.data.metrics["train/chosen_loss"]) == (lowest, curve[lowest])

    note = tags["mlflow.note.content"]
    for words in (f"- training: ended early, {stopped}", f"- weights: those of {kept}", f"- found: {finding}"):
        assert words in note
    folder = Path(outcome.folder, "package", "model")
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert f"Training ended early, {stopped}" in card
    assert f"The weights are those of {kept}" in card
    assert f"T{finding[1:]}" in card
    assert "The checkpoint was chosen by its loss on these rows" in card
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert (manifest["chosen_step"], manifest["chosen_loss"]) == (lowest, curve[lowest])
    (version,) = client.search_model_versions(f"run_id='{outcome.run_id}'")
    assert version.tags["mlflow_ft.chosen_step"] == str(lowest)
    page = Path(client.download_artifacts(outcome.run_id, "report.html")).read_text(encoding="utf-8")
    for words in (stopped, kept, finding, f"lowest held-out loss, step {lowest}: these weights were kept"):
        assert words in page

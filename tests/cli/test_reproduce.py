"""`mlflow-ft reproduce`: a real run trained again, equal bit for bit, and what stops or fails a reproduction."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from mlflow_ft import pipeline, plugins
from mlflow_ft.cli.asked import asked
from mlflow_ft.progress import Progress
from mlflow_ft.testing import make_rows, write_jsonl
from tests.cli.conftest import Run
from tests.installed import Install
from tests.rarely import some_always

pytestmark = pytest.mark.slow

SHIFTED = """
import torch
from transformers import TrainerCallback
from mlflow_ft import hookimpl

class Shift(TrainerCallback):
    def on_step_end(self, args, state, control, model=None, **more):
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "lora_B" in name:
                    weight.add_(0.05)

@hookimpl
def training_callbacks(job):
    return [Shift()]
"""
QUICK = {"max_steps": 2, "eval_steps": 1, "max_new_tokens": 4, "evaluation.max_rows": 2, "run.output_dir": "outputs"}
QUICK |= {"package.round_trip": "false", "evaluation.on_worse": "warn", "data": "rows.jsonl"}


def preferences() -> list[dict[str, str]]:
    return [
        {"prompt": f"{row['messages'][0]['content']} {number}", "chosen": "yes", "rejected": "no"}
        for number, row in enumerate(make_rows(24))
    ]


@pytest.fixture(scope="module")
def original(store: str, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """The id of a run of a method, trained once in a folder of its own, with relative paths."""
    ids: dict[str, str] = {}

    def trained(method: str) -> str:
        if method not in ids:
            folder = tmp_path_factory.mktemp(method)
            write_jsonl(folder / "rows.jsonl", preferences() if method == "dpo" else make_rows())
            given = QUICK | {"model": tiny_model, "model_name": f"original-{method}"}
            loaded = plugins.load({"MLFLOW_FT_PLUGINS": ""})
            with pytest.MonkeyPatch.context() as environment:
                environment.setenv("MLFLOW_TRACKING_URI", store)
                environment.chdir(folder)
                config = asked([method, *(f"--{key}={value}" for key, value in given.items())], loaded)
                ids[method] = pipeline.run(config, loaded, progress=Progress(quiet=True)).run_id
        return ids[method]

    return trained


@pytest.mark.parametrize("method", some_always(["lora", "dpo"], "lora"))
def test_a_run_is_reproduced_bit_for_bit(
    run: Run, client: MlflowClient, original: Callable[[str], str], tmp_path: Path, method: str
) -> None:
    run_id = original(method)
    versions = client.search_model_versions(f"name LIKE 'original-{method}%'")
    result = run("reproduce", run_id, "--json")
    assert result.code == 0, result.err
    outcome = json.loads(result.out)
    assert (outcome["same"], outcome["identical"], outcome["first"], outcome["environment"]) == (True, True, None, [])
    assert outcome["rule"]["exact"]
    points = {metric["name"]: metric["points"] for metric in outcome["metrics"]}
    assert (points["train/loss"], points["eval/loss"], points["eval/tuned/loss"]) == (2, 3, 1)
    assert (outcome["weights"]["count"], outcome["weights"]["recorded"]) == (1, True)

    new = client.get_run(outcome["run_id"])
    assert new.info.status == "FINISHED"
    assert new.info.experiment_id == client.get_run(run_id).info.experiment_id
    assert new.data.tags["mlflow_ft.reproduces"] == run_id
    assert new.data.tags["mlflow_ft.reproduction"].startswith("equal bit for bit")
    assert Path(new.data.tags["mlflow.mlflow_ft.folder"]) == tmp_path / "outputs" / outcome["run_id"]
    assert json.loads(Path(client.download_artifacts(outcome["run_id"], "reproduction.json")).read_text()) == outcome
    assert client.search_model_versions(f"name LIKE 'original-{method}%'") == versions
    assert not client.search_logged_models(["0"], filter_string=f"source_run_id='{outcome['run_id']}'")


def test_a_curve_that_differs_is_named_with_its_first_step_and_the_environment(
    run: Run, client: MlflowClient, original: Callable[[str], str], install: Install
) -> None:
    run_id = original("lora")  # without the plugin
    install("shifted", SHIFTED)
    result = run("reproduce", "--run_id", run_id, "--json")
    assert result.code == 1
    outcome = json.loads(result.out)
    assert not outcome["rule"]["exact"], "another plugin is another environment"
    assert (outcome["first"]["name"], outcome["first"]["step"]) == ("eval/loss", 1)
    assert "eval/loss differs first, at step 1: " in result.err
    assert "plugin shifted  was not loaded, is 1.5 sha256:" in result.err
    assert outcome["weights"]["differing"] == ["adapter/adapter_model.safetensors"]
    assert outcome["weights"]["largest"] > 0.01
    new = client.get_run(outcome["run_id"])
    assert new.info.status == "FAILED"
    assert "eval/loss differs first, at step 1" in new.data.tags["mlflow_ft.reproduction"]
    assert new.data.tags["mlflow_ft.stage"] == "compare"


def test_changed_rows_are_named_before_the_training(
    run: Run, client: MlflowClient, original: Callable[[str], str]
) -> None:
    run_id = original("lora")
    rows = Path(client.get_run(run_id).data.tags["mlflow.mlflow_ft.cwd"], "rows.jsonl")
    content = rows.read_text()
    rows.write_text(content.replace("apple", "stone", 1))
    result = run("reproduce", run_id)
    rows.write_text(content)
    assert result.code == 2
    assert "cannot be reproduced: not everything that it was trained with is the same" in result.err
    assert "data fingerprint  was " in result.err
    (failed, *_) = client.search_runs(["0"], f"tags.`mlflow_ft.reproduces` = '{run_id}'", max_results=1)
    assert failed.info.status == "FAILED"
    assert "train/loss" not in failed.data.metrics
    result = run("reproduce", failed.info.run_id)
    assert (result.code, "its training has not ended" in result.err) == (2, True)
    result = run("resume", failed.info.run_id)
    assert (result.code, f"start it again: mlflow-ft reproduce {run_id}" in result.err) == (2, True)
    original_key = client.get_run(run_id).data.tags["mlflow.mlflow_ft.config_key"]
    assert failed.data.tags["mlflow.mlflow_ft.config_key"] != original_key, (
        "the original's command must not continue it"
    )

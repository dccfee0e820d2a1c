"""`mlflow-ft plan`: from data or options to a configuration that trains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from mlflow_ft import plugins
from mlflow_ft.cli.asked import asked
from mlflow_ft.registry import Registry
from mlflow_ft.stages import start
from mlflow_ft.testing import make_rows, write_jsonl
from tests.cli.conftest import Run

DESCRIBED = ("--rows", "20k", "--model-size", "135M", "--gpus", "1", "--gpu-memory", "24")
KINDS: dict[str, tuple[str, Any]] = {
    "preference": ("dpo", lambda prompt: {"prompt": prompt, "chosen": "yes, it is", "rejected": "no"}),
    "unpaired": ("kto", lambda prompt: {"prompt": prompt, "completion": "yes, it is", "label": len(prompt) % 2 == 0}),
    "prompt": ("grpo", lambda prompt: {"prompt": prompt, "answer": "yes"}),
    "text": ("sft", lambda prompt: {"text": f"{prompt} is a fact. " * 3}),
}


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "rows.jsonl", make_rows())


def test_a_plan_trains(run: Run, client: MlflowClient, tiny_model: Path, rows: Path) -> None:
    made = run("plan", "--data", rows, "--model", tiny_model, "--out", "plan.yaml")
    assert made.code == 0
    assert "mlflow-ft train prompt --config plan.yaml" in made.out
    options = ("--max_steps", 2, "--evaluation.max_rows", 1, "--max_new_tokens", 4, "--evaluation.on_worse", "warn")
    trained = run("train", "prompt", "--config", "plan.yaml", *options, "--package.round_trip", "false")
    assert trained.code == 0, trained.err
    [finished] = [found for found in client.search_runs(["0"]) if found.data.tags.get("mlflow_ft.method") == "prompt"]
    assert finished.info.status == "FINISHED"
    assert finished.data.params["cfg.adapter.num_virtual_tokens"] == "20"


@pytest.mark.parametrize("kind", KINDS)
def test_the_configuration_is_accepted_for_every_kind_of_rows(
    run: Run, client: MlflowClient, tiny_model: Path, tmp_path: Path, kind: str
) -> None:
    method, row = KINDS[kind]
    data = write_jsonl(tmp_path / "data.jsonl", [row(f"is {number} a number?") for number in range(30)])
    made = run("plan", "--data", data, "--model", tiny_model, "--out", "plan.yaml", "--json")
    assert made.code == 0, made.err
    plan = json.loads(made.out)
    assert (plan["situation"]["kind"], plan["situation"]["rows"]) == (kind, 30)
    assert plan["recommended"]["method"] == method
    loaded = plugins.load({})
    config = asked(["--config", "plan.yaml"], loaded)
    start.check_names(config, Registry(loaded))
    assert {path: config.flat()[path] for path in plan["recommended"]["settings"]} == plan["recommended"]["settings"]


def test_what_is_only_described_is_planned(run: Run, client: MlflowClient, tiny_model: Path) -> None:
    about = ("--rows", "20k", "--tokens", "6M", "--kind", "preference", "--gpus", "2", "--gpu_memory", "24 GB")
    plan = json.loads(run("plan", *about, "--model", tiny_model, "--json").out)
    assert (plan["situation"]["row_tokens"], plan["situation"]["aim"]) == (300, "preference")
    settings = plan["recommended"]["settings"]
    launched = {path: value for path, value in settings.items() if path.startswith("launch.")}
    assert launched == {"launch.launcher": "accelerate", "launch.strategy": "ddp", "launch.num_processes": 2}
    assert plan["recommended"]["command"] == "mlflow-ft train dpo --config plan.yaml --data FILE"
    assert 0 < plan["recommended"]["cost"]["memory"] < plan["recommended"]["cost"]["available"] < 24e9
    assert {"simpo", "dpo"} == {other["method"] for other in plan["alternatives"]}
    assert all(reason["source"] for reason in plan["reasons"])
    assert not Path("plan.yaml").exists()


def test_settings_that_are_given_are_kept(run: Run, client: MlflowClient, tiny_model: Path) -> None:
    given = ("--max_length", 128, "--adapter.r", 4, "--out", "plan.yaml")
    made = run("plan", "--rows", "20k", "--model", tiny_model, "--gpus", "1", "--gpu-memory", "24", *given, "--json")
    settings = json.loads(made.out)["recommended"]["settings"]
    assert (settings["data.max_length"], settings["adapter.r"], settings.get("adapter.lora_alpha")) == (128, 4, None)
    assert "  max_length: 128\n" in Path("plan.yaml").read_text()


WRONG = {
    "an aim that does not exist": (("--aim", "instrcut"), "did you mean instruct?"),
    "a kind that does not exist": (("--kind", "chat"), "known: conversation, "),
    "an aim that the rows do not serve": (("--aim", "reward", "--kind", "text"), "aims for text rows: domain"),
    "no rows": (("--rows", "0"), "--rows is 0: there is nothing to plan for"),
    "not a number": (("--rows", "many"), "--rows: 'many' is not a number above 0"),
    "half a row": (("--rows", "2.5"), "is not a whole number"),
    "fewer tokens than rows": (("--tokens", "100"), "100 tokens are fewer than the 20,000 rows"),
    "no GPU with memory": (("--gpus", "0", "--gpu-memory", "24"), "there is no memory of 0 GPUs"),
    "a model and a size": (("--model", "smollm2-135m"), "leave out one of the two"),
    "data and rows": (("--data", "demo"), "leave out either --data or these"),
    "a setting that the plan decides": (("--model.quantize", "nf4"), "model.quantize is for the plan to decide"),
    "a method": (("--method", "dpo"), "method is for the plan to decide"),
    "an unknown setting": (("--adapter.rank", "4"), "did you mean adapter.r?"),
    "a folder that is not there": (("--out", "no/such/folder/plan.yaml"), "cannot be written"),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_wrong_input_is_refused_with_a_remedy(run: Run, client: MlflowClient, mistake: str) -> None:
    options, words = WRONG[mistake]
    named = dict(zip(DESCRIBED[::2], DESCRIBED[1::2], strict=True)) | dict(
        zip(options[::2], options[1::2], strict=True)
    )
    refused = run("plan", *(word for pair in named.items() for word in pair))
    assert refused.code == 2
    assert words in refused.err


def test_something_must_be_known(run: Run, client: MlflowClient) -> None:
    refused = run("plan")
    assert refused.code == 2
    assert "give --data FILE" in refused.err
    assert "--model-size 7B" in refused.err


def test_gpus_without_their_memory_are_refused_where_there_are_none(run: Run, client: MlflowClient) -> None:
    refused = run("plan", "--rows", "20k", "--model-size", "7B", "--gpus", 2)
    assert refused.code == 2
    assert "--gpu-memory 24" in refused.err


@pytest.mark.parametrize(("text", "words"), [("", "is empty"), ('{"a": 1}\n', "format"), (None, "does not exist")])
def test_data_that_cannot_be_read_is_refused(
    run: Run, client: MlflowClient, tiny_model: Path, tmp_path: Path, text: str | None, words: str
) -> None:
    file = tmp_path / "data.jsonl"
    if text is not None:
        file.write_text(text)
    refused = run("plan", "--data", file, "--model", tiny_model)
    assert refused.code == 2
    assert words in refused.err
    assert str(file) in refused.err

"""The command in this process, on one SQLite store for all tests of this folder."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
from mlflow import MlflowClient

from mlflow_ft import cli, pipeline, plugins
from mlflow_ft.cli.asked import asked
from mlflow_ft.engine.serving import loaded_models
from mlflow_ft.progress import Progress
from mlflow_ft.testing import copy_store, make_rows, write_jsonl


class Result(NamedTuple):
    """The outcome of a command."""

    code: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `mlflow-ft ARGUMENTS` in this process."""

    def call(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["mlflow-ft", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return Result(int(ended.value.code or 0), *capsys.readouterr())

    return call


@pytest.fixture(scope="session")
def store(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URI of an SQLite store."""
    return copy_store(empty_store, tmp_path_factory.mktemp("cli"))


@pytest.fixture
def client(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    """The tracking URI is set as a user would set it, and the current folder is empty."""
    for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_FT_PLUGINS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.chdir(tmp_path)
    return MlflowClient(store)


@pytest.fixture(scope="session")
def spoken(store: str, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model that knows its rows; two LoRA runs on it, `one` and `two`, are registered."""
    folder = tmp_path_factory.mktemp("spoken")
    rows = write_jsonl(folder / "rows.jsonl", make_rows())
    loaded = plugins.load({"MLFLOW_FT_PLUGINS": ""})
    common = {"data": rows, "max_new_tokens": 8, "evaluation.max_rows": 1, "run.output_dir": folder / "outputs"}
    common |= {"package.round_trip": "false", "evaluation.on_worse": "warn"}  # two adapters with different answers

    def train(method: str, **settings: object) -> pipeline.Outcome:
        pairs = [f"--{key}={value}" for key, value in (common | settings).items()]
        return pipeline.run(asked([method, *pairs], loaded), loaded, progress=Progress(quiet=True))

    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("MLFLOW_TRACKING_URI", store)
        environment.chdir(folder)
        how = {"max_steps": 80, "learning_rate": 5e-3, "per_device_train_batch_size": 8}
        known = Path(train("full", model=tiny_model, model_name="know", **how).folder) / "package" / "model"
        for name, seed in (("one", 1), ("two", 7)):
            how = {"max_steps": 4, "learning_rate": 3e-2, "run.seed": seed}
            train("lora", model=known, model_name=name, **how)
    return known


def answers_of_folder(folder: Path, prompts: list[str]) -> list[str]:
    """A packaged model's answers, given by the code logged with it."""
    model = loaded_models.ChatModel()
    model.load_context(SimpleNamespace(artifacts={"model": str(folder)}, model_config=None))
    requests = [{"messages": [{"role": "user", "content": prompt}]} for prompt in prompts]
    return [str(model.predict(None, request)["choices"][0]["message"]["content"]) for request in requests]

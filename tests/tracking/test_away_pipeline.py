"""Whole runs on a tiny model, with a real server that goes away in the middle; `sync` finishes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import LoggedModelStatus

from mlflow_ft import pipeline, plugins
from mlflow_ft.cli import sync
from mlflow_ft.cli.asked import asked
from mlflow_ft.errors import UndeliveredError
from mlflow_ft.progress import Progress
from mlflow_ft.testing import make_rows, write_jsonl
from tests.faulty_proxy import FaultyProxy
from tests.rarely import some_always

STEPS = 2


def train(model: Path, name: str, **settings: object) -> pipeline.Outcome:
    loaded = plugins.load({"MLFLOW_FT_PLUGINS": ""})
    given = {
        "model": model,
        "data": write_jsonl(Path("rows.jsonl").absolute(), make_rows()),
        "max_steps": STEPS,
        "max_new_tokens": 4,
        "evaluation.max_rows": 2,
        "evaluation.on_worse": "warn",
        "package.round_trip": "false",
        "run.experiment": "away",  # its artifacts go through the server
        "registry.model_name": name,
        **settings,
    }
    pairs = [f"--{key}={value}" for key, value in given.items()]
    return pipeline.run(asked(["lora", *pairs], loaded), loaded, progress=Progress(quiet=True))


# where the outage begins -> how the server fails, what is served after an outage, and what ends it
OUTAGES: dict[str, tuple[Any, str, bool]] = {
    "config": ("cut", r"config\.yaml$", True),
    "logging a model": (503, "/logged-models$", True),
    "registering": (401, "/model-versions/create$", True),
    "the end": ("cut", "/runs/update$", False),
}


@pytest.mark.slow
@pytest.mark.parametrize("where", some_always(OUTAGES, "logging a model", "registering"))
def test_a_run_whose_server_goes_away_for_good_is_finished_by_sync(
    server: Any, proxy: FaultyProxy, tiny_model: Path, where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    kind, since, stages_left = OUTAGES[where]
    name = where.replace(" ", "-")
    failure = proxy.fail(kind, "/api/" if kind == 401 else "", since=since)
    with pytest.raises(UndeliveredError) as error:
        train(tiny_model, name)
    assert error.value.exit_code == 3
    assert failure.hits
    (folder,) = Path("outputs").resolve().glob("*")
    assert f"mlflow-ft sync {folder}" in str(error.value)
    assert json.loads((folder / "run.json").read_text())["unfinished"] is stages_left
    assert (folder / "package" / "merged" / "manifest.json").is_file(), "the result is complete on disk"

    proxy.heal()
    capsys.readouterr()
    assert sync.command.callback is not None
    sync.command.callback(folder, as_json=True, quiet=True)
    versions = json.loads(capsys.readouterr().out)["versions"]
    assert len(versions) == (2 if stages_left else 0)
    check_complete(MlflowClient(server.uri, registry_uri=server.uri), folder.name, name)
    assert json.loads((folder / "run.json").read_text())["unfinished"] is False

    sync.command.callback(folder, as_json=True, quiet=True)
    assert json.loads(capsys.readouterr().out) == {"delivered": 0, "versions": []}


@pytest.mark.slow
def test_lost_answers_double_nothing(
    server: Any, proxy: FaultyProxy, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = ("/logged-models$", "/outputs$", "/log-inputs$", "/model-versions/create$", "/log-batch$")
    failures = [proxy.fail("lost", path, times=1) for path in paths]
    monkeypatch.setenv("MLFLOW_FT_PATIENCE", "30")
    outcome = train(tiny_model, "lost")
    assert [failure.hits for failure in failures] == [1] * len(paths)
    client = MlflowClient(server.uri, registry_uri=server.uri)
    check_complete(client, outcome.run_id, "lost")


def check_complete(client: MlflowClient, run_id: str, name: str) -> None:
    """The run has ended well, with every metric, artifact and input, one set of models and one set of versions."""
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert not {"mlflow_ft.error", "mlflow_ft.stage", "mlflow_ft.heartbeat"} & run.data.tags.keys()
    assert run.data.params["cfg.method"] == "lora"
    assert run.data.tags["mlflow_ft.base_model"]
    assert [point.step for point in client.get_metric_history(run_id, "train/loss")] == list(range(1, STEPS + 1))
    assert {"eval/base/loss", "eval/tuned/loss", "parity/merged/kl_mean"} <= run.data.metrics.keys()
    assert {entry.tags[0].value for entry in run.inputs.dataset_inputs} == {"train", "eval"}
    assert len(run.inputs.dataset_inputs) == 2
    artifacts = {
        file.path for folder in ("", "eval", "data", "parity") for file in client.list_artifacts(run_id, folder)
    }
    assert {"config.yaml", "plugins.json", "eval/answers.json", "eval/rows.json", "data/rows.parquet"} <= artifacts

    condition = f"source_run_id = '{run_id}'"
    models = {model.name: model for model in client.search_logged_models([run.info.experiment_id], condition)}
    assert sorted(models) == ["adapter", "merged"]
    assert {model.status for model in models.values()} == {LoggedModelStatus.READY}
    outputs = [output.model_id for output in run.outputs.model_outputs]
    assert len(outputs) == len(set(outputs))
    assert {model.model_id for model in models.values()} <= set(outputs)
    for form, registered in (("merged", name), ("adapter", f"{name}-adapter")):
        (version,) = client.search_model_versions(f"name = '{registered}'")
        assert (version.run_id, version.tags["mlflow_ft.model_id"]) == (run_id, models[form].model_id)
        assert client.get_model_version_by_alias(registered, "candidate").version == version.version
        assert {"eval/tuned/loss", f"parity/{form}/kl_mean"} <= {metric.key for metric in models[form].metrics}

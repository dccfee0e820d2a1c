from __future__ import annotations

import json
import math
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
import torch
from mlflow import MlflowClient

from mlflow_ft import plugins as plugins_module
from mlflow_ft.config.schema import Config
from mlflow_ft.plugins import PluginInfo, Plugins
from mlflow_ft.tracking import ActiveRun, environment, open_run
from mlflow_ft.tracking.metrics import clean_key
from mlflow_ft.tracking.run_values import cut
from mlflow_ft.values import Split


@pytest.fixture
def run(store: str, config: Config, plugins: Plugins, tmp_path: Path) -> Iterator[ActiveRun]:
    with open_run(config.run, plugins=plugins) as run:
        run.open_journal(tmp_path / "outputs" / run.run_id)
        yield run


def artifact(run: ActiveRun, path: str) -> str:
    return mlflow.artifacts.load_text(f"runs:/{run.run_id}/{path}")


def test_the_config_is_params_and_a_file(run: ActiveRun, client: MlflowClient, config: Config) -> None:
    client.log_param(run.run_id, "learning_rate", "'1e-4'")  # as the launcher of MLflow projects does, first

    run.log_config(config, text="method: sft\n")

    params = client.get_run(run.run_id).data.params
    assert {key: value for key, value in params.items() if key.startswith("cfg.")} == {
        f"cfg.{path}": str(value) for path, value in config.flat().items()
    }
    assert artifact(run, "config.yaml") == "method: sft\n"


def test_long_values_are_cut_with_a_mark(run: ActiveRun, client: MlflowClient, config: Config) -> None:
    long = Config.model_validate(config.model_dump() | {"data": {"chat_template": "x" * 7000}})
    run.log_config(long, text="")
    run.set_tags({"tag": "y" * 9000})

    data = client.get_run(run.run_id).data
    assert data.params["cfg.data.chat_template"] == "x" * 5990 + " ... [cut]"
    assert data.tags["tag"] == "y" * 7990 + " ... [cut]"
    assert cut("abc", 3) == "abc"


def test_a_resumed_run_may_have_another_config_and_says_so(
    run: ActiveRun, client: MlflowClient, config: Config
) -> None:
    run.log_config(config, text="")
    run.log_config(config, text="")
    assert "mlflow_ft.changed_config" not in client.get_run(run.run_id).data.tags

    run.log_config(Config.model_validate(config.model_dump() | {"training": {"max_steps": 7}}), text="")

    data = client.get_run(run.run_id).data
    assert data.tags["mlflow_ft.changed_config"] == "cfg.training.max_steps: -1 -> 7"
    assert data.params["cfg.training.max_steps"] == "-1"


def test_more_tags_than_one_request_takes(run: ActiveRun, client: MlflowClient) -> None:
    run.set_tags({f"tag{n}": str(n) for n in range(250)})
    assert client.get_run(run.run_id).data.tags["tag249"] == "249"


def test_the_environment_is_tags_and_files(run: ActiveRun, client: MlflowClient, tmp_path: Path) -> None:
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "one"], check=True)
    plugins = plugins_module.Plugins()
    stranger = PluginInfo(name="acme", version="1.2", module="acme.ft", sha256="ab", status="active")
    plugins.infos = (stranger, replace(stranger, module="mlflow_ft.builtin.formats"), replace(stranger, status="off"))

    run.log_environment(plugins)

    tags = client.get_run(run.run_id).data.tags
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    assert tags["mlflow_ft.git_commit"] == commit
    assert tags["mlflow_ft.git_dirty"] == "true"  # the store is in this folder
    assert tags["mlflow_ft.plugins"] == "acme 1.2 sha256:ab, built in 1.2 sha256:ab"
    assert environment.versions(tags)["mlflow"] == mlflow.__version__
    assert environment.versions(tags)["python"].startswith("3.")
    assert environment.versions({"mlflow_ft.version.torch": "2.9.0"}) == {"torch": "2.9.0"}
    assert tags["mlflow.mlflow_ft.cwd"] == str(tmp_path)
    assert tags["mlflow.mlflow_ft.code"] == environment.code_hash() != ""
    assert tags["mlflow.mlflow_ft.threads"].startswith(str(torch.get_num_threads()))
    assert torch.backends.cpu.get_cpu_capability() in tags["mlflow.mlflow_ft.processor"]
    assert [info["status"] for info in json.loads(artifact(run, "plugins.json"))] == ["active", "active", "off"]
    assert f"mlflow=={mlflow.__version__}\n" in artifact(run, "packages.txt")


def test_a_processor_is_named_with_its_numbers(tmp_path: Path) -> None:
    """The model name of a cloud's processors is often only "Intel Xeon Processor"."""
    one = "processor\t: 0\ncpu family\t: 6\nmodel\t\t: 207\nmodel name\t: Xeon\nstepping\t: 2\nflags\t\t: fpu\n"
    (tmp_path / "cpuinfo").write_text(f"{one}\n{one.replace('207', '1')}\n")
    assert environment.processor(tmp_path / "cpuinfo") == "Xeon (cpu family 6, model 207, stepping 2)"
    assert environment.processor(tmp_path / "none")


def test_without_git_there_is_no_tag(run: ActiveRun, client: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    run.log_environment(plugins_module.Plugins())
    assert not {key for key in client.get_run(run.run_id).data.tags if key.startswith("mlflow_ft.git")}


def test_the_data_are_dataset_inputs(run: ActiveRun, client: MlflowClient, split: Split) -> None:
    held_out = replace(split, name="eval", sources=("org/rows",), source_type="hugging_face", digest="f" * 32)
    run.log_inputs([split, held_out], tags={"format": "messages"})

    inputs = client.get_run(run.run_id).inputs.dataset_inputs
    by_context = {tag.value: item for item in inputs for tag in item.tags if tag.key == "mlflow.data.context"}
    train, evaluation = by_context["train"].dataset, by_context["eval"].dataset
    assert (train.name, train.digest, train.source_type) == ("rows.jsonl", split.digest, "local")
    assert json.loads(train.source) == {"uri": "/data/rows.jsonl"}
    assert json.loads(train.profile) == {"num_rows": 2, "num_tokens": 4, "num_supervised_tokens": 3}
    assert (evaluation.name, evaluation.digest, json.loads(evaluation.source)) == (
        "rows",
        "f" * 32,
        {"path": "org/rows"},
    )
    assert {tag.key: tag.value for tag in by_context["train"].tags}["format"] == "messages"


def test_metrics_arrive_with_step_time_and_odd_values(run: ActiveRun, client: MlflowClient) -> None:
    run.metric("train/loss", 1.5, step=3, timestamp_ms=1234)
    run.metrics({"eval/exact match (%)": 2, "nan": math.nan, "inf": math.inf, "-inf": -math.inf}, step=4)
    assert run.flush(10)

    (point,) = client.get_metric_history(run.run_id, "train/loss")
    assert (point.value, point.step, point.timestamp) == (1.5, 3, 1234)
    metrics = client.get_run(run.run_id).data.metrics
    assert metrics["eval/exact match ___"] == 2
    assert all(math.isnan(metrics[key]) for key in ("nan", "inf", "-inf"))


@pytest.mark.parametrize(
    ("key", "clean"),
    [
        ("a/b c-d.e:f_9", "a/b c-d.e:f_9"),
        ("genauigkeit_größe", "genauigkeit_gr__e"),
        ("/a//b/", "a/b"),
        ("../a", "a"),
        ("", "_"),
        ("..", "_"),
        ("x" * 300, "x" * 250),
    ],
)
def test_keys_are_brought_into_mlflows_alphabet(key: str, clean: str) -> None:
    assert clean_key(key) == clean


def test_one_value_that_the_server_refuses_does_not_hold_up_the_others(run: ActiveRun, client: MlflowClient) -> None:
    run.metric("before", 1)
    assert run._curves._journal
    run._curves._journal.append({"key": "bad?", "value": 1, "step": 0, "timestamp": 0})  # no public way writes this
    run.metric("after", 1)

    assert run.flush(10)
    assert client.get_run(run.run_id).data.metrics == {"before": 1, "after": 1}


def test_a_metric_before_the_journal_is_an_error_of_the_program(store: str, config: Config, plugins: Plugins) -> None:
    with open_run(config.run, plugins=plugins) as run, pytest.raises(RuntimeError, match="open_journal"):
        run.metric("a", 1)


def test_a_table_is_one_file_that_the_ui_lists(run: ActiveRun, client: MlflowClient) -> None:
    rows = [{"prompt": "hi", "score": math.nan}, {"prompt": "größer", "score": 0.5, "note": "late"}]
    run.table(rows, "answers.json")
    run.table(rows, "answers.json")
    run.table([], "empty.json")

    table = client.load_table(run.experiment_id, "answers.json", run_ids=[run.run_id])
    assert list(table.columns) == ["prompt", "score", "note"]
    assert list(table["prompt"]) == ["hi", "größer"]
    assert math.isnan(table["score"][0])
    assert "NaN" not in artifact(run, "answers.json")  # a browser could not read it
    listed = json.loads(client.get_run(run.run_id).data.tags["mlflow.loggedArtifacts"])
    assert [item["path"] for item in listed] == ["answers.json", "empty.json"]


def test_artifacts_are_files_and_texts(run: ActiveRun, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("<p>")
    run.artifact(tmp_path / "report.html", "reports")
    run.artifact_text("text", "notes/a.txt")

    assert artifact(run, "reports/report.html") == "<p>"
    assert artifact(run, "notes/a.txt") == "text"


def test_system_metrics_go_through_the_journal(
    run: ActiveRun, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    run.system_metrics()
    time.sleep(0.35)
    run.stop_system_metrics()
    run.stop_system_metrics()

    assert '"system/cpu_utilization_percentage"' in (run.folder / "journal.jsonl").read_text()
    assert run.flush(10)
    steps = [point.step for point in client.get_metric_history(run.run_id, "system/cpu_utilization_percentage")]
    assert steps == list(range(len(steps)))
    assert len(steps) >= 2

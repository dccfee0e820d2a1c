"""mlflow-ft resume: which runs continue, from where, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from mlflow_ft.engine.training.callbacks import WatchCallback
from mlflow_ft.hashes import file_hash
from mlflow_ft.testing import make_rows, write_jsonl
from mlflow_ft.tracking import heartbeat
from tests.cli.conftest import Result

Command = Callable[..., Result]
SETTINGS = {"max_steps": 6, "eval_steps": 3, "save_steps": 2, "max_new_tokens": 4, "evaluation.max_rows": 2}
SETTINGS |= {"package.round_trip": "false", "evaluation.on_worse": "warn", "adapter.r": 2, "logging_steps": 2}


@pytest.fixture
def train(run: Command, tiny_model: Path, client: MlflowClient) -> Command:
    """Train with the settings above and others, in the test's folder."""
    rows = write_jsonl(Path("rows.jsonl"), make_rows(24))

    def call(**settings: Any) -> Result:
        given = {"model": tiny_model, "data": rows} | SETTINGS | settings
        return run("train", "lora", "--quiet", *(f"--{key}={value}" for key, value in given.items()))

    return call


@pytest.fixture
def stop(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """`stop(3)`: SIGTERM arrives once, in step 3."""

    def at(step: int) -> None:
        plain = WatchCallback.on_step_end
        waiting = [step]

        def on_step_end(self: Any, args: Any, state: Any, control: Any, **more: Any) -> None:
            if waiting == [state.global_step]:
                waiting.clear()
                os.kill(os.getpid(), signal.SIGTERM)
            plain(self, args, state, control, **more)

        monkeypatch.setattr(WatchCallback, "on_step_end", on_step_end)

    return at


def latest(client: MlflowClient) -> Run:
    (newest, *_) = client.search_runs(["0"], order_by=["attributes.start_time DESC"], max_results=1)
    return newest


def weights(run: Run) -> str:
    return file_hash(Path(run.data.tags["mlflow.mlflow_ft.folder"], "train", "adapter", "adapter_model.safetensors"))


def registered(client: MlflowClient, run: Run) -> list[str]:
    models = client.search_logged_models(["0"], filter_string=f"source_run_id='{run.info.run_id}'")
    versions = client.search_model_versions(f"run_id='{run.info.run_id}'")
    return sorted(model.name for model in models) + sorted(version.name for version in versions)


@pytest.fixture
def interrupted(train: Command, stop: Callable[[int], None], client: MlflowClient) -> Run:
    """A run that was stopped in step 3."""
    stop(3)
    result = train(model_name="resumed")
    run = latest(client)
    assert (result.code, run.info.status) == (143, "KILLED")
    assert f"to continue: mlflow-ft resume {run.info.run_id}" in result.err
    return run


def test_a_stopped_run_ends_as_if_it_had_not_been(
    train: Command, run: Command, client: MlflowClient, interrupted: Run
) -> None:
    assert train(model_name="whole").code == 0
    whole = latest(client)
    result = run("resume", interrupted.info.run_id, "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out)["run_id"] == interrupted.info.run_id
    again = client.get_run(interrupted.info.run_id)
    assert (again.info.status, weights(again)) == ("FINISHED", weights(whole))
    assert again.data.tags["mlflow_ft.resumed"].startswith("after step 3 on ")
    assert not {"mlflow_ft.error", "mlflow_ft.stage"} & again.data.tags.keys()
    for key in ("train/loss", "train/epoch", "eval/loss", "train/learning_rate"):
        curves = [client.get_metric_history(of.info.run_id, key) for of in (whole, again)]
        assert [(point.step, point.value) for point in curves[0]] == [(point.step, point.value) for point in curves[1]]
    assert registered(client, again) == ["adapter", "merged", "resumed", "resumed-adapter"]

    result = run("resume", interrupted.info.run_id)
    assert (result.code, f"run {interrupted.info.run_id} is FINISHED" in result.err) == (2, True)
    assert registered(client, again) == ["adapter", "merged", "resumed", "resumed-adapter"]


def test_a_changed_setting_is_listed_and_refused(run: Command, client: MlflowClient, interrupted: Run) -> None:
    given = ("resume", interrupted.info.run_id, "--learning_rate", "0.5", "--run.seed", "1", "--run.name", "other")
    result = run(*given)
    assert result.code == 2
    assert all(name in result.err for name in ("training.learning_rate", "run.seed", "--accept-changes"))
    assert "run.name" not in result.err  # it has no effect on the training
    assert client.get_run(interrupted.info.run_id).info.status == "KILLED"
    result = run(*given, "--accept-changes")
    assert result.code == 0, result.err
    tags = client.get_run(interrupted.info.run_id).data.tags
    assert "training.learning_rate" in tags["mlflow_ft.accepted_changes"]


def test_a_run_is_resumed_from_any_folder(
    run: Command, client: MlflowClient, interrupted: Run, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Its settings name `rows.jsonl`, in the folder where it was started."""
    os.chdir(tmp_path_factory.mktemp("other"))
    result = run("resume", interrupted.info.run_id)
    assert result.code == 0, result.err
    assert client.get_run(interrupted.info.run_id).info.status == "FINISHED"


@pytest.mark.long
def test_another_machine_is_noted_not_refused(run: Command, client: MlflowClient, interrupted: Run) -> None:
    client.set_tag(interrupted.info.run_id, "mlflow.mlflow_ft.threads", "96")
    result = run("resume", interrupted.info.run_id)
    assert result.code == 0, result.err
    assert "changed since the run was started: machine threads: 96, now" in result.err


def test_rows_may_move_but_not_change(run: Command, client: MlflowClient, interrupted: Run) -> None:
    run_id = interrupted.info.run_id
    content = Path("rows.jsonl").read_text()
    Path("rows.jsonl").rename("moved.jsonl")
    result = run("resume", run_id)
    assert (result.code, "rows.jsonl" in result.err) == (2, True)
    Path("moved.jsonl").write_text(content.replace("apple", "pear"))
    result = run("resume", run_id, "--data", "moved.jsonl")
    assert (result.code, "the rows, or how they are prepared, changed since" in result.err) == (2, True)
    Path("moved.jsonl").write_text(content)
    result = run("resume", run_id, "--data", "moved.jsonl")
    assert result.code == 0, result.err
    assert client.get_run(run_id).info.status == "FINISHED"


def test_the_store_alone_is_enough(run: Command, client: MlflowClient, interrupted: Run) -> None:
    shutil.rmtree(interrupted.data.tags["mlflow.mlflow_ft.folder"])
    result = run("resume", interrupted.info.run_id, "--run.output_dir", "elsewhere")
    assert result.code == 0, result.err
    again = client.get_run(interrupted.info.run_id)
    assert again.data.tags["mlflow_ft.resumed"].startswith("after step 3 on ")
    assert Path(again.data.tags["mlflow.mlflow_ft.folder"]).parent == Path("elsewhere").absolute()
    assert (Path("elsewhere") / interrupted.info.run_id / "train" / "adapter").is_dir()


def test_a_corrupt_checkpoint_is_replaced_from_the_store(run: Command, client: MlflowClient, interrupted: Run) -> None:
    place = Path(interrupted.data.tags["mlflow.mlflow_ft.folder"], "train", "checkpoints")
    (place / "step-000003" / "weights.safetensors").write_bytes(b"")
    result = run("resume", interrupted.info.run_id)
    assert result.code == 0, result.err
    assert "step-000003: the checkpoint is corrupt and is skipped: weights.safetensors  has changed" in result.err
    assert client.get_run(interrupted.info.run_id).data.tags["mlflow_ft.resumed"].startswith("after step 3 on ")


@pytest.mark.long
def test_half_an_upload_does_not_count(run: Command, client: MlflowClient, interrupted: Run) -> None:
    artifacts = Path(interrupted.info.artifact_uri, "checkpoints")
    sorted((artifacts / "files").iterdir())[0].unlink()
    shutil.rmtree(interrupted.data.tags["mlflow.mlflow_ft.folder"])
    result = run("resume", interrupted.info.run_id)
    assert result.code == 0, result.err
    assert "step-000003: the checkpoint in the store is incomplete and is skipped" in result.err
    assert client.get_run(interrupted.info.run_id).data.tags["mlflow_ft.resumed"].startswith("from the start on ")


def test_a_run_with_a_living_process_is_not_resumed(run: Command, client: MlflowClient, interrupted: Run) -> None:
    process = psutil.Process()
    beat = {"at": 1e12, "host": "there", "machine": heartbeat.machine(), "pid": process.pid}
    client.set_tag(interrupted.info.run_id, heartbeat.TAG, json.dumps(beat | {"started": process.create_time()}))
    client.update_run(interrupted.info.run_id, status="RUNNING")
    result = run("resume", interrupted.info.run_id)
    assert result.code == 2
    assert f"process {process.pid} on there was working on it" in result.err
    assert "mlflow-ft runs --reap" in result.err


def test_what_cannot_be_resumed_is_said(run: Command, client: MlflowClient) -> None:
    missing = "could not read the run 0123456789abcdef"
    for words, said in ((["resume"], "no run given"), (["resume", "0123456789abcdef"], missing)):
        result = run(*words)
        assert (result.code, said in result.err) == (2, True)
    result = run("resume", "0123456789abcdef", "--config", "other.yaml")
    assert (result.code, "the run has recorded its configuration" in result.err) == (2, True)
    with_nothing = client.create_run("0").info.run_id
    result = run("resume", with_nothing)
    assert (result.code, "it is not a training run of mlflow-ft" in result.err) == (2, True)


def test_the_run_that_mlflow_run_opened_says_why_nothing_was_resumed(
    run: Command, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched = client.create_run("0").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", launched)
    assert run("resume", "0123456789abcdef").code == 2
    opened = client.get_run(launched)
    assert (opened.info.status, "0123456789abcdef" in opened.data.tags["mlflow_ft.error"]) == ("FAILED", True)


def test_the_same_command_continues_its_own_run(
    train: Command, stop: Callable[[int], None], client: MlflowClient
) -> None:
    before = len(client.search_runs(["0"]))
    asked = {"resume": "auto", "model_name": "auto"}
    stop(4)
    assert train(**asked).code == 143
    interrupted = latest(client)
    assert train(**asked, **{"adapter.r": 4}).code == 0  # other settings: another run
    assert train(**asked, **{"run.name": "another name"}).code == 0
    assert len(client.search_runs(["0"])) == before + 2
    again = client.get_run(interrupted.info.run_id)
    assert (again.info.status, again.data.tags["mlflow_ft.resumed"][:12]) == ("FINISHED", "after step 4")
    assert train(**asked).code == 0  # nothing is interrupted any more
    assert len(client.search_runs(["0"])) == before + 3


def test_a_run_that_was_stopped_while_it_was_packaged_goes_on_there(
    run: Command, train: Command, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow_ft.stages import package

    seal = package._seal

    def stopped(*arguments: Any) -> None:
        seal(*arguments)
        monkeypatch.setattr(package, "_seal", seal)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(package, "_seal", stopped)
    assert train(model_name="packaged").code == 143
    interrupted = latest(client)
    assert (interrupted.info.status, interrupted.data.tags["mlflow_ft.stage"]) == ("KILLED", "package")
    trained = weights(interrupted)
    result = run("resume", interrupted.info.run_id)
    assert result.code == 0, result.err
    assert "trained already, for 6 steps" in result.err
    assert "answers of" not in result.err  # the evaluation is not repeated
    again = client.get_run(interrupted.info.run_id)
    assert (again.info.status, weights(again)) == ("FINISHED", trained)
    assert registered(client, again) == ["adapter", "merged", "packaged", "packaged-adapter"]


def test_the_best_checkpoint_comes_from_the_store(
    run: Command, tiny_model: Path, stop: Callable[[int], None], client: MlflowClient
) -> None:
    """The held-out rows ask for something else, so that their loss rises; then the run's folder is lost."""
    turns = [{"role": "user", "content": "say"}, {"role": "assistant", "content": "xyz 123 QQ"}]
    held = write_jsonl(Path("held.jsonl"), [{"messages": turns}])
    rows = write_jsonl(Path("rows.jsonl"), make_rows(24))
    given = {"model": tiny_model, "data": rows, "data.eval_path": held, "data.fail_on": "never", "learning_rate": 0.02}
    given |= {name: value for name, value in SETTINGS.items() if name != "adapter.r"}
    given |= {"lr_scheduler_type": "constant", "warmup_steps": 0, "per_device_train_batch_size": 4}
    given |= {"eval_steps": 1, "load_best": "true", "save_total_limit": 1}
    stop(5)
    assert run("train", "full", "--quiet", *(f"--{key}={value}" for key, value in given.items())).code == 143
    interrupted = latest(client)
    curve = {point.step: point.value for point in client.get_metric_history(interrupted.info.run_id, "eval/loss")}
    lowest = min(list(curve)[1:], key=lambda step: curve[step])
    assert lowest < 5
    kept = {file.path for file in client.list_artifacts(interrupted.info.run_id, "checkpoints") if not file.is_dir}
    assert kept == {f"checkpoints/step-{step:06}.json" for step in (lowest, 5)}
    Path(interrupted.data.tags["mlflow.mlflow_ft.folder"]).rename("lost")
    result = run("resume", interrupted.info.run_id)
    assert result.code == 0, result.err
    metrics = client.get_run(interrupted.info.run_id).data.metrics
    assert (metrics["train/chosen_step"], metrics["train/steps"]) == (lowest, 6)
    assert metrics["eval/tuned/loss"] == pytest.approx(curve[lowest], rel=1e-5)


def test_checkpoints_that_were_logged_as_models_are_not_doubled(
    run: Command, train: Command, stop: Callable[[int], None], client: MlflowClient
) -> None:
    stop(5)
    asked = {"log_checkpoints": "true", "eval_steps": 2, "save_steps": 3, "upload_checkpoints": "false"}
    assert train(model_name="logged", **asked).code == 143
    interrupted = latest(client)
    assert registered(client, interrupted) == ["checkpoint-2", "checkpoint-4"]
    shutil.rmtree(Path(interrupted.data.tags["mlflow.mlflow_ft.folder"], "train", "checkpoints", "step-000005"))
    result = run("resume", interrupted.info.run_id)
    assert result.code == 0, result.err
    assert "removed what the interrupted attempt left: the logged model checkpoint-4" in result.err
    names = ["adapter", "checkpoint-2", "checkpoint-4", "checkpoint-6", "merged", "logged", "logged-adapter"]
    assert registered(client, client.get_run(interrupted.info.run_id)) == names


REWARDS = """
def length(completions, **_):
    return [len(turns[-1]["content"]) / 100 for turns in completions]
"""


@pytest.mark.long
def test_reward_functions_that_changed_are_refused(
    run: Command, tiny_model: Path, stop: Callable[[int], None], client: MlflowClient
) -> None:
    rows = write_jsonl(Path("rows.jsonl"), make_rows(12))
    Path("rewards.py").write_text(REWARDS)
    given = {"model": tiny_model, "data": rows, "reward_funcs": "rewards.py:length", "num_generations": 2}
    given |= SETTINGS | {"max_steps": 3, "max_completion_length": 4, "per_device_train_batch_size": 2}
    stop(2)
    assert run("train", "grpo", "--quiet", *(f"--{key}={value}" for key, value in given.items())).code == 143
    run_id = latest(client).info.run_id
    Path("rewards.py").write_text(REWARDS.replace("100", "50"))
    result = run("resume", run_id)
    assert (result.code, "the reward functions changed since the run was started" in result.err) == (2, True)
    Path("rewards.py").write_text(REWARDS)
    result = run("resume", run_id)
    assert result.code == 0, result.err
    assert client.get_run(run_id).info.status == "FINISHED"


@pytest.mark.long
def test_an_adapter_behind_an_alias_is_the_one_that_was_trained_further(
    run: Command, train: Command, stop: Callable[[int], None], client: MlflowClient
) -> None:
    assert train(model_name="first").code == 0
    stop(3)
    assert train(model_name="second", init_from="models:/first-adapter@candidate").code == 143
    run_id = latest(client).info.run_id
    assert train(model_name="first", **{"run.seed": 3}).code == 0  # the alias moves to another adapter
    result = run("resume", run_id)
    assert result.code == 0, result.err
    tags = client.get_run(run_id).data.tags
    assert tags["mlflow_ft.start"].startswith("models:/first-adapter/1 ")
    assert "mlflow_ft.accepted_changes" not in tags

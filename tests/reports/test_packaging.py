"""Packaging is rehearsed before the first step, and resumed if it still fails.

huggingface/transformers#42100, LlamaFactory#2545 and peft#3761 each ended a training with a traceback at its end.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Run as MlflowRun

from mlflow_ft.hashes import file_hash
from mlflow_ft.stages import done
from mlflow_ft.testing import make_rows, write_jsonl
from tests.cli.conftest import Result, Run
from tests.installed import Install
from tests.reports.small_models import CHATML

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning", "ignore:.*:FutureWarning")
Small = Callable[..., Path]
QUICK = {"max_steps": 2, "max_new_tokens": 4, "evaluation.max_rows": 2, "package.round_trip": "false"}
REHEARSED = """
from mlflow_ft import Packager, hookimpl

def refuse(job, trained, folder):
    assert (trained.adapter / "adapter_config.json").is_file()
    raise ValueError("a name of 300 characters")

@hookimpl
def register_packagers():
    return [Packager(name="short", summary="of short names", package=refuse, rehearse=refuse)]
"""
TEMPLATES = """
from mlflow_ft import Exporter, hookimpl

def ready(folder):
    template = folder and folder / "chat_template.jinja"
    known = not template or not template.is_file() or "Speaker" not in template.read_text()
    return None if known else "it does not know this chat template"

@hookimpl
def register_exporters():
    return [Exporter(name="other", summary="for another program", export=None, opened=None, ready=ready)]
"""
FRAGILE = """
from pathlib import Path
from mlflow_ft import Packager, hookimpl
from mlflow_ft.builtin.packagers import package_adapter

def package(job, trained, folder):
    if not Path("{flag}").exists():
        raise RuntimeError("a disk that was pulled out")
    package_adapter(job, trained, folder)

@hookimpl
def register_packagers():
    bad = {partial} and not Path("{flag}").exists()
    used = package_adapter if {partial} else package
    return [Packager(name="extra", summary="extra", package=used, suffix="/no" if bad else "-extra")]
"""
TEMPLATE = "{# Speaker #}" + CHATML


def train(run: Run, small: Small, folder: Path, method: str = "lora", **settings: Any) -> Result:
    rows = write_jsonl(folder / "rows.jsonl", make_rows(12))
    given = QUICK | {"model": small("llama"), "data": rows, "run.output_dir": folder / "outputs"} | settings
    return run("train", method, *(f"--{key}={value}" for key, value in given.items()))


def latest(client: MlflowClient) -> MlflowRun:
    (newest, *_) = client.search_runs(["0"], order_by=["attributes.start_time DESC"], max_results=1)
    return newest


def kept(client: MlflowClient, run_id: str) -> tuple[list[str], list[str]]:
    """The names of the logged models and of the versions of a run."""
    models = client.search_logged_models(["0"], filter_string=f"source_run_id='{run_id}'")
    versions = client.search_model_versions(f"run_id='{run_id}'")
    return sorted(model.name for model in models), sorted(f"{version.name}/{version.version}" for version in versions)


def test_a_form_that_cannot_be_made_is_refused_before_the_first_step(
    run: Run, client: MlflowClient, small: Small, tmp_path: Path, install: Install
) -> None:
    install("short", REHEARSED)
    result = train(run, small, tmp_path)
    assert result.code == 2
    assert "packaging short would fail after the training: plugin short, packager 'short': rehearse" in result.err
    assert "a name of 300 characters" in result.err
    assert "nothing was trained" in result.err
    failed = latest(client)
    assert failed.info.status == "FAILED"
    assert "train/loss" not in failed.data.metrics
    [folder] = (tmp_path / "outputs").iterdir()
    assert not (folder / "train").exists()
    assert not list(folder.glob("rehearsal-*"))
    result = run("package", failed.info.run_id)
    assert (result.code, "has no finished training" in result.err) == (2, True)


def test_an_exporter_is_asked_of_what_will_be_packaged(
    run: Run, client: MlflowClient, small: Small, tmp_path: Path, install: Install
) -> None:
    install("templates", TEMPLATES)
    (tmp_path / "own.jinja").write_text(TEMPLATE)
    result = train(run, small, tmp_path, **{"package.exports": "other", "data.chat_template": tmp_path / "own.jinja"})
    assert result.code == 2
    assert "other cannot be made: it does not know this chat template" in result.err
    assert "train/loss" not in latest(client).data.metrics


@pytest.mark.parametrize("partial", [False, True], ids=["while a form is made", "between two versions"])
def test_a_run_that_failed_after_its_training_is_taken_up_again(
    run: Run, client: MlflowClient, small: Small, tmp_path: Path, install: Install, *, partial: bool
) -> None:
    install("fragile", FRAGILE.format(flag=tmp_path / "flag", partial=partial))
    name = f"again-{partial}"
    result = train(run, small, tmp_path, model_name=name)
    assert result.code == 2
    assert "the trained weights are in" in result.err
    if not partial:
        assert "plugin fragile, packager 'extra': package raised RuntimeError: a disk that was pulled out" in result.err
        assert "mlflow-ft resume" in result.err
    failed = latest(client)
    run_id = failed.info.run_id
    assert failed.info.status == "FAILED"
    weights = Path(failed.data.tags["mlflow.mlflow_ft.folder"]) / "train" / "adapter" / "adapter_model.safetensors"
    trained = file_hash(weights)
    assert bool(kept(client, run_id)[1]) == partial

    (tmp_path / "flag").touch()
    result = run("package", run_id)
    assert result.code == 0, result.err
    again = client.get_run(run_id)
    assert again.info.status == "FINISHED"
    assert "mlflow_ft.error" not in again.data.tags
    models, versions = kept(client, run_id)
    assert models == ["adapter", "extra", "merged"]
    assert {version.partition("/")[0] for version in versions} == {name, f"{name}-adapter", f"{name}-extra"}
    assert len(versions) == 3
    assert file_hash(weights) == trained
    assert done.result(weights.parents[2] / "package")
    assert client.get_model_version_by_alias(name, "candidate").run_id == run_id

    result = run("package", run_id)
    assert result.code == 2
    assert "is FINISHED" in result.err
    assert kept(client, run_id) == (models, versions)


def test_what_has_changed_since_is_not_packaged(
    run: Run, client: MlflowClient, small: Small, tmp_path: Path, install: Install
) -> None:
    install("fragile", FRAGILE.format(flag=tmp_path / "flag", partial=True))
    train(run, small, tmp_path, model_name="changed")
    run_id = latest(client).info.run_id
    before = kept(client, run_id)
    assert before[1] == ["changed-adapter/1", "changed/1"]
    (tmp_path / "flag").touch()

    rows = tmp_path / "rows.jsonl"
    content = rows.read_text()
    rows.write_text(content.replace("apple", "pear"))
    result = run("package", run_id)
    assert (result.code, kept(client, run_id)) == (2, before)
    assert "the rows, or how they are prepared, changed since" in result.err
    rows.write_text(content)

    name, _, version = before[1][0].partition("/")
    client.set_registered_model_alias(name, "mine", version)
    result = run("package", run_id)
    assert (result.code, kept(client, run_id)) == (2, before)
    assert "has the alias mine" in result.err
    client.delete_registered_model_alias(name, "mine")

    with FileLock(Path(client.get_run(run_id).data.tags["mlflow.mlflow_ft.folder"]) / "run.lock"):
        result = run("package", run_id)
    assert (result.code, kept(client, run_id)) == (2, before)
    assert "another process is working on run" in result.err

    result = run("package", run_id)
    assert result.code == 0, result.err


def test_what_cannot_be_packaged_is_said(run: Run, client: MlflowClient, small: Small, tmp_path: Path) -> None:
    result = run("package")
    assert (result.code, "no run given" in result.err) == (2, True)
    result = run("package", "0123456789abcdef")
    assert (result.code, "0123456789abcdef" in result.err) == (2, True)
    with_nothing = client.create_run("0").info.run_id
    result = run("package", with_nothing)
    assert (result.code, "it is not a training run of mlflow-ft" in result.err) == (2, True)
    result = train(run, small, tmp_path)
    assert result.code == 0, result.err
    run_id = latest(client).info.run_id
    client.set_tag(run_id, "mlflow_ft.refused", "worse than its base")
    result = run("package", run_id)
    assert (result.code, f"run {run_id} was refused (worse than its base)" in result.err) == (1, True)

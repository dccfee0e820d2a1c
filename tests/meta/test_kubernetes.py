"""kubernetes/: what MLflow's Kubernetes backend makes of it is a Job that Kubernetes takes, with the user's words."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from mlflow_ft.docs.kubernetes import kubernetes_project

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "kubernetes"
BACKEND = json.loads((FOLDER / "backend.json").read_text())
HOSTILE = "a b; $(touch owned) `touch owned` ' \" \\ #"
GIVEN = {"model": HOSTILE, "training.learning_rate": "1e-4", "run.name": HOSTILE}
PRINT_WORDS = "import json, sys; print(json.dumps(sys.argv[1:]))"
WANTED = [
    *("-m", "mlflow_ft", "train", "lora", "--model", HOSTILE, "--data", "", "--config", ""),
    *("--training.learning_rate", "1e-4", "--run.name", HOSTILE),
]


@pytest.fixture(scope="module")
def command() -> list[str]:
    """The entry point's command as MLflow makes it, for any backend."""
    from mlflow.projects.utils import get_entry_point_command, load_project

    return get_entry_point_command(load_project(str(FOLDER)), "lora", GIVEN, None)


@pytest.fixture(scope="module")
def job(command: list[str]) -> dict[str, Any]:
    """The Job as MLflow's backend sends it to Kubernetes."""
    from mlflow.projects import _parse_kubernetes_config, kubernetes

    config = _parse_kubernetes_config({**BACKEND, "kube-job-template-path": str(FOLDER / "job.yaml")})
    return kubernetes._get_kubernetes_job_definition(
        *("mlflow-ft", config["repository-uri"], "sha256:" + 64 * "0", kubernetes._get_run_command(command)),
        {"MLFLOW_RUN_ID": "r", "MLFLOW_EXPERIMENT_ID": "0", "MLFLOW_TRACKING_URI": "http://mlflow:5000"},
        config["kube-job-template"],
    )


def test_its_mlproject_is_generated_from_ours() -> None:
    assert (FOLDER / "MLproject").read_text() == kubernetes_project(), "run python -m mlflow_ft.docs"
    ours, in_image = yaml.safe_load((ROOT / "MLproject").read_text()), yaml.safe_load(kubernetes_project())
    assert {key for key in in_image if key.endswith("_env")} == {"docker_env"}, "MLflow refuses two environments"
    commands = [
        {name: point["command"] for name, point in project["entry_points"].items()} for project in (ours, in_image)
    ]
    assert commands[1] == {name: f"exec-unquoted {command}" for name, command in commands[0].items()}


@pytest.mark.parametrize("version", ["1.28", "1.37"])
def test_the_job_follows_the_schema(job: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(job, version, strict=True)


def test_the_claim_follows_the_schema_and_is_the_one_that_the_job_mounts(job: dict[str, Any]) -> None:
    claim = yaml.safe_load((FOLDER / "claim.yaml").read_text())
    kubernetes_validate.validate(claim, "1.37", strict=True)
    mounted = next(volume for volume in job["spec"]["template"]["spec"]["volumes"] if volume["name"] == "data")
    assert mounted["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert job["metadata"]["namespace"] == claim["metadata"]["namespace"]


def test_a_misspelt_key_is_found(job: dict[str, Any]) -> None:
    broken = copy.deepcopy(job)
    broken["spec"]["template"]["spec"]["restartPolice"] = "Never"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, "1.37", strict=True)


@pytest.fixture
def started(tmp_path: Path) -> list[str]:
    """exec-unquoted, and for `python` a program that prints the words it gets."""
    program = tmp_path / "program.py"
    program.write_text(PRINT_WORDS)
    return [sys.executable, str(FOLDER / "exec_unquoted.py"), sys.executable, str(program)]


def received(command: list[str], folder: Path, **environ: str) -> Any:
    outside = {key: value for key, value in os.environ.items() if key != "KUBERNETES_SERVICE_HOST"}
    done = subprocess.run(command, cwd=folder, env=outside | environ, check=True, capture_output=True, text=True)
    assert not (folder / "owned").exists(), "a value was run as a command"
    return json.loads(done.stdout)


def test_in_a_pod_the_words_arrive_as_they_were_given(job: dict[str, Any], started: list[str], tmp_path: Path) -> None:
    """Kubernetes starts the list without a shell, with the quotes that MLflow has put around each word."""
    unquote, python, *words = job["spec"]["template"]["spec"]["containers"][0]["command"]
    assert (unquote, python) == ("exec-unquoted", "python")
    assert words != WANTED, "MLflow no longer quotes: exec-unquoted can go"
    assert received([*started, *words], tmp_path, KUBERNETES_SERVICE_HOST="10.0.0.1") == WANTED


def test_after_a_shell_nothing_is_unquoted_again(command: list[str], started: list[str], tmp_path: Path) -> None:
    """MLflow's backend for one machine runs the same command as `docker run IMAGE bash -c COMMAND`."""
    script = command[0].replace("exec-unquoted python", '"$@"')
    assert received(["bash", "-c", script, "bash", *started], tmp_path) == WANTED

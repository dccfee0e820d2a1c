"""The target of `mlflow deployments`: each deployment is a `mlflow-ft serve --engine vllm` on this machine.

mlflow deployments create -t mlflow-ft-vllm -m models:/NAME@champion --name support -C port=8000
mlflow deployments predict -t mlflow-ft-vllm --name support -I requests.json
mlflow deployments delete -t mlflow-ft-vllm --name support
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import requests
from mlflow.deployments import BaseDeploymentClient, PredictionsResponse
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    INTERNAL_ERROR,
    INVALID_PARAMETER_VALUE,
    RESOURCE_ALREADY_EXISTS,
    RESOURCE_DOES_NOT_EXIST,
)

from mlflow_ft.data.cache import cache_dir
from mlflow_ft_vllm.options import VllmOptions

FLAVOR = "mlflow-ft-vllm"
OF_SERVE = ("host", "port", "timeout", "base", "every")
OF_VLLM = tuple(field.name for field in dataclasses.fields(VllmOptions))
LAST_LINES = 12
POLL_SECONDS = 0.2
END_SECONDS = 45
"""How long a server may take to end answers and vLLM."""
LONGEST = 3600
HELP = f"""
Deployments on this machine: each is a process, `mlflow-ft serve MODEL --engine vllm`, which goes on when the command
has ended. Their records and logs are in {cache_dir() / "deployments"}.

  target    mlflow-ft-vllm
  -m        models:/NAME@alias, models:/NAME/3, runs:/RUN_ID/merged, or an adapter: models:/NAME-adapter@alias
  -C        follow=true: a promotion changes the model without a restart
            of the server: {", ".join(OF_SERVE)} (port=0, the default, picks a free one)
            of vLLM: {", ".join(OF_VLLM)}

A deployment is created when vLLM has been proved to give the trained model's outputs.
"""


def target_help() -> str:
    """What `mlflow deployments help -t mlflow-ft-vllm` prints."""
    return HELP


def run_local(
    target: str, name: str, model_uri: str, flavor: str | None = None, config: Mapping[str, Any] | None = None
) -> None:
    """Deploy a model on this machine, as `create` does."""
    VllmDeployments(target).create_deployment(name, model_uri, flavor, dict(config or {}))


class VllmDeployments(BaseDeploymentClient):
    """Starts, lists, asks and ends servers."""

    def create_deployment(
        self,
        name: str,
        model_uri: str,
        flavor: str | None = None,
        config: Mapping[str, Any] | None = None,
        endpoint: str | None = None,
    ) -> dict[str, Any]:
        """Start a server, and wait until it has been proved.

        Raises:
            MlflowException: there is a deployment of this name; a setting is unknown; the server did not start.
        """
        _no_endpoint(endpoint)
        if _file(name).is_file() and _process(_record(name)):
            raise MlflowException(f"there is a deployment {name!r}", error_code=RESOURCE_ALREADY_EXISTS)
        record = _start(name, model_uri, dict(config or {}))
        _write(name, record)
        return _shown(record)

    def update_deployment(
        self,
        name: str,
        model_uri: str | None = None,
        flavor: str | None = None,
        config: Mapping[str, Any] | None = None,
        endpoint: str | None = None,
    ) -> dict[str, Any]:
        """Start another server, on a free port, and end the present one when the other has been proved.

        For an alias that moves there is no need for it: create the deployment with `follow=true`.
        """
        _no_endpoint(endpoint)
        present = _record(name)
        settings = {**present["config"], **(config or {})}
        if "port" not in (config or {}):
            settings["port"] = 0
        record = _start(name, model_uri or present["model_uri"], settings)
        _end(present)
        _write(name, record)
        return _shown(record)

    def delete_deployment(
        self, name: str, config: Mapping[str, Any] | None = None, endpoint: str | None = None
    ) -> None:
        """End a server, with all of vLLM."""
        _no_endpoint(endpoint)
        if _file(name).is_file():
            _end(_record(name))
            _file(name).unlink()

    def list_deployments(self, endpoint: str | None = None) -> list[dict[str, Any]]:
        """Every deployment of this user on this machine."""
        _no_endpoint(endpoint)
        return [_shown(json.loads(file.read_text())) for file in sorted(_folder().glob("*.json"))]

    def get_deployment(self, name: str, endpoint: str | None = None) -> dict[str, Any]:
        """A deployment: its model, address, state and log."""
        _no_endpoint(endpoint)
        return _shown(_record(name))

    def predict(
        self, deployment_name: str | None = None, inputs: Any = None, endpoint: str | None = None
    ) -> PredictionsResponse:
        """Answer chat requests: one, a list of them, or a table with a column `messages`.

        Returns:
            Under `predictions`, an OpenAI chat completion for each.
        """
        _no_endpoint(endpoint)
        record = _record(str(deployment_name))
        asked = inputs.to_dict(orient="records") if hasattr(inputs, "to_dict") else inputs
        rows = asked if isinstance(asked, list) else [asked]
        return PredictionsResponse(predictions=[_ask(record, row) for row in rows])


def _ask(record: Mapping[str, Any], row: Any) -> Any:
    request = {key: value for key, value in row.items() if not (isinstance(value, float) and value != value)}
    try:
        answer = requests.post(f"{record['url']}/invocations", json=request, timeout=LONGEST)
    except requests.ConnectionError as error:
        raise MlflowException(
            f"{record['name']} does not answer on {record['url']}; its log: {record['log']}", error_code=INTERNAL_ERROR
        ) from error
    if not answer.ok:
        wrong = INVALID_PARAMETER_VALUE if answer.status_code < requests.codes.server_error else INTERNAL_ERROR
        raise MlflowException(answer.json()["error"]["message"], error_code=wrong)
    return answer.json()


def _no_endpoint(endpoint: str | None) -> None:
    if endpoint is not None:
        raise MlflowException("mlflow-ft-vllm has no endpoints", error_code=INVALID_PARAMETER_VALUE)


# --- records


def _folder() -> Path:
    folder = Path(cache_dir() / "deployments")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _file(name: str) -> Path:
    if not re.fullmatch(r"[\w][\w.-]*", name):
        raise MlflowException(
            f"{name!r} cannot name a deployment: use letters, digits, _, . and -", error_code=INVALID_PARAMETER_VALUE
        )
    return _folder() / f"{name}.json"


def _record(name: str) -> dict[str, Any]:
    if not _file(name).is_file():
        known = ", ".join(file.stem for file in sorted(_folder().glob("*.json"))) or "none"
        raise MlflowException(
            f"there is no deployment {name!r}; there are: {known}", error_code=RESOURCE_DOES_NOT_EXIST
        )
    record: dict[str, Any] = json.loads(_file(name).read_text())
    return record


def _write(name: str, record: Mapping[str, Any]) -> None:
    whole = _file(name).with_suffix(".part")
    whole.write_text(json.dumps(record, indent=2) + "\n")
    whole.replace(_file(name))


def _shown(record: Mapping[str, Any]) -> dict[str, Any]:
    state = "running" if _process(record) else "ended"
    return {**{key: record[key] for key in ("name", "flavor", "model_uri", "url", "log", "config")}, "state": state}


# --- processes

_started: dict[int, subprocess.Popen[bytes]] = {}
"""Those that this process has started, by their numbers; they go on without it."""


def _start(name: str, model_uri: str, config: dict[str, Any]) -> dict[str, Any]:
    """Start a server and wait for it, and show what it says: it may have to install vLLM first."""
    log = _file(name).with_suffix(".log")
    announced = _file(name).with_suffix(".url")
    with announced.open("w") as out, log.open("w") as err:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow_ft", "serve", model_uri, *_arguments(config)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,  # it goes on when this command has ended
        )
    _started[process.pid] = process
    created = psutil.Process(process.pid).create_time()
    try:
        with log.open() as said:
            while not (line := announced.read_text()).endswith("\n"):
                sys.stderr.write(said.read())
                if process.poll() is not None:
                    end = "\n".join(log.read_text().strip().splitlines()[-LAST_LINES:])
                    raise MlflowException(f"{name} did not start; the end of {log}:\n{end}", error_code=INTERNAL_ERROR)
                time.sleep(POLL_SECONDS)
    except BaseException:
        _stop(process.pid, created)
        raise
    finally:
        announced.unlink(missing_ok=True)
    about = {"name": name, "flavor": FLAVOR, "model_uri": model_uri, "config": config, "log": str(log)}
    return {**about, "url": json.loads(line)["url"], "pid": process.pid, "created": created}


def _arguments(config: Mapping[str, Any]) -> Sequence[str]:
    """The command line of `mlflow-ft serve`.

    Raises:
        MlflowException: a setting is unknown.
    """
    words = ["--engine", "vllm", "--json", "--port", str(config.get("port", 0))]
    for key, value in config.items():
        if key == "follow":
            words += ["--follow"] if str(value).lower() in ("true", "1", "yes") else []
        elif key in OF_SERVE:
            words += [] if key == "port" else [f"--{key}", str(value)]
        elif key in OF_VLLM:
            words.append(f"--plugins.vllm.{key}={value}")
        else:
            known = ", ".join(("follow", *OF_SERVE, *OF_VLLM))
            raise MlflowException(f"-C {key}: unknown; known: {known}", error_code=INVALID_PARAMETER_VALUE)
    return words


def _process(record: Mapping[str, Any]) -> psutil.Process | None:
    """The server's process, unless it has ended; its number may belong to another one since."""
    if own := _started.get(record["pid"]):
        own.poll()  # so that one that has ended does not remain as a zombie
    try:
        process = psutil.Process(record["pid"])
        same = process.create_time() == record["created"] and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return None
    return process if same else None


def _end(record: Mapping[str, Any]) -> None:
    _stop(record["pid"], record["created"])


def _stop(pid: int, created: float) -> None:
    """End a server, which ends vLLM; one that does not end in time is killed, and vLLM ends with it."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        process = _process({"pid": pid, "created": created})
        if process is None:
            return
        os.kill(pid, number)
        end = time.monotonic() + END_SECONDS
        while _process({"pid": pid, "created": created}) and time.monotonic() < end:
            time.sleep(POLL_SECONDS)

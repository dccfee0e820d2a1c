"""Run a job in several processes: check that it can be done, hand the job to a launcher, and take its result."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import TypeAdapter

from mlflow_ft import errors, processes
from mlflow_ft.config import Given
from mlflow_ft.config.schema import Config
from mlflow_ft.errors import ConfigError, FineTuneError, FollowedError, Problem, ProcessError
from mlflow_ft.records import Launcher
from mlflow_ft.registry import Registry
from mlflow_ft.stages import done
from mlflow_ft.values import Launch

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Request:
    """A job for the processes that a launcher starts: the arguments of a function of `pipeline`."""

    verb: Literal["run", "resume", "reproduce"]
    settings: str = ""
    """The configuration as JSON."""
    origins: dict[str, str] | None = None
    now: datetime | None = None
    run_id: str = ""
    changes: Sequence[Given] = ()
    accept_changes: bool = False
    only_package: bool = False
    tolerance: float | None = None
    output_dir: Path | None = None
    quiet: bool = False

    @classmethod
    def read(cls, text: str) -> Request:
        """A request that was written as JSON."""
        return TypeAdapter(cls).validate_json(text)

    @property
    def text(self) -> str:
        """As JSON."""
        return TypeAdapter(Request).dump_json(self).decode()

    @property
    def config(self) -> Config:
        """The configuration of a new run."""
        config = Config.model_validate_json(self.settings)
        return config.model_copy(update={"origins": self.origins or {}})


def of_config(config: Config, *, now: datetime | None, quiet: bool) -> Request:
    """The request for a new run."""
    return Request(verb="run", settings=config.model_dump_json(), origins=dict(config.origins), now=now, quiet=quiet)


def to_resume(
    run_id: str, changes: Sequence[Given], *, accept_changes: bool, only_package: bool, quiet: bool
) -> Request:
    """The request to continue a run."""
    return Request(
        verb="resume",
        run_id=run_id,
        changes=changes,
        accept_changes=accept_changes,
        only_package=only_package,
        quiet=quiet,
    )


def to_reproduce(run_id: str, tolerance: float | None, output_dir: Path | None, *, quiet: bool) -> Request:
    """The request to reproduce a run."""
    return Request(verb="reproduce", run_id=run_id, tolerance=tolerance, output_dir=output_dir, quiet=quiet)


def again(request: Request) -> Request:
    """The request after its processes were lost: the run that they left is continued; a reproduction begins anew.

    Raises:
        TrackingError: a process is still working on it, or the server does not answer.
    """
    if request.verb == "run":
        settings = json.loads(request.settings)
        settings["run"]["resume"] = "auto"
        return replace(request, settings=json.dumps(settings))
    if request.verb == "resume":
        from mlflow_ft.tracking import unfinished, vanished

        run = unfinished.find_run(request.run_id)
        vanished.reap_of(unfinished.CONFIG_KEY, run.data.tags[unfinished.CONFIG_KEY])
    return request


def launcher(config: Config, registry: Registry) -> Launcher | None:
    """The launcher that must start the run; None if the run is this process's: alone, or as a rank of several.

    Raises:
        ConfigError: more processes are asked for than this launcher starts, or it cannot start them.
    """
    record, place = registry.launchers[config.launch.launcher], processes.place()
    if place.size > 1 or processes.LAUNCHED in os.environ:
        return None
    wanted = config.launch.num_processes or config.launch.num_machines
    if record.launch is None:
        if wanted > 1:
            raise ConfigError(
                f"launch.launcher {record.name} is one process, but {wanted} are asked for",
                hint="start them with --launch.launcher accelerate, or start the command with torchrun or srun",
            )
        return None
    from mlflow_ft.engine.launching import strategy

    learned_prompt = registry.adapters[config.adapter.kind].learned_prompt
    if reason := strategy.refused(config, learned_prompt=learned_prompt) or record.refuses(config):
        raise ConfigError(f"launch.launcher {record.name}: {reason}")
    return record


def result(record: Launcher, config: Config, request: Request, kind: type[Result]) -> Result:
    """Run a request in the processes that a launcher starts, and return what rank 0 returned.

    Raises:
        FineTuneError: what rank 0 raised, or the processes ended without a result. FollowedError: the result is on
            another machine.
    """
    if record.launch is None:
        raise ValueError(f"launcher {record.name} starts no processes")
    from mlflow_ft.engine import hardware

    launch = Launch(settings=config.launch, request=request.text, processes=hardware.processes(config.launch))
    text = record.launch(launch)
    if not text and config.launch.machine_rank:
        raise FollowedError(f"machine {config.launch.machine_rank} is done; machine 0 has the run")
    if not text:
        raise ProcessError("the processes ended without a result", hint="their output above has the reason")
    answer = json.loads(text)
    if "error" in answer:
        raise _error(answer)
    outcome: Result = TypeAdapter(kind).validate_python(answer["outcome"])
    return outcome


def as_json(outcome: Any) -> str:
    """The outcome of rank 0."""
    return json.dumps({"outcome": done.plain(outcome)})


def error_as_json(error: FineTuneError) -> str:
    """An error of rank 0, to be raised again where the processes were started."""
    content = {
        "error": type(error).__name__,
        "message": error.message,
        "hint": error.hint,
        "problems": [(problem.place, problem.message, problem.hint) for problem in error.problems],
        "exit_code": error.exit_code,
    }
    return json.dumps(content)


def _error(answer: dict[str, Any]) -> FineTuneError:
    kind = getattr(errors, answer["error"], FineTuneError)
    if issubclass(kind, errors.StoppedError):
        return errors.StoppedError(answer["exit_code"] - 128)
    problems = [Problem(place=place, message=message, hint=hint) for place, message, hint in answer["problems"]]
    error: FineTuneError = kind(answer["message"], hint=answer["hint"], problems=problems)
    error.exit_code = answer["exit_code"]
    return error

"""Where the processes of a run are: this one alone, or several that accelerate starts."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from mlflow_ft import Launch, Launcher, hookimpl

if TYPE_CHECKING:
    from mlflow_ft import Config, Places, Trials


def launch(launch: Launch) -> str:
    """Start the processes with accelerate's launcher."""
    from mlflow_ft.engine.launching import starting

    return starting.launch(launch)


def refused(config: Config) -> str | None:
    """Why they cannot be started here."""
    from mlflow_ft.engine.launching import starting

    return starting.refused(config)


def trials(asked: Trials) -> AbstractContextManager[Places]:
    """The trials of a sweep as processes of this machine."""
    from mlflow_ft.engine.launching import beside

    return beside.trials(asked)


@hookimpl
def register_launchers() -> list[Launcher]:
    return [
        Launcher(name="local", summary="this process alone, on the CPU or on one GPU", trials=trials),
        Launcher(
            name="accelerate",
            summary="several processes, one for each GPU, started by accelerate: ddp, fsdp or DeepSpeed",
            launch=launch,
            refuses=refused,
        ),
    ]

"""What a run recorded for later commands: its configuration, its clock and its folder."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_ft.config import Given, read_yaml, resolve
from mlflow_ft.config.schema import Config
from mlflow_ft.errors import ConfigError
from mlflow_ft.registry import Registry
from mlflow_ft.stages.data import CLOCK_TAG
from mlflow_ft.stages.model import START_TAG
from mlflow_ft.stages.start import PREPARE

if TYPE_CHECKING:
    from mlflow.entities import Run

    from mlflow_ft.tracking import Store

COMMIT = re.compile(r"[0-9a-f]{40}")


def config(store: Store, run_id: str, registry: Registry) -> Config:
    """The configuration of a run, from its `config.yaml`.

    Raises:
        ConfigError: the run has none, trained nothing, or names something that is no longer installed.
    """
    return resolved(settings(store, run_id), registry)


def settings(store: Store, run_id: str) -> list[Given]:
    """The settings in a run's `config.yaml`.

    Raises:
        ConfigError: the run has none, or trained nothing.
    """
    text = store.read(run_id, "config.yaml") if run_id else None
    if not text:
        raise ConfigError(
            f"run {run_id or '(none)'} has no config.yaml: it is not a training run of mlflow-ft",
            hint=_instead(store, run_id),
        )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "config.yaml")
        file.write_text(text, encoding="utf-8")
        recorded = read_yaml(file)
    if _method(recorded) == PREPARE:
        raise ConfigError(f"run {run_id} only prepared data; it trained no model")
    return recorded


def _instead(store: Store, run_id: str) -> str:
    """What continues a run of another kind."""
    if run_id and store.run(run_id).data.tags.get("mlflow_ft.method") == "compare":
        return f"it compares two models: mlflow-ft compare --resume {run_id}"
    return "`mlflow-ft runs` lists the runs"


def _method(recorded: Sequence[Given]) -> str:
    return str(next((setting.value for setting in recorded if setting.key == "method"), ""))


def resolved(recorded: Sequence[Given], registry: Registry, *, changed: Sequence[Given] = ()) -> Config:
    """The configuration of recorded settings, of which `changed` replace some.

    Values that are the method's own have no origin: the file has them all, whether the user set them or not.

    Raises:
        ConfigError: they name something that is no longer installed, or a change is wrong.
    """
    method = _method(recorded)
    defaults = registry.trainers[method].defaults
    options = registry.option_types
    config = resolve(method, defaults=defaults, file=recorded, command_line=changed, options=options)
    values, own = config.flat(), resolve(method, defaults=defaults, options=options).flat()
    asked = {path: place for path, place in config.origins.items() if values[path] != own.get(path)}
    return config.model_copy(update={"origins": asked})


def pinned(config: Config, tags: Mapping[str, str]) -> Config:
    """The configuration with the commit and the version that were used, where it names a branch or an alias."""
    update: dict[str, str] = {}
    revision = tags.get("mlflow_ft.base_revision", "")
    if config.model.init_from:
        adapter = tags.get(START_TAG, "").rpartition(" ")[0]
        on_adapter = "with the adapter" in tags.get("mlflow_ft.base_origin", "")
        whole = "" if on_adapter else tags.get("mlflow_ft.base_model", "")
        update["init_from"] = adapter or whole or config.model.init_from
    elif COMMIT.fullmatch(revision):
        update["revision"] = revision
    return config.model_copy(update={"model": config.model.model_copy(update=update)})


@contextmanager
def working_folder(run: Run) -> Iterator[Path]:
    """Work in the folder in which a run was started, if it is here: relative paths in its settings begin there.

    A relative address of the tracking store keeps its meaning.
    """
    from mlflow_ft.tracking import environment, pinned_store

    folder = Path(run.data.tags.get(environment.CWD) or Path.cwd())
    with pinned_store(), chdir(folder if folder.is_dir() else Path.cwd()):
        yield Path.cwd()


def moment(run: Run) -> datetime:
    """The time that the chat template got in a run; with it the rows are the same again.

    Old runs did not record it; their templates got the current time.
    """
    recorded = run.data.tags.get(CLOCK_TAG)
    if recorded:
        return datetime.fromisoformat(recorded)
    return datetime.fromtimestamp(run.info.start_time / 1000)  # noqa: DTZ006  # templates get local time

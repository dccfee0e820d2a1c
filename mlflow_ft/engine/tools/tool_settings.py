"""Our settings in another tool's terms: a table as data, in which every setting is sent, carried or refused.

    TABLE = (
        sent("training.learning_rate", "learning_rate"),
        carried("adapter.*", "the adapter's own files"),
        only("objective.packing", False, because="it packs rows in a way that cannot be proved here"),
    )

A setting that a table does not name is refused if the user has set it: nothing is dropped in silence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow_ft import processes
from mlflow_ft.config.schema import Config

Value = Callable[[Any], Any]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What happens to a setting, or to a section (`data.*`)."""

    ours: str
    theirs: str = ""
    """The tool's name for it; "" if it takes effect in another way."""
    value: Value | None = None
    """From our value to theirs; None: the same."""
    how: str = ""
    """How it takes effect, if it is not sent."""
    allowed: tuple[Any, ...] | None = None
    """The only values that are possible; None: all."""
    because: str = ""
    """Why no others are."""

    def covers(self, path: str) -> bool:
        """Whether it is about the setting with this full path."""
        return path == self.ours or (self.ours.endswith(".*") and path.startswith(self.ours[:-1]))


def sent(ours: str, theirs: str, value: Value | None = None) -> Setting:
    """A setting that the tool has too, under the name `theirs`."""
    return Setting(ours=ours, theirs=theirs, value=value)


def carried(ours: str, how: str) -> Setting:
    """A setting, or a section, that takes effect without the tool's settings."""
    return Setting(ours=ours, how=how)


def only(ours: str, *allowed: Any, because: str, theirs: str = "", value: Value | None = None) -> Setting:
    """A setting of which the tool can do some values only."""
    return Setting(ours=ours, allowed=allowed, because=because, theirs=theirs, value=value)


OURS: tuple[Setting, ...] = (
    carried("method", "chooses the tool"),
    carried("data.*", "the rows are prepared, tokenised and masked here"),
    carried("checks.*", "the rows are checked here"),
    only(
        "evaluation.samples",
        4,
        0,
        because="the model is in another process, and answers no prompts; use 0",
    ),
    carried("evaluation.*", "both models are scored here"),
    carried("package.*", "the model is packaged here"),
    carried("registry.*", "the model is registered here"),
    carried("plugins.*", "read by each plugin"),
    carried("rollout.*", "not used by supervised fine-tuning"),
    only("launch.launcher", "local", because="a single process trains; leave it out"),
    carried("launch.*", "not used by launcher local"),
    carried("run.*", "the run is kept here"),
    only("training.log_checkpoints", False, because="the model is in another process while it trains; leave it out"),
    only("training.early_stopping", None, because="the tool trains all steps; leave it out"),
    only("training.load_best", None, False, because="the tool keeps the last weights; leave it out"),
    carried("training.save_steps", "the callback in the tool's trainer saves"),
    carried("training.upload_checkpoints", "checkpoints of the tool stay in the run's folder"),
)
"""What is the same for every tool: it trains, and all else happens here. A tool's own entries come first."""


def unsuited(table: Sequence[Setting], config: Config, *, python: str | None = None) -> list[str]:
    """Why a tool cannot do what these settings ask for, a sentence each.

    `python` is the interpreter of an environment of the user's own, which must exist.
    """
    reasons = []
    if (size := processes.place().size) > 1:
        reasons.append(f"{size} processes were started, and the tool trains in one: start the command alone")
    if python and not Path(python).is_file():
        reasons.append(f"there is no interpreter {python}: name the file bin/python of an environment")
    for path, value in config.flat().items():
        entry = find(table, path)
        given = path in config.origins and not config.origins[path].startswith("method ")
        if entry is None:
            if given:
                reasons.append(f"{path}: {config.method} does not know this setting; remove it")
        elif entry.allowed is not None and value not in entry.allowed:
            reasons.append(f"{path} {_shown(value)}: {entry.because}")
    return reasons


def find(table: Iterable[Setting], path: str) -> Setting | None:
    """The first entry about a setting, the tool's own before ours."""
    return next((entry for entry in (*table, *OURS) if entry.covers(path)), None)


def translated(table: Sequence[Setting], values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings under the tool's names, without those that are None; `values` has ours by full path."""
    theirs: dict[str, Any] = {}
    for entry in table:
        if not entry.theirs:
            continue
        value = values[entry.ours]
        value = entry.value(value) if entry.value else value
        if value is not None:
            theirs[entry.theirs] = value
    return theirs


def _shown(value: Any) -> str:
    return "true" if value is True else "false" if value is False else f"{value}"

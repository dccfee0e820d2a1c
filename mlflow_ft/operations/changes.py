"""What decides a run's result, as the run recorded it and as it is now, and the differences between the two."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mlflow_ft.config.schema import Config
from mlflow_ft.errors import Problem
from mlflow_ft.plugins import Plugins
from mlflow_ft.stages.model import START_TAG
from mlflow_ft.tracking.environment import versions

Kind = Literal["config", "seed", "data", "base", "rewards", "code", "plugin", "library", "machine"]
Facts = Mapping[tuple[Kind, str], str]
"""By kind and name: `{("library", "torch"): "2.9.0", ("seed", "run.seed"): "42", ...}`."""

CHECKPOINTS = ("save_steps", "save_total_limit", "upload_checkpoints", "log_checkpoints")
NO_EFFECT = ("run.", "registry.", "package.", "plugins.allow", *(f"training.{name}" for name in CHECKPOINTS))
"""Settings that change neither the trained weights nor the scores: names, folders, forms, checkpoints."""
SEED = "run.seed"
OWN_CODE: tuple[Kind, str] = ("code", "mlflow-ft")
NAMED: Mapping[str, tuple[Kind, str]] = {
    "mlflow_ft.data_fingerprint": ("data", "fingerprint"),
    "mlflow_ft.data_digest": ("data", "training rows"),
    "mlflow_ft.base_revision": ("base", "revision"),
    START_TAG: ("base", "weights to start from"),
    "mlflow_ft.reward_model": ("rewards", "model"),
    "mlflow_ft.reward_funcs": ("rewards", "functions"),
    "mlflow.mlflow_ft.code": OWN_CODE,
    "mlflow.mlflow_ft.processor": ("machine", "processor"),
    "mlflow.mlflow_ft.threads": ("machine", "threads"),
    "mlflow_ft.device": ("machine", "device"),
}
"""The tags of a run that are facts."""
OTHER_FACTS: Facts = {("machine", "device"): r", \d+ threads$", ("base", "weights to start from"): r"^.* "}
"""What is cut off: a CPU's threads, which are a fact of their own, and the place of an adapter."""
PLUGINS_TAG = "mlflow_ft.plugins"
BUILT_IN = "built in"
"""The entry of the built-in plugins in that tag; they are part of the code."""
MISSING: Mapping[Kind, str] = {"plugin": "not loaded", "library": "not installed"}
"""Kinds of what may be absent; a plugin that is installed may not be allowed."""
NOT_RECORDED = "not recorded"


@dataclass(frozen=True, kw_only=True)
class Change:
    """One fact that differs."""

    kind: Kind
    name: str
    then: str
    now: str

    @property
    def what(self) -> str:
        """What it is: `library torch`."""
        return f"{self.kind} {self.name}"

    @property
    def problem(self) -> Problem:
        """The same as a problem to report in an error."""
        return Problem(place=self.what, message=f"was {_short(self.then)}, is {_short(self.now)}")

    def __str__(self) -> str:
        return f"{self.what}: {_short(self.then)}, now {_short(self.now)}"


def _short(value: str) -> str:
    """A value for people: the first digits of a hash."""
    return re.sub(r"(sha256:[0-9a-f]{12})[0-9a-f]+", r"\1", value)


def differences(then: Facts, now: Facts, *, kinds: Collection[Kind] = ()) -> list[Change]:
    """Everything that differs, or only what is of some `kinds`.

    What `now` does not say yet, such as the data before it was read, is left out; what `then` does not say, because the
    run was made by an earlier version, is a change from "not recorded".
    """
    keys = dict.fromkeys((*then, *now))
    return [
        Change(kind=kind, name=name, then=_value(then, (kind, name)), now=_value(now, (kind, name)))
        for kind, name in keys
        if (not kinds or kind in kinds)
        and ((kind, name) in now or kind in MISSING)
        and then.get((kind, name)) != now.get((kind, name))
    ]


def _value(facts: Facts, key: tuple[Kind, str]) -> str:
    """A fact; earlier versions, whose runs have no hash of the code, did not record every library."""
    return facts.get(key, MISSING.get(key[0], NOT_RECORDED) if OWN_CODE in facts else NOT_RECORDED)


def of_run(tags: Mapping[str, str], config: Config) -> Facts:
    """The facts that a run recorded: in its tags, and in its configuration.

    A run that is opened again overwrites its tags, so they must be read before.
    """
    facts: dict[tuple[Kind, str], str] = {
        (("seed" if path == SEED else "config"), path): str(value)
        for path, value in config.flat().items()
        if path == SEED or not path.startswith(NO_EFFECT)
    }
    facts |= {fact: tags[tag] for tag, fact in NAMED.items() if tag in tags}
    for key, pattern in OTHER_FACTS.items():
        if key in facts:
            facts[key] = re.sub(pattern, "", facts[key])
    facts |= {("library", package): version for package, version in versions(tags).items()}
    for entry in filter(None, tags.get(PLUGINS_TAG, "").split(", ")):
        name, _, version = entry.partition(" ")
        if not entry.startswith(BUILT_IN):
            facts["plugin", name] = version
    return facts


def current(config: Config, plugins: Plugins, *, folder: Path | None = None) -> Facts:
    """The same facts of this process, before anything is loaded: all but the data, the base model and the rewards."""
    from mlflow_ft.engine import hardware
    from mlflow_ft.tracking import environment

    tags = environment.tags(plugins, folder=folder or Path.cwd())
    return of_run(tags | {"mlflow_ft.device": hardware.describe()}, config)

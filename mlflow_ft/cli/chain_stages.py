"""The stages of each chain, and the settings that each of them gets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

Outcome = Mapping[str, Any]
"""The outcome of a stage: the JSON that `mlflow-ft train --json` prints."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One job of a chain: its method, and which stages' models it uses."""

    method: str
    defaults: Mapping[str, str]
    """Settings that the user's own settings override."""
    init_from: str = ""
    """The stage whose model is trained further: its adapter, or the whole model if it has none."""
    whole: bool = False
    """Start from the whole (merged) model, because another kind of model is trained."""
    reward_from: str = ""
    """The stage whose model scores the answers."""


ADAPTER = {"adapter.kind": "lora"}
CHAINS: Mapping[str, tuple[Stage, ...]] = {
    "align": (Stage(method="sft", defaults=ADAPTER), Stage(method="dpo", defaults=ADAPTER, init_from="sft")),
    "rlhf": (
        Stage(method="sft", defaults=ADAPTER),
        Stage(method="reward", defaults=ADAPTER, init_from="sft", whole=True),
        Stage(method="ppo", defaults=ADAPTER, init_from="sft", reward_from="reward"),
    ),
}


def split(arguments: Sequence[str], stages: Sequence[Stage]) -> dict[str, list[str]]:
    """The `--key value` pairs of each stage: `--sft.data F` goes to one stage, all others to every stage.

    Raises:
        ConfigError: something is not a pair.
    """
    from mlflow_ft.config import pairs

    names = [stage.method for stage in stages]
    arguments_of: dict[str, list[str]] = {name: [] for name in names}
    for setting in pairs(arguments):
        stage, dot, key = setting.key.partition(".")
        for name in [stage] if dot and stage in names else names:
            arguments_of[name].append(f"--{key if dot and stage in names else setting.key}={setting.value}")
    return arguments_of


def unless_given(before: Sequence[str], arguments: Sequence[str]) -> list[str]:
    """The earlier settings, without those that are given again."""
    from mlflow_ft.config import pairs

    keys = {setting.key for setting in pairs(arguments)}
    return [f"--{setting.key}={setting.value}" for setting in pairs(before) if setting.key not in keys]


def dated(arguments: Sequence[str], today: date) -> list[str]:
    """The settings plus the date on which the chain started, unless they set a date."""
    from mlflow_ft.config import pairs

    has_date = any(setting.key.rpartition(".")[2] == "date" for setting in pairs(arguments))
    return [*arguments, *([] if has_date else [f"--data.date={today.isoformat()}"])]


def settings(stage: Stage, arguments: Sequence[str], outcomes: Mapping[str, Outcome]) -> list[str]:
    """All arguments of a stage's job; a stage's own setting is left out if the user gave it."""
    defaults = dict(stage.defaults)
    if stage.init_from in outcomes:
        defaults["model.init_from"] = version_of(outcomes[stage.init_from], whole=stage.whole)
    if stage.reward_from in outcomes:
        defaults["rollout.reward_model"] = version_of(outcomes[stage.reward_from], whole=True)
    keys = {argument.removeprefix("--").partition("=")[0] for argument in arguments}
    extra = [
        f"--{path}={value}"
        for path, value in defaults.items()
        if path not in keys and path.rpartition(".")[2] not in keys
    ]
    return [*extra, *arguments]


def version_of(outcome: Outcome, *, whole: bool) -> str:
    """The URI of the version to continue from: the adapter, or the whole model if `whole` or without an adapter."""
    versions = {version["name"].endswith("-adapter"): version for version in reversed(outcome["versions"])}
    version = versions.get(not whole) or versions[whole]
    return f"models:/{version['name']}/{version['version']}"

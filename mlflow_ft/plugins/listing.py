"""What is known of a plugin and its records, whether it works or not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Literal

from mlflow_ft.plugins import option_types
from mlflow_ft.records import (
    Adapter,
    Check,
    Command,
    DataFormat,
    Engine,
    Evaluator,
    Exporter,
    Gate,
    GuardSet,
    Launcher,
    Options,
    Packager,
    PlanRule,
    Record,
    Reward,
    ServingEngine,
    Trainer,
)

KINDS: Mapping[str, type] = {
    "formats": DataFormat,
    "checks": Check,
    "trainers": Trainer,
    "adapters": Adapter,
    "evaluators": Evaluator,
    "rewards": Reward,
    "packagers": Packager,
    "exporters": Exporter,
    "gates": Gate,
    "launchers": Launcher,
    "plan_rules": PlanRule,
    "engines": Engine,
    "serving_engines": ServingEngine,
    "guards": GuardSet,
    "options": Options,
    "commands": Command,
}


@dataclass(frozen=True, kw_only=True)
class PluginInfo:
    """A line of `mlflow-ft plugins`: a plugin, and whether it works."""

    name: str
    version: str
    module: str
    sha256: str
    status: Literal["active", "broken", "clash", "disabled"]
    error: str = ""
    """Why it is not active."""
    provides: tuple[str, ...] = ()
    """Its records: `trainer gentle-lora`."""
    hooks: tuple[str, ...] = ()
    """The other hooks that it implements."""
    notes: tuple[str, ...] = ()
    """What its author should change: a slow import, a hook that will be removed."""
    load_seconds: float = field(default=0.0, compare=False)

    @property
    def built_in(self) -> bool:
        return self.module.startswith("mlflow_ft.builtin.")

    @property
    def faulty(self) -> bool:
        """Whether it should have been loaded and could not."""
        return self.status in ("broken", "clash")


@dataclass(frozen=True, kw_only=True)
class Registered:
    """A record and the plugin it came from."""

    provider: str
    kind: str
    record: Record

    @property
    def called(self) -> str:
        """`trainer gentle-lora`."""
        return f"{singular(self.kind)} {self.record.name}"


def singular(kind: str) -> str:
    """`plan rule` for `plan_rules`; options stay plural."""
    return kind if kind == "options" else kind.replace("_", " ").removesuffix("s")


@dataclass(frozen=True, kw_only=True)
class Described:
    """A plugin that is being listed."""

    module: ModuleType | None
    name: str
    version: str
    load_seconds: float = 0.0

    @property
    def built_in(self) -> bool:
        return self.module is not None and self.module.__name__.startswith("mlflow_ft.builtin.")


def check_record(record: Any, hook: str) -> None:
    """Refuse a record without a name or a summary, or options that cannot be set."""
    for text in ("name", "summary"):
        value = getattr(record, text)
        if not isinstance(value, str) or not value.strip():
            raise TypeError(f"{hook} returned a record ({type(record).__name__}) whose {text} is {value!r}")
    if isinstance(record, Options):
        option_types.check(record.fields)

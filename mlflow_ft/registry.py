"""Looks up the record that a plugin registered under a name; a clash names both plugins, a typo gets a hint."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from mlflow_ft.errors import ConfigError, PluginError, Problem
from mlflow_ft.plugins import Plugins
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
    Verdict,
)

if TYPE_CHECKING:
    from mlflow_ft.config.gates import Gates
    from mlflow_ft.rows import Task

RecordT = TypeVar("RecordT", bound=Record)
OWN_SECTION = {
    "beats-champion": "beats_champion",
    "beats-base": "beats_base",
    "preferred-by-people": "preferred_by_people",
    "no-regression": "max_regression",
}
"""The gates file's sections for built-in gates, which take no `options`."""


class Catalogue(Generic[RecordT]):
    """The records of one kind, by name.

    >>> from mlflow_ft import plugins
    >>> Registry(plugins.load()).trainers["qlora"].defaults["model.quantize"]
    'nf4'
    """

    def __init__(self, kind: str, plugins: Plugins) -> None:
        self.kind = kind.replace("_", " ")
        self._records: dict[str, RecordT] = {}
        self._providers: dict[str, str] = {}
        self._broken = tuple(info for info in plugins.infos if info.faulty)
        for registered in plugins.registered:
            if registered.kind == kind:
                self._add(cast(RecordT, registered.record), registered.provider)

    def _add(self, record: RecordT, provider: str) -> None:
        if record.name in self._records:
            raise PluginError(
                f"two plugins register {self.kind[:-1]} {record.name!r}: {self._providers[record.name]} and {provider}",
                hint="uninstall one of them, or choose with MLFLOW_FT_PLUGINS=name,name",
            )
        self._records[record.name] = record
        self._providers[record.name] = provider

    def __getitem__(self, name: str) -> RecordT:
        if name not in self._records:
            hint = suggest(name, self._records)
            for info in self._broken:
                hint += f"; or it belongs to the plugin {info.name}, which is broken: {info.error}"
            called = "method" if self.kind == "trainers" else self.kind[:-1]  # as users know it
            raise ConfigError(f"unknown {called} {name!r}", hint=hint)
        return self._records[name]

    def __iter__(self) -> Iterator[RecordT]:
        return iter(self._records.values())

    def __contains__(self, name: object) -> bool:
        return name in self._records

    def provider(self, name: str) -> str:
        """The plugin that registered `name`."""
        return self._providers[name]


class Registry:
    """Every catalogue of a set of plugins."""

    def __init__(self, plugins: Plugins) -> None:
        self.formats: Catalogue[DataFormat] = Catalogue("formats", plugins)
        self.checks: Catalogue[Check] = Catalogue("checks", plugins)
        self.trainers: Catalogue[Trainer] = Catalogue("trainers", plugins)
        self.adapters: Catalogue[Adapter] = Catalogue("adapters", plugins)
        self.evaluators: Catalogue[Evaluator] = Catalogue("evaluators", plugins)
        self.rewards: Catalogue[Reward] = Catalogue("rewards", plugins)
        self.packagers: Catalogue[Packager] = Catalogue("packagers", plugins)
        self.exporters: Catalogue[Exporter] = Catalogue("exporters", plugins)
        self.gates: Catalogue[Gate] = Catalogue("gates", plugins)
        self.launchers: Catalogue[Launcher] = Catalogue("launchers", plugins)
        self.plan_rules: Catalogue[PlanRule] = Catalogue("plan_rules", plugins)
        self.engines: Catalogue[Engine] = Catalogue("engines", plugins)
        self.serving_engines: Catalogue[ServingEngine] = Catalogue("serving_engines", plugins)
        self.guards: Catalogue[GuardSet] = Catalogue("guards", plugins)
        self.options: Catalogue[Options] = Catalogue("options", plugins)
        self.commands: Catalogue[Command] = Catalogue("commands", plugins)

    @property
    def lower_is_better(self) -> list[str]:
        """The scores of which their evaluators say that lower is better."""
        return [score for evaluator in self.evaluators for score in evaluator.lower_is_better]

    @property
    def option_types(self) -> dict[str, type]:
        """The dataclasses of the plugins' options, by name, as `config.resolve` wants them."""
        return {options.name: options.fields for options in self.options}


def chosen_checks(registry: Registry, names: Sequence[str] | None) -> list[Check]:
    """The named checks, or all of them."""
    return list(registry.checks) if names is None else [registry.checks[name] for name in names]


def chosen_evaluators(registry: Registry, names: Sequence[str] | None, *, task: Task) -> list[Evaluator]:
    """The named evaluators, or all for models of this task."""
    if names is None:
        return [evaluator for evaluator in registry.evaluators if evaluator.task == task]
    return [registry.evaluators[name] for name in names]


def chosen_gates(registry: Registry, gates: Gates, *, place: str = "the gates file") -> list[Gate]:
    """The named gates and those that always apply, or all of them.

    Raises:
        ConfigError: a gate is not registered, or does not read an option.
    """
    from mlflow_ft.config.given import headline

    for name in gates.waive:
        registry.gates[name]
    problems = [
        problem for name, options in gates.options.items() for problem in _unread(registry.gates[name], options, place)
    ]
    if problems:
        raise ConfigError(headline(problems, "in the options of gates"), problems=problems)
    if gates.names is None:
        return [gate if _applies(gate, registry, gates) else _abstaining(gate) for gate in registry.gates]
    named = [registry.gates[name] for name in gates.names]
    return [*named, *(gate for gate in registry.gates if gate.always and gate not in named)]


def _applies(gate: Gate, registry: Registry, gates: Gates) -> bool:
    """Whether a gate judges without being named: a plugin's needs options, since it cannot know all models."""
    built_in = registry.gates.provider(gate.name).startswith("builtin.")
    return built_in or gate.always or gate.name in gates.options


def _abstaining(gate: Gate) -> Gate:
    why = f"not asked for: name it in `names`, or set options.{gate.name}"
    return replace(gate, judge=lambda about, gates: [Verdict.abstain(why)])


def _unread(gate: Gate, options: Mapping[str, Any], place: str) -> Iterator[Problem]:
    """Options that the gate does not read."""
    from mlflow_ft.config.gates import near

    for path in _leaves(options):
        parts = path.split(".")
        above = {".".join([*parts[:depth], "*"]) for depth in range(1, len(parts))}
        if path in gate.options or above & set(gate.options):
            continue
        hint = f"its settings are under {OWN_SECTION[gate.name]}" if gate.name in OWN_SECTION else ""
        hint = hint or near(path, gate.options, what=f"the gate {gate.name} reads")
        yield Problem(place=f"{place}  options.{gate.name}.{path}", message="unknown option", hint=hint)


def _leaves(options: Any, path: str = "") -> Iterator[str]:
    """The paths of all keys that do not hold a mapping, also within lists."""
    if isinstance(options, Mapping) and (options or not path):
        for key, value in options.items():
            yield from _leaves(value, f"{path}.{key}" if path else str(key))
    elif isinstance(options, list) and any(isinstance(element, Mapping) for element in options):
        for element in options:
            yield from _leaves(element, path)
    else:
        yield path


def suggest(name: str, known: object) -> str:
    """A hint for an unknown name: the nearest known name, else all of them."""
    names = sorted(map(str, cast("list[str]", known)))
    near = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {near[0]}?" if near else f"known: {', '.join(names)}"

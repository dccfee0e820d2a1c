"""From a name to the record that a plugin registered under it; a clash names both plugins, a typo gets a hint."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from mlflow_ft.errors import ConfigError, PluginError, Problem
from mlflow_ft.plugins import Plugins
from mlflow_ft.records import Adapter, Check, DataFormat, Evaluator, Exporter, Gate, Packager, Record, Reward, Trainer

if TYPE_CHECKING:
    from mlflow_ft.config.gates import Gates

RecordT = TypeVar("RecordT", bound=Record)
OWN_SECTION = {"beats-champion": "beats_champion", "beats-base": "beats_base", "no-regression": "max_regression"}
"""Where the settings of built-in gates stand, which take no `options`."""


class Catalogue(Generic[RecordT]):
    """The records of one kind, by name.

    >>> from mlflow_ft import plugins
    >>> Registry(plugins.load()).trainers["qlora"].defaults["model.quantize"]
    'nf4'
    """

    def __init__(self, kind: str, plugins: Plugins) -> None:
        self.kind = kind
        self._records: dict[str, RecordT] = {}
        self._providers: dict[str, str] = {}
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
            raise ConfigError(f"unknown {self.kind[:-1]} {name!r}", hint=suggest(name, self._records))
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


def chosen_checks(registry: Registry, names: Sequence[str] | None) -> list[Check]:
    """The checks that were named, or else all there are."""
    return list(registry.checks) if names is None else [registry.checks[name] for name in names]


def chosen_gates(registry: Registry, gates: Gates, *, place: str = "the gates file") -> list[Gate]:
    """The gates that were named and those that cannot be left out, or else all there are.

    Raises:
        ConfigError: a gate is not registered, or reads no such option.
    """
    from mlflow_ft.config.given import headline

    for name in gates.waive:
        registry.gates[name]
    problems = [one for name, given in gates.options.items() for one in _unread(registry.gates[name], given, place)]
    if problems:
        raise ConfigError(headline(problems, "in the options of gates"), problems=problems)
    if gates.names is None:
        return list(registry.gates)
    named = [registry.gates[name] for name in gates.names]
    return [*named, *(gate for gate in registry.gates if gate.always and gate not in named)]


def _unread(gate: Gate, given: Mapping[str, Any], place: str) -> Iterator[Problem]:
    """Options that the gate does not read."""
    from mlflow_ft.config.gates import near

    for path in _leaves(given):
        parts = path.split(".")
        above = {".".join([*parts[:depth], "*"]) for depth in range(1, len(parts))}
        if path in gate.options or above & set(gate.options):
            continue
        hint = f"its settings stand under {OWN_SECTION[gate.name]}" if gate.name in OWN_SECTION else ""
        hint = hint or near(path, gate.options, what=f"the gate {gate.name} reads")
        yield Problem(place=f"{place}  options.{gate.name}.{path}", message="unknown option", hint=hint)


def _leaves(given: Any, path: str = "") -> Iterator[str]:
    """The paths of all keys that hold no mapping, in lists too."""
    if isinstance(given, Mapping) and (given or not path):
        for key, value in given.items():
            yield from _leaves(value, f"{path}.{key}" if path else str(key))
    elif isinstance(given, list) and any(isinstance(one, Mapping) for one in given):
        for one in given:
            yield from _leaves(one, path)
    else:
        yield path


def suggest(name: str, known: object) -> str:
    """A hint for a name that is not known: the nearest one, else all of them."""
    names = sorted(str(one) for one in cast("list[str]", known))
    near = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {near[0]}?" if near else f"known: {', '.join(names)}"

"""From a name to the record that a plugin registered under it; a clash names both plugins, a typo gets a hint."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Generic, TypeVar, cast

from mlflow_ft.errors import ConfigError, PluginError
from mlflow_ft.plugins import Plugins
from mlflow_ft.records import Adapter, Check, DataFormat, Evaluator, Exporter, Gate, Packager, Record, Reward, Trainer

RecordT = TypeVar("RecordT", bound=Record)


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


def suggest(name: str, known: object) -> str:
    """A hint for a name that is not known: the nearest one, else all of them."""
    names = sorted(str(one) for one in cast("list[str]", known))
    near = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {near[0]}?" if near else f"known: {', '.join(names)}"

"""What becomes of another tool's configuration: our settings, and for each of its keys what was done with it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mlflow_ft.operations.importing.table import Table

Status = Literal["mapped", "approximated", "not needed", "refused", "unknown"]
VERDICTS: tuple[Status, ...] = ("not needed", "mapped", "approximated", "refused", "unknown")
"""From the best to the worst."""
OPTIONS = ("objective.options", "adapter.options")
"""Mappings that several keys add to; a rule writes `objective.options.NAME`."""


@dataclass(frozen=True, kw_only=True)
class Key:
    """One key of the tool's configuration, with sections joined by dots: `datasets[0].path`."""

    name: str
    value: Any
    place: str
    """`axolotl.yml line 12`, or `--r` for an argument."""


@dataclass(frozen=True, kw_only=True)
class Told:
    """What became of a key."""

    key: Key
    status: Status
    paths: tuple[str, ...] = ()
    """Our settings that came of it."""
    note: str = ""
    """What differs, or why it is refused or not needed."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One of our settings, and why it has its value."""

    value: Any
    keys: tuple[str, ...] = ()
    """Keys of the tool that it came of; none: the tool's default."""
    note: str = ""


@dataclass
class Draft:
    """An import in the making: rules read the tool's keys and write our settings."""

    table: Table
    given: Mapping[str, Key]
    folder: Path
    """The folder of the configuration, from which relative files may be meant."""
    method: str = "sft"
    settings: dict[str, Setting] = field(default_factory=dict)
    told: dict[str, Told] = field(default_factory=dict)
    extra: dict[str, str] = field(default_factory=dict)
    """Options of the import itself: `dataset_info`, `method`."""
    notes: list[str] = field(default_factory=list)
    """What differs as a whole, whatever the keys say."""

    def value(self, name: str) -> Any:
        """The value of a key: as given, else the tool's default, else None."""
        key = self.given.get(name)
        return self.table.default(name, self.method) if key is None or key.value is None else key.value

    def number(self, name: str, default: Any = None) -> Any:
        """The value of a key that is a number; other values are refused, and the default taken."""
        value = number(self.value(name))
        if isinstance(value, bool | int | float) and math.isfinite(value):
            return value
        if value is not None:
            self.refuse(name, f"{value!r} is not a number")
        return default

    def count(self, name: str, default: int) -> int:
        """The value of a key that is a whole number from 1; other values are refused, and the default taken."""
        value = self.number(name, default)
        if value >= 1 and value == int(value):
            return int(value)
        self.refuse(name, f"{value!r} is not a whole number from 1")
        return default

    def has(self, name: str) -> bool:
        """Whether a key is given with a value."""
        return name in self.given and self.given[name].value is not None

    def on(self, name: str) -> bool:
        """Whether a switch is on."""
        return truth(self.value(name))

    def below(self, section: str) -> list[Key]:
        """The keys of a section, in order."""
        return [key for name, key in self.given.items() if name.startswith((f"{section}.", f"{section}["))]

    def set(self, path: str, value: Any, *names: str, about: str = "") -> None:
        """Set `path`, because of these keys; with `about`, what differs from the tool."""
        keys = tuple(dict.fromkeys(name for name in names if self.has(name)))
        if value is None and not keys:
            return
        before = self.settings.get(path)
        self.settings[path] = Setting(value=value, keys=keys or tuple(before.keys if before else ()), note=about)
        if not keys and names:
            shown = f"{self.table.title}'s default for {names[0]}"
            self.settings[path] = Setting(value=value, note=f"{shown}: {about}" if about else shown)
        for name in keys:
            self.tell(name, "approximated" if about else "mapped", path, note=about)

    def tell(self, name: str, status: Status, *paths: str, note: str = "") -> None:
        """Record what became of a key, where it is given; the worse verdict stands, and settings add up."""
        if name not in self.given:
            return
        before = self.told.get(name)
        if before and status == "not needed":
            return
        if before and before.status != "not needed":
            status = max(before.status, status, key=VERDICTS.index)
            paths = tuple(dict.fromkeys((*before.paths, *paths)))
            note = "; ".join(dict.fromkeys(filter(None, (before.note, note))))
        self.told[name] = Told(key=self.given[name], status=status, paths=paths, note=note)

    def refuse(self, name: str, why: str) -> None:
        """There is nothing here for this key."""
        self.tell(name, "refused", note=why)

    def skip(self, name: str, why: str) -> None:
        """Nothing needs to be set for this key, unless something is told of it already."""
        self.tell(name, "not needed", note=why)

    def drop(self, path: str, why: str, *, refused: bool) -> None:
        """Take a setting back: the method has no use for it, or its value is not possible here."""
        setting = self.settings.pop(path)
        for name in setting.keys:
            before = self.told[name]
            kept = tuple(other for other in before.paths if other != path)
            status: Status = "refused" if refused else "not needed"
            self.told[name] = Told(key=before.key, status=status, paths=kept, note=why)


def truth(value: Any) -> bool:
    """A switch as YAML and command lines write it."""
    if isinstance(value, str):
        return value.strip().lower() not in ("", "false", "no", "none", "null", "off", "0")
    return bool(value)


def names(value: Any) -> list[str]:
    """A list of names, also from text with commas."""
    listed = value if isinstance(value, list) else str(value).strip("[]").split(",")
    return [text for item in listed if (text := str(item).strip().strip("'\""))]


def number(value: Any) -> Any:
    """A number that YAML reads as text (`1e-4`), else the value."""
    if isinstance(value, str):
        for kind in (int, float):
            try:
                return kind(value.replace("_", "") if kind is int else value)
            except ValueError:
                continue
    return value

"""The tables of keys: for every key of a tool, our setting, or why there is none. One YAML file per tool.

mapped:       KEY: {to: SETTING, default: ..., how: CONVERSION, about: WHAT DIFFERS}
rules:        RULE: [KEY ...]               keys that a function of the tool's module reads together
refused:      REASON: [KEY, KEY: OFF ...]   OFF is a value that changes nothing, besides false, 0 and empty; OFF true:
                                            only true changes nothing
approximated: REASON: [KEY, KEY: OFF ...]   no setting comes of it, and that changes something
never_off:    [KEY ...]                     of these two kinds, those whose false and 0 change something, too
not_needed:   REASON: [KEY ...]             nothing has to be set
options_of:   KEY: [KEY ...]                read by the tool only where the first is on
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml

from mlflow_ft.config.synonyms import SYNONYMS

TABLES = Path(__file__).parent / "tables"
NUMBERED = re.compile(r"\[\d+\]")
Kind = Literal["mapped", "rule", "refused", "approximated", "not needed", "option"]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What the table says of a key."""

    kind: Kind
    to: str = ""
    default: Any = None
    how: str = ""
    about: str = ""
    """What differs; for a key that is refused or not needed, why."""
    of: str = ""
    """The switch that the key belongs to."""
    rule: str = ""
    never_off: bool = False
    """Whether false and 0 change something, too."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """The keys of a tool."""

    tool: str
    title: str
    version: str
    """The version whose definitions the table follows."""
    entries: Mapping[str, Entry]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """The tool's own defaults of keys that a rule reads."""
    by_method: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Defaults that depend on the method."""
    signs: tuple[str, ...] = ()
    """Keys by which the tool is recognised."""

    def entry(self, name: str) -> Entry | None:
        """What the table says of `datasets[0].path`, written there as `datasets[].path`; also by a pattern."""
        plain = NUMBERED.sub("[]", name)
        if plain in self.entries:
            return self.entries[plain]
        return next((self.entries[known] for known in self.patterns if re.fullmatch(_regex(known), plain)), None)

    @property
    def patterns(self) -> list[str]:
        """Keys with a `*`."""
        return [known for known in self.entries if "*" in known]

    def default(self, name: str, method: str) -> Any:
        """The tool's own default of a key; None if it has none, or the table does not say."""
        own = self.by_method.get(method, {})
        if name in own:
            return own[name]
        entry = self.entries.get(name)
        return self.defaults.get(name, entry.default if entry else None)

    def near(self, name: str) -> str | None:
        """A known key that may have been meant."""
        plain = NUMBERED.sub("[]", name)
        section, _, leaf = plain.rpartition(".")
        beside = [known for known in self.entries if known.rpartition(".")[0] == section and "*" not in known]
        by_leaf = {known.rpartition(".")[2]: known for known in beside}
        leaf = leaf.replace("-", "_")
        found = difflib.get_close_matches(leaf, by_leaf, n=1, cutoff=0.7)
        meant = SYNONYMS.get(leaf, "").partition("=")[0]
        synonym = next((known for known in beside if meant and self.entries[known].to == meant), None)
        return by_leaf[found[0]] if found else synonym


@cache
def load(tool: str) -> Table:
    """The table of a tool, with those that it includes; its own entries win."""
    text = yaml.safe_load((TABLES / f"{tool}.yaml").read_text(encoding="utf-8"))
    entries: dict[str, Entry] = {}
    defaults: dict[str, Any] = {}
    for other in text.get("include", ()):
        included = load(other)
        entries |= included.entries
        defaults |= included.defaults
    entries |= dict(_entries(text))
    entries |= {name: replace(entries[name], never_off=True) for name in text.get("never_off", ())}
    return Table(
        tool=tool,
        title=text["title"],
        version=str(text.get("version", "")),
        entries=entries,
        defaults=defaults | text.get("defaults", {}),
        by_method=text.get("by_method", {}),
        signs=tuple(text.get("signs", ())),
    )


def _entries(text: Mapping[str, Any]) -> Iterator[tuple[str, Entry]]:
    for name, values in text.get("mapped", {}).items():
        yield name, Entry(kind="mapped", **({"to": values} if isinstance(values, str) else values))
    for rule, listed in text.get("rules", {}).items():
        for name in listed:
            yield name, Entry(kind="rule", rule=rule)
    verdicts: tuple[tuple[str, Kind], ...] = (
        ("refused", "refused"),
        ("approximated", "approximated"),
        ("not_needed", "not needed"),
    )
    for section, kind in verdicts:
        for why, listed in text.get(section, {}).items():
            for name, off in _with_values(listed):
                yield name, Entry(kind=kind, about=why, default=off)
    for of, listed in text.get("options_of", {}).items():
        for name in listed:
            yield name, Entry(kind="option", of=of)


def _regex(pattern: str) -> str:
    return re.escape(pattern).replace(r"\*", ".*")


def _with_values(listed: list[Any]) -> Iterator[tuple[str, Any]]:
    for item in listed:
        yield from item.items() if isinstance(item, Mapping) else [(item, None)]

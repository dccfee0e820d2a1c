"""The tools whose configurations are read, and how each is recognised."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path

from mlflow_ft.errors import ConfigError
from mlflow_ft.operations.importing import reading, table
from mlflow_ft.operations.importing.reading import Read
from mlflow_ft.operations.importing.translating import Imported, Rule, translate
from mlflow_ft.registry import Registry

TOOLS = ("axolotl", "llamafactory", "torchtune", "trl", "unsloth")
WORDS = {
    "unsloth": ("unsloth-cli", "unsloth"),
    "llamafactory": ("llamafactory-cli", "train_bash", "src/train.py", "lmf"),
    "axolotl": ("axolotl",),
    "torchtune": ("tune",),
    "trl": ("trl", "scripts/"),
}
"""By tool, what its commands contain."""


def import_file(
    source: str, registry: Registry, *, tool: str | None = None, extra: dict[str, str] | None = None
) -> Imported:
    """Read a configuration or a script, recognise the tool, and translate.

    Raises:
        ConfigError: the file cannot be read, or is of no known tool.
    """
    read = reading.read(Path(source).expanduser())
    return import_read(read, registry, tool=tool, extra=extra)


def import_read(
    read: Read, registry: Registry, *, tool: str | None = None, extra: dict[str, str] | None = None
) -> Imported:
    """Translate what was read."""
    if tool is not None and tool not in TOOLS:
        raise ConfigError(f"--from: there is no importer {tool!r}", hint=f"importers: {', '.join(TOOLS)}")
    tool = tool or recognise(read)
    return translate(read, table.load(tool), rules_of(tool), registry, extra)


def rules_of(tool: str) -> Sequence[Rule]:
    """The rules of a tool, in order."""
    rules: Sequence[Rule] = importlib.import_module(f"mlflow_ft.operations.importing.{tool}").RULES
    return rules


def recognise(read: Read) -> str:
    """The tool, by the words of the command, or by its keys.

    Raises:
        ConfigError: no tool's keys are there, or those of two.
    """
    for word in reversed(read.command):
        for tool, words in WORDS.items():
            if any(known in word for known in words):
                return tool
    names = {key.name for key in read.keys}
    if any(name.endswith("._component_") for name in names):
        return "torchtune"
    scores = {tool: _score(tool, names) for tool in TOOLS}
    best = max(scores.values())
    found = [tool for tool in TOOLS if scores[tool] == best]
    if best <= 0 or len(found) > 1:
        why = f"could be of {' or '.join(found)}" if best > 0 else "has no keys of a known tool"
        raise ConfigError(f"{read.name or 'the configuration'} {why}", hint=f"--from NAME: {', '.join(TOOLS)}")
    return found[0]


def _score(tool: str, names: set[str]) -> float:
    """How far the keys are those of a tool; its own signs count most."""
    known = table.load(tool)
    tops = {name.partition("[")[0].partition(".")[0] for name in names}
    signs = len(tops & set(known.signs))
    return signs + sum(known.entry(name) is not None for name in names) / max(1, len(names)) if signs else 0.0

"""An import for people and programs: our YAML with its reasons, a table of the keys, JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from mlflow_ft.config.explain import shown, written
from mlflow_ft.operations.importing.draft import Setting, Told
from mlflow_ft.operations.importing.translating import Imported

ORDER = ("refused", "unknown", "approximated", "mapped", "not needed")
"""Verdicts, those first that need a look."""


def as_yaml(imported: Imported, *, source: str) -> str:
    """The configuration; comments say which key each setting is from, and what was refused."""
    lines = [f"# Imported from {imported.table.title}: {source}"]
    lines += [f"# {line}" for line in (*imported.notes, *_left_out(imported))]
    values = {"method": imported.method} | {path: setting.value for path, setting in imported.settings.items()}
    comments = {path: _comment(path, setting) for path, setting in imported.settings.items()}
    return "\n".join(lines) + "\n" + written(values, comments=comments)


def _left_out(imported: Imported) -> Iterator[str]:
    for told in imported.those("refused", "unknown"):
        yield f"{told.status}: {told.key.name}: {shown(told.key.value)} - {told.note}"


def _comment(path: str, setting: Setting) -> str:
    leaf = path.rpartition(".")[2]
    names = "" if setting.keys == (leaf,) and not setting.note else ", ".join(setting.keys)
    return ": ".join(filter(None, (names, setting.note)))


def as_dict(imported: Imported, *, source: str) -> dict[str, Any]:
    """The report as plain JSON values."""
    return {
        "tool": imported.table.tool,
        "tool_version": imported.table.version,
        "file": source,
        "method": imported.method,
        "notes": imported.notes,
        "counts": {verdict: count for verdict in ORDER if (count := counts(imported)[verdict])},
        "keys": [_key(told) for told in imported.told],
        "defaults": {
            path: {"value": _json(setting.value), "note": setting.note}
            for path, setting in imported.settings.items()
            if not setting.keys
        },
        "settings": {path: _json(setting.value) for path, setting in imported.settings.items()},
    }


def counts(imported: Imported) -> Counter[str]:
    """How many keys have each verdict."""
    return Counter(told.status for told in imported.told)


def summary(imported: Imported, *, out: str | None) -> str:
    """One line: how many keys have each verdict, and what to do next."""
    found = ", ".join(f"{count} {verdict}" for verdict in ORDER if (count := counts(imported)[verdict]))
    command = f"mlflow-ft train --config {out}" if out else "write it with --out FILE"
    return f"{imported.table.title}: {found or 'no keys'}; method {imported.method}; {command}"


def _key(told: Told) -> dict[str, Any]:
    return {
        "key": told.key.name,
        "value": _json(told.key.value),
        "place": told.key.place,
        "status": told.status,
        "settings": list(told.paths),
        "note": told.note,
    }


def _json(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str | list | dict | None) else str(value)


def report(imported: Imported) -> Iterator[str]:
    """The verdicts in lines for people, those first that need a look."""
    yield from (f"note: {note}" for note in imported.notes)
    for verdict in ORDER:
        for told in imported.those(verdict):
            target = f" -> {', '.join(told.paths)}" if told.paths else ""
            note = f": {told.note}" if told.note else ""
            yield f"{verdict:<13}{told.key.place:<26} {told.key.name}: {shown(told.key.value)}{target}{note}"

"""A cleaned copy of the data, without the rows that are safe to remove, and a list of those with the reasons."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow_ft.data.sources import Source
from mlflow_ft.preparing.dataset import CheckedData
from mlflow_ft.rows import Row

REMOVED = "removed.jsonl"


@dataclass(frozen=True, kw_only=True)
class Cleaned:
    """What was written."""

    files: tuple[Path, ...]
    """One for each source: JSON lines with the original columns."""
    removed: Path
    """A JSON object for each removed row: file, line and reasons."""
    kept_count: int
    removed_count: int


def write(checked: CheckedData, folder: Path) -> Cleaned:
    """Write a copy of the training sources without the rows that `reasons` names."""
    folder.mkdir(parents=True, exist_ok=True)
    why = reasons(checked)
    index, kept, files = 0, 0, []
    removed: list[dict[str, Any]] = []
    sources = checked.train.stored.sources
    for number, source in enumerate(sources, 1):
        file = folder / (f"clean-{number}.jsonl" if len(sources) > 1 else "clean.jsonl")
        with file.open("w", encoding="utf-8") as stream:
            for row, values in _rows(source):
                if index in why:
                    removed.append({"file": row.file, "line": row.line, "reasons": list(why[index])})
                else:
                    stream.write(json.dumps(values, ensure_ascii=False, default=str) + "\n")
                    kept += 1
                index += 1
        files.append(file)
    target = folder / REMOVED
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in removed]
    target.write_text("".join(lines), encoding="utf-8")
    return Cleaned(files=tuple(files), removed=target, kept_count=kept, removed_count=len(removed))


def reasons(checked: CheckedData) -> dict[int, tuple[str, ...]]:
    """Row index -> why the row is removed: it is bad, or a check with a safe fix found it."""
    why: dict[int, tuple[str, ...]] = {row.index: (row.reason,) for row in checked.train.stored.bad}
    for index, checks in checked.removable.items():
        why[index] = (*why.get(index, ()), *checks)
    return why


def _rows(source: Source) -> Iterator[tuple[Any, Mapping[str, Any]]]:
    for row in source.rows():
        yield row, row.values if isinstance(row, Row) else {}

"""A cleaned copy of the data: the rows that are safe to remove are left out, each with its reason beside it."""

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
    """One for each source, JSON lines with the columns as they were."""
    removed: Path
    """A JSON object for each row that was left out: file, line, and why."""
    kept_count: int
    removed_count: int


def write(found: CheckedData, folder: Path) -> Cleaned:
    """Write the sources of the training rows anew, without what `reasons` names."""
    folder.mkdir(parents=True, exist_ok=True)
    why = reasons(found)
    index, kept, files = 0, 0, []
    removed: list[dict[str, Any]] = []
    sources = found.train.stored.sources
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
    lines = [json.dumps(one, ensure_ascii=False) + "\n" for one in removed]
    target.write_text("".join(lines), encoding="utf-8")
    return Cleaned(files=tuple(files), removed=target, kept_count=kept, removed_count=len(removed))


def reasons(found: CheckedData) -> dict[int, tuple[str, ...]]:
    """By number of a row, why it is removed: it is no good row, or a check with a safe fix found it."""
    why: dict[int, tuple[str, ...]] = {one.index: (one.reason,) for one in found.train.stored.bad}
    for index, checks in found.removable.items():
        why[index] = (*why.get(index, ()), *checks)
    return why


def _rows(source: Source) -> Iterator[tuple[Any, Mapping[str, Any]]]:
    for row in source.rows():
        yield row, row.values if isinstance(row, Row) else {}

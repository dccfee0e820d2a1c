"""What the README.md of a folder from the Hub says of its files: which subset and which split they belong to.

    ---
    configs:
    - config_name: main
      default: true
      data_files:
      - {split: train, path: main/train-*.parquet}
      - {split: test, path: [main/test-*.parquet]}
    - config_name: socratic
      data_files: socratic/*.parquet
    ---

Without it the names of files decide. With it `load_dataset` reads the same files from the Hub and from a folder.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from mlflow_ft.config.schema import DataSection
from mlflow_ft.data import split_names
from mlflow_ft.data.reading import readers
from mlflow_ft.errors import DataError

CARD = "README.md"
FRONT = re.compile(r"\ufeff?---[ \t]*\n(.*?)\n---[ \t]*(?:\n|$)", re.DOTALL)
MOST_LETTERS = 2**20
DEFAULT = "default"
Subsets = Mapping[str, Mapping[str, list[Path]]]
"""By subset, the files of every split in order."""


def chosen(found: Subsets, asked: str, settings: DataSection) -> list[Path]:
    """The files of the requested subset and split among those of a folder's README.md, of which there are some.

    Raises:
        DataError: there is no such subset or split, or several subsets and none is the default.
    """
    names = ", ".join(found)
    subset = settings.subset or (DEFAULT if DEFAULT in found else "" if len(found) > 1 else next(iter(found)))
    if not subset:
        raise DataError(
            f"the folder {asked!r} has several subsets: {names}",
            hint="name one with --data.subset, or name the files or folders to read as a list",
        )
    if subset not in found:
        raise DataError(
            f"the folder {asked!r} has no subset {subset!r}", hint=f"it has {names}: name one with --data.subset"
        )
    if settings.split not in found[subset]:
        raise split_names.missing(asked, settings.split, found[subset])
    return found[subset][settings.split]


def subsets(folder: Path) -> Subsets:
    """Every subset that the folder's README.md names, with the files that are there; the default has its name.

    {} where it names none, or cannot be read.
    """
    found: dict[str, Mapping[str, list[Path]]] = {}
    for config in _listed(_front(folder).get("configs")):
        by_split = _files(folder, config) if isinstance(config, Mapping) else {}
        if by_split:
            name = str(config.get("config_name") or DEFAULT)
            found[name] = by_split
            if config.get("default") is True:
                found[DEFAULT] = by_split
    return found


def _front(folder: Path) -> Mapping[str, Any]:
    try:
        with (folder / CARD).open(encoding="utf-8", errors="replace") as stream:
            front = FRONT.match(stream.read(MOST_LETTERS))
        values = yaml.safe_load(front[1]) if front else None
    except (OSError, yaml.YAMLError, RecursionError):
        return {}
    return values if isinstance(values, Mapping) else {}


def _files(folder: Path, config: Mapping[str, Any]) -> dict[str, list[Path]]:
    """The files of a subset by split, as far as they are there."""
    below = str(config.get("data_dir") or "")
    by_split: dict[str, list[Path]] = {}
    for split, pattern in _patterns(config.get("data_files")):
        by_split.setdefault(split, []).extend(_matching(folder, below, pattern))
    if config.get("data_files") is None and below:
        for file in _matching(folder, below, "**"):
            by_split.setdefault(split_names.split_of(file.relative_to(folder / below)) or "train", []).append(file)
    return {split: list(dict.fromkeys(files)) for split, files in by_split.items() if files}


def _patterns(value: Any) -> Iterator[tuple[str, str]]:
    """Splits and patterns: a text or a list of texts is of the split `train`."""
    if isinstance(value, Mapping) and "path" not in value:
        value = [{"split": split, "path": path} for split, path in value.items()]
    for entry in _listed(value):
        split, path = (entry.get("split"), entry.get("path")) if isinstance(entry, Mapping) else ("train", entry)
        yield from ((str(split or "train"), pattern) for pattern in _listed(path) if isinstance(pattern, str))


def _matching(folder: Path, below: str, pattern: str) -> list[Path]:
    place = Path(below, pattern)
    if place.is_absolute() or ".." in place.parts:
        return []
    names = glob.glob(str(place), root_dir=folder, recursive=True)  # noqa: PTH207  # the Hub's patterns skip hidden files
    files = (folder / name for name in sorted(names))
    return [file for file in files if readers.known(file) and file.is_file()]


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]

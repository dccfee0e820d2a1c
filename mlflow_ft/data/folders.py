"""The files of a folder that `data.path` names: all of them, or those of a split."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from mlflow_ft.config.schema import DataSection
from mlflow_ft.data import cards, hub, split_names
from mlflow_ft.data.reading import readers
from mlflow_ft.errors import DataError


def chosen(asked: str, folder: Path, settings: DataSection) -> tuple[list[Path], str]:
    """The files of a folder with rows of the requested split, in order, and a remark on what decided.

    Raises:
        DataError: there are none, or they are not there or cannot be read.
    """
    saved = hub.saved_files(folder, asked, settings)
    if saved is not None:
        return saved, ""
    data_files = sorted(walk(asked, folder))
    found = cards.subsets(folder)
    if not found:
        return _by_name(data_files, asked, folder, settings), ""
    named = cards.chosen(found, asked, settings)
    everything = {file for by_split in found.values() for files in by_split.values() for file in files}
    others = [file.relative_to(folder).as_posix() for file in data_files if file not in everything]
    remark = f"its README.md names the files to read, and not {', '.join(others[:3])}{' ...' * (len(others) > 3)}"
    return named, remark if others else ""


def has_splits(asked: str, folder: Path) -> bool:
    """Whether a folder's files are of several splits, or of one that is named."""
    if (folder / "dataset_dict.json").is_file() or cards.subsets(folder):
        return True
    return any(split_names.split_of(file.relative_to(folder)) for file in walk(asked, folder))


def _by_name(data_files: list[Path], asked: str, folder: Path, settings: DataSection) -> list[Path]:
    if not data_files:
        raise DataError(
            f"the folder {asked!r} contains no data file",
            hint=f"known kinds: {', '.join(readers.READERS)}, also .gz .zst",
        )
    by_split = {file: split_names.split_of(file.relative_to(folder)) for file in data_files}
    named = set(by_split.values()) - {None}
    if not named:
        return data_files
    wanted = next((name for name, words in split_names.WORDS.items() if settings.split in words), settings.split)
    # among files that are named by split, one that is not is for training
    files = [file for file in data_files if (by_split[file] or "train") == wanted]
    if not files:
        raise split_names.missing(asked, settings.split, sorted({split or "train" for split in by_split.values()}))
    return files


def walk(asked: str, folder: Path) -> Iterator[Path]:
    """Every data file below a folder, following links but visiting each folder once; hidden files are skipped."""
    seen = set()
    for root, folders, names in os.walk(folder, onerror=_refuse, followlinks=True):
        status = Path(root).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            file = Path(root, name)
            if name.startswith(".") or name in hub.DESCRIPTIONS or not readers.known(file):
                continue
            if file.is_symlink() and not exists(file):
                shown = f"{asked.rstrip('/')}/{file.relative_to(folder).as_posix()}"
                raise DataError(
                    f"{shown} is a link to a file that does not exist", hint="download the file, or remove the link"
                )
            if file.is_file():
                yield file


def _refuse(error: OSError) -> None:
    raise DataError(f"the folder {error.filename} cannot be read: {error.strerror or error}") from error


def exists(path: Path) -> bool:
    """Whether there is such a file or folder; a name may be too long for one."""
    try:
        return path.exists()
    except OSError:
        return False

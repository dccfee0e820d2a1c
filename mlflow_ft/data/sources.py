"""What `data.path` may name: a file, a folder, a saved data set, a Hub id, an MLflow URI, and mixtures of them."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mlflow_ft.config.schema import DataSection
from mlflow_ft.data import hub, readers
from mlflow_ft.data.readers import Unreadable
from mlflow_ft.errors import DataError
from mlflow_ft.rows import Row

DEMO_FOLDER = Path(__file__).parent.parent / "examples" / "demo"
MLFLOW_SCHEMES = ("runs:", "mlflow-artifacts:", "models:")
SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "eval", "evaluation"),
    "test": ("test", "testing"),
}
"""By split, the words in a file's name that say so, as `datasets` has them."""


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """One file of a source, or a Hub data set as a whole."""

    name: str
    """Its path within the source, so that it is the same on another machine."""
    path: Path | None
    sha256: str
    """Of its bytes as they are stored; of a Hub data set, its commit."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where rows come from: opened, but not read."""

    asked: str
    """As the user wrote it."""
    kind: Literal["local", "hugging_face"]
    files: tuple[SourceFile, ...]
    uri: str
    """Where it really is: an absolute path, a Hub id, an MLflow URI."""
    settings: DataSection

    def rows(self) -> Iterator[Row | Unreadable]:
        """Every row in order, at most `data.max_rows`.

        Raises:
            DataError: a file is missing, empty, or broken as a whole.
        """
        return itertools.islice(self._all(), self.settings.max_rows)

    def _all(self) -> Iterator[Row | Unreadable]:
        if self.kind == "hugging_face":
            yield from hub.rows(self.asked, self.settings)
        for file in self.files if self.kind == "local" else ():
            assert file.path is not None
            yield from readers.read_file(file.path, shown=self._shown(file))

    def _shown(self, file: SourceFile) -> str:
        """What messages call the file: as the user wrote it, and within a folder its path from there."""
        inside = len(self.files) > 1 or file.name != Path(self.uri).name
        return str(Path(self.asked) / file.name) if inside else self.asked


def paths(settings: DataSection) -> tuple[dict[str, float | None], str | None]:
    """The sources to train on with their weights, and the held-out one where it is another."""
    if settings.path != "demo":
        return settings.sources, settings.eval_path
    return {str(DEMO_FOLDER / "train.jsonl"): None}, settings.eval_path or str(DEMO_FOLDER / "heldout.jsonl")


def open_source(asked: str, settings: DataSection) -> Source:
    """Find a source, without reading its rows.

    Raises:
        DataError: it is not there, or holds nothing that can be read.
    """
    if asked.startswith(MLFLOW_SCHEMES):
        return _from_mlflow(asked, settings)
    if is_local(asked):
        return _local(asked, _path(asked), settings)
    commit = hub.commit(asked, settings)
    file = SourceFile(name=asked, path=None, sha256=commit)
    return Source(asked=asked, kind="hugging_face", files=(file,), uri=asked, settings=settings)


def is_local(asked: str) -> bool:
    """Whether it is a file or folder that is there, or can only be meant as one."""
    return _exists(_path(asked)) or asked.startswith((".", "/", "~")) or readers.known(Path(asked))


def _path(asked: str) -> Path:
    try:
        return Path(asked).expanduser()
    except RuntimeError:  # `~name`, where there is no such user
        return Path(asked)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # the name is too long for a file
        return False


def _local(asked: str, path: Path, settings: DataSection, *, uri: str = "") -> Source:
    if not _exists(path):
        raise DataError(
            f"there is no data file {asked!r}",
            hint=f"looked in {Path.cwd()}; under `mlflow run`, relative paths start at the project's folder",
        )
    found = _in_folder(asked, path, settings) if path.is_dir() else [path]
    root = path if path.is_dir() else path.parent
    files = tuple(SourceFile(name=one.relative_to(root).as_posix(), path=one, sha256=_sha256(one)) for one in found)
    return Source(asked=asked, kind="local", files=files, uri=uri or str(path.resolve()), settings=settings)


def _sha256(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}") from error


def _in_folder(asked: str, folder: Path, settings: DataSection) -> list[Path]:
    """The files of a folder that hold rows of the split that was asked for, sorted by path."""
    saved = hub.saved_files(folder, asked, settings)
    if saved is not None:
        return saved
    found = sorted(_walk(folder))
    if not found:
        raise DataError(
            f"the folder {asked!r} holds no data file", hint=f"known kinds: {', '.join(readers.READERS)}, also .gz .zst"
        )
    by_split = {file: split_of(file.relative_to(folder)) for file in found}
    named = set(by_split.values()) - {None}
    if not named or (len(named) == 1 and None in by_split.values()):
        return found
    wanted = next((name for name, words in SPLIT_NAMES.items() if settings.split in words), settings.split)
    chosen = [file for file in found if by_split[file] == wanted]
    if not chosen:
        raise DataError(
            f"the folder {asked!r} has no file of the split {settings.split!r}",
            hint=f"its files are of {', '.join(sorted(map(str, named)))}: name one with --data.split",
        )
    return chosen


def _walk(folder: Path) -> Iterator[Path]:
    """Every data file below a folder; hidden ones and links to folders, which may go round, are passed over."""
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            file = Path(root, name)
            if not name.startswith(".") and name not in hub.DESCRIPTIONS and readers.known(file) and file.is_file():
                yield file


def split_of(file: Path) -> str | None:
    """The split that a path within a folder names: `test` for `test/rows.jsonl` and `rows-test-00.parquet`."""
    words = re.split(r"[^a-z]+", file.as_posix().lower())
    return next((name for name, known in SPLIT_NAMES.items() if set(known) & set(words)), None)


def _from_mlflow(asked: str, settings: DataSection) -> Source:
    """An artifact, fetched first; of a run alone, the data that it was trained on."""
    from mlflow_ft import tracking

    run = re.fullmatch(r"runs:/+([0-9a-zA-Z]+)/?", asked)
    if run:
        return open_source(tracking.trained_on(run[1]), settings)
    return _local(asked, tracking.fetch(asked), settings, uri=asked)

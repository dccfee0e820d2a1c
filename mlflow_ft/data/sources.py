"""What `data.path` may name: a file, a folder, a saved data set, a Hub id, an MLflow URI, and mixtures of them."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from mlflow_ft.config.schema import DataSection
from mlflow_ft.data import cards, folders, hub
from mlflow_ft.data.folders import exists
from mlflow_ft.data.reading import readers
from mlflow_ft.data.reading.readers import Unreadable
from mlflow_ft.data.reading.shapes import Shape
from mlflow_ft.errors import DataError
from mlflow_ft.hashes import file_hash
from mlflow_ft.rows import Row

DEMO_FOLDER = Path(__file__).parent.parent / "examples" / "demo"
MLFLOW_SCHEMES = ("runs:", "mlflow-artifacts:", "models:")
RUN = re.compile(r"runs:/+([0-9a-zA-Z]+)/?")


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """One file of a source, or a Hub data set as a whole."""

    name: str
    """Its path within the source, so that it is the same on another machine."""
    shown: str
    """Its name in messages: the source as the user wrote it, followed by the path within a folder."""
    path: Path | None
    commit: str = ""
    """The commit of a Hub data set."""

    @cached_property
    def sha256(self) -> str:
        """The hash of the stored bytes; for a Hub data set, its commit.

        Raises:
            DataError: the file cannot be read.
        """
        return self.commit if self.path is None else _sha256(self.path)


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where rows come from: opened, but not read."""

    asked: str
    """As the user wrote it."""
    kind: Literal["local", "hugging_face"]
    files: tuple[SourceFile, ...]
    uri: str
    """Its location: an absolute path, a Hub id, an MLflow URI."""
    settings: DataSection
    shape: Shape | None = None
    """Where the rows are in its files, when they are not simply the files' objects."""
    remark: str = ""
    """What decided which files of a folder are read, in words."""

    def rows(self) -> Iterator[Row | Unreadable]:
        """Every row in order, at most `data.max_rows`.

        Raises:
            DataError: a file is missing, empty, or broken as a whole.
        """
        return itertools.islice(self._all(), self.settings.max_rows)

    def _all(self) -> Iterator[Row | Unreadable]:
        if self.kind == "hugging_face":
            yield from self._shaped(hub.rows(self.uri, self.settings))
        for file in self.files if self.kind == "local" else ():
            yield from self.of_file(file)

    def of_file(self, file: SourceFile, span: readers.Span | None = None) -> Iterator[Row | Unreadable]:
        """Every row of one of the files, or of a part of it, in which lines are counted from its beginning."""
        assert file.path is not None
        inside = self.inside(file)
        read = readers.read_file(file.path, shown=file.shown, inside=inside, span=span)
        yield from self._shaped(read, inside=bool(inside))

    def inside(self, file: SourceFile) -> tuple[str, ...]:
        """The keys of the list in a file that holds its rows; () if they are not in a list within an object."""
        return self.shape.inside if self.shape and file.path and readers.is_object(file.path) else ()

    def _shaped(self, read: Iterator[Row | Unreadable], *, inside: bool = False) -> Iterator[Row | Unreadable]:
        if self.shape is None:
            return read
        shape = self.shape
        return (row for value in read for row in shape.rows(value, inside=inside))


def paths(settings: DataSection) -> tuple[dict[str, float | None], str | None]:
    """The sources to train on with their weights, and the held-out source where it is separate."""
    if settings.path != "demo":
        return settings.sources, settings.eval_path
    return {str(DEMO_FOLDER / "train.jsonl"): None}, settings.eval_path or str(DEMO_FOLDER / "heldout.jsonl")


def open_source(asked: str, settings: DataSection) -> Source:
    """Find a source, without reading its rows.

    Raises:
        DataError: it does not exist, or contains nothing that can be read.
    """
    if not asked.strip():
        raise DataError(f"data {asked!r} names no source", hint="name a file, a folder, a Hub id or an MLflow URI")
    _check_name(asked)
    if asked.startswith(MLFLOW_SCHEMES):
        return _from_mlflow(asked, settings)
    if is_local(asked):
        return _local(asked, _path(asked), settings)
    commit = hub.commit(asked, settings)
    file = SourceFile(name=asked, shown=asked, path=None, commit=commit)
    return Source(asked=asked, kind="hugging_face", files=(file,), uri=asked, settings=settings)


def check(asked: str, settings: DataSection) -> None:
    """Check that a source exists, as far as possible without downloading or reading it.

    Raises:
        DataError: it does not exist, or contains nothing that can be read.
    """
    if is_local(asked) or not asked.strip():
        open_source(asked, settings)
    elif asked.startswith(MLFLOW_SCHEMES):
        from mlflow_ft import tracking

        tracking.check_uri(asked)
    else:
        hub.check(asked, settings)


def check_split(settings: DataSection) -> None:
    """Check that `data.split` chooses among something, where it is not the default.

    Raises:
        DataError: all sources are files or folders without splits.
    """
    train, held_out = paths(settings)
    default = DataSection.model_fields["split"].default
    if settings.split != default and not any(map(_may_have_splits, (*train, *([held_out] if held_out else ())))):
        raise DataError(
            f"data.split {settings.split!r} chooses nothing: no source has splits",
            hint="it is for data sets on the Hub, saved ones, and folders whose files are named by split; "
            "data.max_rows reads the first rows of a file",
        )


def check_subset(settings: DataSection) -> None:
    """Check that `data.subset` chooses among something.

    Raises:
        DataError: all sources are files, or folders without a README.md that names subsets.
    """
    train, held_out = paths(settings)
    if settings.subset is not None and not any(map(_may_have_subsets, (*train, *([held_out] if held_out else ())))):
        raise DataError(
            f"data.subset {settings.subset!r} chooses nothing: no source has subsets",
            hint="it is for data sets on the Hub, and for folders whose README.md names some; name the files to read",
        )


def _may_have_subsets(asked: str) -> bool:
    path = _path(asked)
    return not is_local(asked) or not exists(path) or (path.is_dir() and bool(cards.subsets(path)))


def _may_have_splits(asked: str) -> bool:
    path = _path(asked)
    if not is_local(asked) or not exists(path):
        return True
    if path.is_dir():
        return folders.has_splits(asked, path)
    return readers.is_object(path)  # lists of rows may be named by split


def is_local(asked: str) -> bool:
    """Whether it is an existing file or folder, or can only be the name of one."""
    return exists(_path(asked)) or asked.startswith((".", "/", "~")) or readers.known(Path(asked))


def _path(asked: str) -> Path:
    try:
        return Path(asked).expanduser()
    except RuntimeError:  # `~name`, where there is no such user
        return Path(asked)


def _local(asked: str, path: Path, settings: DataSection, *, uri: str = "") -> Source:
    if not exists(path):
        raise DataError(
            f"the data file {asked!r} does not exist",
            hint=f"looked in {Path.cwd()}; under `mlflow run`, relative paths start at the project's folder",
        )
    folder = path.is_dir()
    data_files, remark = folders.chosen(asked, path, settings) if folder else ([path], "")
    for file in data_files:
        readers.check_kind(file, asked)
    names = [file.relative_to(path).as_posix() if folder else file.name for file in data_files]
    files = [
        SourceFile(name=name, shown=f"{asked.rstrip('/')}/{name}" if folder else asked, path=file)
        for name, file in zip(map(_check_name, names), data_files, strict=True)
    ]
    return Source(
        asked=asked, kind="local", files=tuple(files), uri=uri or str(path.resolve()), settings=settings, remark=remark
    )


def _check_name(name: str) -> str:
    """The name, checked to be UTF-8, which reports need: an old file's name may have another encoding."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"the name {name!a} is not UTF-8 text", hint="rename the file") from error
    return name


def _sha256(file: Path) -> str:
    try:
        return file_hash(file)
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}") from error


def _from_mlflow(asked: str, settings: DataSection) -> Source:
    """An artifact, downloaded first; for a run URI without a path, the data that the run was trained on."""
    from mlflow_ft import tracking

    run = RUN.fullmatch(asked)
    if run is None:
        return _local(asked, tracking.fetch(asked), settings, uri=asked)
    place = tracking.trained_on(run[1])
    if RUN.fullmatch(place):
        raise DataError(f"data {asked!r}: it was trained on the data of another run, {place!r}", hint="name that run")
    return dataclasses.replace(open_source(place, settings), asked=asked)

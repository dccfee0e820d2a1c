"""Read rows from local files and from the Hub, each with the place where it stands."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mlflow_ft.config.schema import DataSection
from mlflow_ft.errors import DataError
from mlflow_ft.records import Row

DEMO_FOLDER = Path(__file__).parent.parent / "examples" / "demo"


def paths(settings: DataSection) -> tuple[str, str | None]:
    """The source to train on, and the one that is held out where it is another; `demo` is inside the package."""
    if settings.path != "demo":
        return settings.path, settings.eval_path
    return str(DEMO_FOLDER / "train.jsonl"), settings.eval_path or str(DEMO_FOLDER / "heldout.jsonl")


def is_local(path: str) -> bool:
    """Whether `path` is a file that is there, or can only be meant as one."""
    return _exists(_file(path)) or path.startswith((".", "/", "~")) or bool(_reader(Path(path)))


def read(path: str, settings: DataSection) -> list[Row]:
    """Read at most `data.max_rows` rows of a source, in its order.

    Raises:
        DataError: the source is missing, empty, of an unknown kind or malformed; the message names file and line.
    """
    rows: list[Row] = []
    for row in _read_file(_file(path)) if is_local(path) else _read_hub(path, settings):
        rows.append(row)
        if len(rows) == settings.max_rows:
            break
    if not rows:
        raise DataError(f"data {path!r} has no rows", hint="write rows into it, or name another")
    return rows


def _file(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError:  # `~name`, where there is no such user
        return Path(path)


def _exists(file: Path) -> bool:
    try:
        return file.exists()
    except OSError:  # the name is too long for a file
        return False


def _read_file(file: Path) -> Iterator[Row]:
    if not _exists(file):
        raise DataError(
            f"there is no data file {str(file)!r}",
            hint=f"looked in {Path.cwd()}; under `mlflow run`, relative paths start at the project's folder",
        )
    reader = _reader(file)
    if reader is None or not file.is_file():
        raise DataError(f"data {str(file)!r} is of no known kind", hint=f"known: {', '.join(READERS)}, or a Hub id")
    if file.stat().st_size == 0:
        raise DataError(f"data file {str(file)!r} is empty (0 bytes)", hint="write rows into it, or name another file")
    try:
        for line, values in reader(file):
            yield Row(values=values, file=str(file), line=line)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file}:{_undecodable_line(file)}: not UTF-8 text ({error.reason})", hint="save the file as UTF-8"
        ) from error
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}") from error


def _undecodable_line(file: Path) -> int:
    """Text is decoded in pieces, and the place that Python names is within its piece: look again, line by line."""
    with file.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                return number
    return 1


def _json_lines(file: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    with file.open(encoding="utf-8-sig") as stream:
        for number, line in enumerate(stream, 1):
            if line.strip():
                try:
                    value = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise _malformed(file, number, error) from error
                yield number, _object(value, file, number)


def _json_file(file: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """A list of objects, or JSON lines under the name .json, as many data sets have it."""
    text = file.read_text(encoding="utf-8-sig")
    if not text.lstrip().startswith("["):
        yield from _json_lines(file)
        return
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _malformed(file, getattr(error, "lineno", 1), error) from error
    decoder, place, line = json.JSONDecoder(), text.index("[") + 1, 1
    counted = 0
    for value in values:
        # The list is read already; each element is found again only for the line on which it begins.
        place = _next(text, place)
        line += text.count("\n", counted, place)
        counted = place
        yield line, _object(value, file, line)
        _, place = decoder.raw_decode(text, place)


def _next(text: str, place: int) -> int:
    while text[place] in " \t\r\n,":
        place += 1
    return place


def _csv_file(file: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    csv.field_size_limit(2**24)
    with file.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, delimiter="\t" if file.suffix.lower() == ".tsv" else ",", strict=True)
        header: list[str] = []
        line = 1  # on which the next row begins; a row ends on a later line where a quoted field holds line breaks
        try:
            for fields in reader:
                if header and fields:
                    yield line, _csv_row(header, fields, f"{file}:{line}")
                elif fields:
                    header = _csv_header(fields, f"{file}:{line}")
                line = reader.line_num + 1
        except csv.Error as error:
            raise DataError(f"{file}:{line}: malformed CSV: {error}") from error


def _csv_header(fields: list[str], place: str) -> list[str]:
    if twice := sorted({name for name in fields if fields.count(name) > 1}):
        raise DataError(f"{place}: the header names a column twice: {', '.join(twice)}")
    return fields


def _csv_row(header: list[str], fields: list[str], place: str) -> Mapping[str, Any]:
    if len(fields) != len(header):
        raise DataError(
            f"{place}: the row has another number of fields than the header ({len(fields)}, not {len(header)})",
            hint="put fields that hold commas or line breaks in double quotes",
        )
    return dict(zip(header, fields, strict=True))


def _parquet_file(file: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    import pyarrow
    from pyarrow import parquet

    try:
        batches = parquet.ParquetFile(file).iter_batches()
        number = 0
        for batch in batches:
            for values in batch.to_pylist():
                number += 1
                yield number, values
    except pyarrow.ArrowException as error:
        raise DataError(f"{file} is no Parquet file that can be read: {str(error).splitlines()[0]}") from error


READERS: Mapping[str, Callable[[Path], Iterator[tuple[int, Mapping[str, Any]]]]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json_file,
    ".csv": _csv_file,
    ".tsv": _csv_file,
    ".parquet": _parquet_file,
}


def _reader(file: Path) -> Callable[[Path], Iterator[tuple[int, Mapping[str, Any]]]] | None:
    return READERS.get(file.suffix.lower())


def _object(value: Any, file: Path, line: int) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{file}:{line}: a row must be an object, and this is {type(value).__name__}")
    return value


def _malformed(file: Path, line: int, error: Exception) -> DataError:
    return DataError(
        f"{file}:{line}: malformed JSON: {getattr(error, 'msg', error)}",
        hint="one JSON object a line (.jsonl), or one list of objects (.json)",
    )


def _read_hub(path: str, settings: DataSection) -> Iterator[Row]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        dataset = load_dataset(path, settings.subset, split=settings.split, revision=settings.revision)
    except (DatasetsError, OSError, ValueError, RuntimeError) as error:  # the last for a data set that is a script
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(
            f"data {path!r} is no file, and the Hub does not give it: {reason}",
            hint=f"check the name, the network, data.subset and data.split; looked for the file in {Path.cwd()}",
        ) from error
    for number, values in enumerate(dataset, 1):
        yield Row(values=values, file=path, line=number)

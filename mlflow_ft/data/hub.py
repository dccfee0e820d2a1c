"""Data sets of Hugging Face's `datasets`: on the Hub, or saved to a folder by `save_to_disk`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlflow_ft.config.schema import DataSection
from mlflow_ft.data.reading import arrow_rows
from mlflow_ft.data.reading.parsing import RowError
from mlflow_ft.data.reading.readers import Unreadable
from mlflow_ft.errors import DataError, brief
from mlflow_ft.rows import Row

HUB_SECONDS = 10.0
DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json")
"""Files that describe a data set and contain none of its rows."""


def commit(name: str, settings: DataSection) -> str:
    """The commit of a Hub data set, from the Hub; "" where it does not answer (the data may be cached)."""
    from huggingface_hub import HfApi

    try:
        info = HfApi().dataset_info(name, revision=settings.revision, timeout=HUB_SECONDS)
    except Exception:  # its HTTP client's errors too; if something is wrong, reading the data will say what
        return ""
    return str(info.sha or "")


def check(name: str, settings: DataSection) -> None:
    """Raise DataError where the Hub has no such data set, or does not answer and no copy is cached here."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        HfApi().dataset_info(name, revision=settings.revision, timeout=HUB_SECONDS)
    except (HFValidationError, RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise _not_there(name, error) from error
    except Exception as error:  # no network, or the Hub's own trouble; its HTTP client's errors have no common class
        if not _is_cached(name):
            raise _not_there(name, error) from error


def _is_cached(name: str) -> bool:
    """Whether `datasets` or the Hub's client has downloaded something of this name before."""
    from datasets.config import HF_DATASETS_CACHE
    from huggingface_hub.constants import HF_HUB_CACHE

    own = Path(HF_DATASETS_CACHE, name.lower().replace("/", "___"))
    return own.is_dir() or Path(HF_HUB_CACHE, f"datasets--{name.replace('/', '--')}").is_dir()


def rows(name: str, settings: DataSection) -> Iterator[Row | Unreadable]:
    """The rows of a Hub data set; streamed, not downloaded whole, where `data.max_rows` limits them.

    They are read from its Arrow tables, like those of a file: `datasets` itself would fill objects with nulls, and
    open every image.

    Raises:
        DataError: the Hub does not provide it.
    """
    from datasets import load_dataset

    options = {"split": settings.split, "revision": settings.revision, "streaming": settings.max_rows is not None}
    try:
        dataset = load_dataset(name, settings.subset, **options).with_format("arrow")
        tables = dataset.iter(batch_size=min(arrow_rows.BATCH, settings.max_rows or arrow_rows.BATCH))
        batches = (batch for table in tables for batch in table.to_batches())
        for number, values in arrow_rows.numbered(batches):
            if isinstance(values, RowError):
                yield Unreadable(file=name, line=number, reason=str(values))
            else:
                yield Row(values=values, file=name, line=number)
    except Exception as error:  # the libraries below it raise errors without a common class
        raise _not_there(name, error) from error


def _not_there(name: str, error: Exception) -> DataError:
    return DataError(
        f"data {name!r} is not a file, and the Hub does not provide it: {brief(error)}",
        hint=f"check the name, the network, data.subset and data.split; looked for the file in {Path.cwd()}",
    )


def saved_files(folder: Path, asked: str, settings: DataSection) -> list[Path] | None:
    """The Arrow files of a folder that `save_to_disk` wrote, in its order; None where it is not such a folder.

    Raises:
        DataError: it is a dictionary of splits without the requested one, or its description is broken.
    """
    dictionary = folder / "dataset_dict.json"
    if dictionary.is_file():
        splits = _names(_described(dictionary).get("splits"))
        if settings.split not in splits:
            raise DataError(
                f"the data set {asked!r} has no split {settings.split!r}",
                hint=f"it has {', '.join(splits) or 'none'}: name one with --data.split",
            )
        folder = folder / settings.split
    elif not (folder / "state.json").is_file():
        return None
    data_files = _listed(_described(folder / "state.json").get("_data_files"))
    names = _names([data_file.get("filename") if isinstance(data_file, dict) else None for data_file in data_files])
    missing = [name for name in names if os.sep in name or not (folder / name).is_file()]
    if missing or not names:
        raise DataError(
            f"the data set {asked!r} lacks {', '.join(missing) or 'its files'}", hint="save it again with save_to_disk"
        )
    return [folder / name for name in names]


def _described(file: Path) -> dict[str, Any]:
    try:
        description = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file} cannot be read: {error}", hint="save the data set again with save_to_disk") from error
    return description if isinstance(description, dict) else {}


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _names(value: Any) -> list[str]:
    return [str(name) for name in _listed(value)]

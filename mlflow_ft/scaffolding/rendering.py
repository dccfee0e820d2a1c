"""Templates become files: all of a new folder, or nothing."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_ft.errors import ConfigError

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).with_name("templates")
ALLOWED = {".git"}
"""What an existing folder may hold."""


def environment(folder: str) -> Environment:
    """The templates of a folder; a variable that they lack is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(TEMPLATES / folder),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
    )


def check_free(folder: Path) -> None:
    """Raise ConfigError if `folder` is a file, has something in it, or cannot be made."""
    if folder.is_dir():
        there = sorted(entry.name for entry in folder.iterdir() if entry.name not in ALLOWED)
        if there:
            shown = ", ".join(there[:3]) + (" ..." if len(there) > 3 else "")
            raise ConfigError(
                f"the folder {folder} is not empty: it has {shown}", hint="name a new folder, or an empty one"
            )
    elif folder.exists() or folder.is_symlink():
        raise ConfigError(f"{folder} is there already, and is no folder", hint="name a new folder")


def write(folder: Path, files: Mapping[str, str]) -> list[Path]:
    """Write files by their path within a folder that is new or empty; if one cannot be written, none is left.

    Raises:
        ConfigError: the folder is not free, or cannot be written.
    """
    check_free(folder)
    there = folder.is_dir()
    written: list[Path] = []
    try:
        for name, text in files.items():
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
            written.append(file)
    except OSError as error:
        _remove(folder, files, there=there)
        raise ConfigError(f"{folder} cannot be written: {error.strerror}", hint="name another folder") from error
    return written


def _remove(folder: Path, files: Mapping[str, Any], *, there: bool) -> None:
    if not there:
        shutil.rmtree(folder, ignore_errors=True)
        return
    for top in {name.partition("/")[0] for name in files}:
        shutil.rmtree(folder / top, ignore_errors=True)
        (folder / top).unlink(missing_ok=True)

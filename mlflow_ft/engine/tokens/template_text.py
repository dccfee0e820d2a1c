"""A chat template that the user gives: the text itself, or a file that holds it."""

from __future__ import annotations

from pathlib import Path

from mlflow_ft.errors import ModelError

SHORTEST = "{"
"""What every template holds, and no file name that anybody uses."""


def read(given: str) -> str:
    """The template: what `data.chat_template` says, or what its file holds.

    Raises:
        ModelError: there is no such file, or it is not text.
    """
    if SHORTEST in given:
        return given
    path = Path(given).expanduser()
    if not path.is_file():
        raise ModelError(
            f"data.chat_template: there is no file {given!r}", hint=f"looked in {Path.cwd()}; a template holds '{{'"
        )
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"data.chat_template: {given!r} cannot be read: {error}", hint="name a UTF-8 file") from error
    if SHORTEST not in text:
        raise ModelError(
            f"data.chat_template: the file {given!r} does not contain a Jinja template",
            hint="a template writes messages with {{ ... }} and {% ... %}",
        )
    return text

"""A chat template from the settings: the text itself, or the name of its file."""

from __future__ import annotations

from pathlib import Path

from mlflow_ft.errors import ModelError

SHORTEST = "{"
"""Every template contains it, and file names do not."""


def read(setting: str) -> str:
    """The template: the value of `data.chat_template`, or the content of the file that it names.

    Raises:
        ModelError: there is no such file, or it is not UTF-8 text, or not a template.
    """
    if SHORTEST in setting:
        return setting
    path = Path(setting).expanduser()
    if not path.is_file():
        raise ModelError(
            f"data.chat_template: there is no file {setting!r}", hint=f"looked in {Path.cwd()}; a template has '{{'"
        )
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(
            f"data.chat_template: {setting!r} cannot be read: {error}", hint="name a UTF-8 file"
        ) from error
    if SHORTEST not in text:
        raise ModelError(
            f"data.chat_template: the file {setting!r} does not contain a Jinja template",
            hint="a template writes messages with {{ ... }} and {% ... %}",
        )
    return text

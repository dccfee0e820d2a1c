"""What plugins return to have settings and commands of their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import click


@dataclass(frozen=True, kw_only=True)
class Options:
    """A plugin's settings: users set them as `plugins.NAME.key`, in YAML or on the command line.

    `fields` is a frozen dataclass. Its types and defaults are those of the settings, and the text below each field
    explains it. Bounds are written as `Annotated[int, annotated_types.Ge(1)]`, choices as a `Literal`; what concerns
    several fields is checked in `__post_init__`, which raises a ValueError. Code reads them with
    `job.config.options(JudgeOptions)`, an evaluator with `subject.config.options(JudgeOptions)`.
    """

    name: str
    """Part of the key: `judge` for `plugins.judge.endpoint`. `-` and `_` are the same in it."""
    summary: str
    fields: type


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command `mlflow-ft NAME`, which `mlflow-ft --help` lists with its summary.

    `load` imports and returns the click command, a single one or a group. It is called to run the command, never
    to list it. Errors that a user can fix are raised in it as `FineTuneError`, as in our own commands.
    """

    name: str
    summary: str
    load: Callable[[], click.Command]

"""What plugins return to have settings of their own."""

from __future__ import annotations

from dataclasses import dataclass


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

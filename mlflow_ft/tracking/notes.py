"""A run's name, and how it ended, at the beginning of its description in MLflow's UI."""

from __future__ import annotations

import re

from mlflow.utils import name_utils
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

ERROR = "mlflow_ft.error"
STAGE = "mlflow_ft.stage"
"""Tags of a run that FAILED or was KILLED."""
NOTE: str = MLFLOW_RUN_NOTE
"""The tag that MLflow's UI shows as the run's description, in Markdown."""
ENDED = re.compile(r"\A\*\*(?:FAILED|KILLED)\*\*[^\n]*\n\n```\n.*?\n```\n*", re.DOTALL)
LONGEST = 2000
"""Characters of an error that are shown; a tag has all of it."""


def is_generated(name: str | None) -> bool:
    """Whether MLflow made up a run's name (`amazing-gull-79`) because nobody gave one."""
    first, _, rest = (name or "").partition("-")
    second, _, number = rest.partition("-")
    known = first in name_utils._GENERATOR_PREDICATES and second in name_utils._GENERATOR_NOUNS
    return known and number.isdecimal()


def error_tags(note: str, status: str, *, stage: str, error: str, hint: str = "") -> dict[str, str]:
    """The tags of a run that ended in this state with an error; `note` is its description so far."""
    shown = with_end(note, status, stage=stage, error=f"{error}\n  {hint}" if hint else error)
    return {NOTE: shown, ERROR: error, STAGE: stage}


def with_end(note: str, status: str, *, stage: str, error: str) -> str:
    """The description, with the error that ended the run first."""
    text = error.replace("```", "'''")
    text = text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."
    where = f" in the stage {stage}" if stage else ""
    return f"**{status}**{where}\n\n```\n{text}\n```\n\n{without_end(note)}".rstrip()


def without_end(note: str) -> str:
    """The description without the error of an earlier attempt."""
    return ENDED.sub("", note)

"""Unsloth's environment, and a training in it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from mlflow_ft import Data, Job, Model, Trained
from mlflow_ft.engine import environments
from mlflow_ft.engine.environments import Environment
from mlflow_ft.engine.tools import by_tool
from mlflow_ft_unsloth.engine import mapping
from mlflow_ft_unsloth.options import UnslothOptions

REQUIREMENTS = ("unsloth==2026.10.9", "unsloth_zoo==2026.10.9")
VARIABLES = {
    "UNSLOTH_DISABLE_STATISTICS": "1",
    "UNSLOTH_DISABLE_AUTO_PADDING_FREE": "1",  # rows are padded as in our own methods
    "TOKENIZERS_PARALLELISM": "false",
}


def environment(job: Job) -> Environment:
    """The environment with Unsloth; it is made the first time."""
    options = job.config.options(UnslothOptions)
    requirements = REQUIREMENTS if options.requirements is None else options.requirements
    return environments.find_or_make("unsloth", requirements, progress=job.progress, python=options.python)


def train(job: Job, data: Data, model: Model) -> Trained:
    """Let Unsloth train the adapter, and save it as our own methods do; errors as `by_tool.train`."""
    tool = by_tool.Tool(
        environment=environment(job),
        script=Path(__file__).parent / "in_unsloth.py",
        settings=partial(mapping.settings, more=job.config.objective.options),
        variables=VARIABLES,
    )
    return by_tool.train(job, data, model, tool)

"""Axolotl's environment, and a training in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mlflow_ft import Data, Job, Model, Trained
from mlflow_ft.engine import environments
from mlflow_ft.engine.environments import Environment
from mlflow_ft.engine.tools import by_tool
from mlflow_ft_axolotl.engine import mapping
from mlflow_ft_axolotl.options import AxolotlOptions

HERE = Path(__file__).parent
VARIABLES = {"AXOLOTL_DO_NOT_TRACK": "1", "TOKENIZERS_PARALLELISM": "false"}


def environment(job: Job) -> Environment:
    """The environment with Axolotl; it is made the first time."""
    options = job.config.options(AxolotlOptions)
    requirements, pip = chosen(gpu=torch.cuda.is_available())
    if options.requirements is not None:
        requirements, pip = options.requirements, []
    return environments.find_or_make("axolotl", requirements, progress=job.progress, python=options.python, pip=pip)


def chosen(*, gpu: bool) -> tuple[list[str], list[str]]:
    """What pip installs, and its options: with a GPU what Axolotl asks for, without one the least that trains."""
    name = "requirements-gpu.txt" if gpu else "requirements-cpu.txt"
    lines = (line.partition("#")[0].strip() for line in (HERE / name).read_text(encoding="utf-8").splitlines())
    requirements = [line for line in lines if line]
    return requirements, [] if gpu else ["--no-deps", "--ignore-requires-python"]


def train(job: Job, data: Data, model: Model) -> Trained:
    """Let Axolotl train the adapter, and save it as our own methods do; errors as `by_tool.train`."""

    def settings(work: by_tool.Work) -> dict[str, Any]:
        if work.values["training.warmup_steps"] == 1:
            job.progress.warn("Axolotl warms up for at least two steps; one was asked for")
        return mapping.settings(work, job.config.objective.options)

    script = HERE / "in_axolotl.py"
    tool = by_tool.Tool(environment=environment(job), script=script, settings=settings, variables=VARIABLES)
    return by_tool.train(job, data, model, tool)

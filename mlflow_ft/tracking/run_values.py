"""Params and tags of a run, within MLflow's limits."""

from __future__ import annotations

from collections.abc import Mapping

from mlflow.entities import Param, Run, RunData, RunTag

from mlflow_ft.config.schema import Config
from mlflow_ft.tracking.metrics import clean_key

LONGEST_PARAM = 6000
LONGEST_TAG = 8000
CUT = " ... [cut]"


def cut(text: str, limit: int) -> str:
    """The text, or its beginning with a marker, in at most `limit` characters."""
    return text if len(text) <= limit else text[: limit - len(CUT)] + CUT


def config_params(config: Config, known: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """The configuration as params `cfg.<path>`: those that the run lacks, and which of its own differ."""
    params = {f"cfg.{path}": cut(str(value), LONGEST_PARAM) for path, value in config.flat().items()}
    changed = [f"{key}: {known[key]} -> {value}" for key, value in params.items() if known.get(key, value) != value]
    return {key: value for key, value in params.items() if key not in known}, changed


def number_params(values: Mapping[str, float], known: Mapping[str, str]) -> dict[str, str]:
    """Numbers as params that the run lacks."""
    named = {clean_key(name): f"{value:.12g}" for name, value in values.items()}
    return {name: value for name, value in named.items() if name not in known}


def tag_values(tags: Mapping[str, object]) -> dict[str, str]:
    """The tags as texts; a value over 8,000 characters is cut and marked."""
    return {key: cut(str(value), LONGEST_TAG) for key, value in tags.items()}


def with_tags(run: Run, tags: Mapping[str, str]) -> Run:
    """The run with these tags set, and without its metrics."""
    values = {**run.data.tags, **tags}
    params = [Param(key, value) for key, value in run.data.params.items()]
    data = RunData(metrics=[], params=params, tags=[RunTag(key, value) for key, value in values.items()])
    return Run(run.info, data, run.inputs, run.outputs)

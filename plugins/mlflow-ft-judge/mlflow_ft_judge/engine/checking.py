"""Before training: can the judge be asked?"""

from __future__ import annotations

import difflib
from dataclasses import replace

from mlflow_ft import ConfigError
from mlflow_ft_judge import settings
from mlflow_ft_judge.engine.endpoint import Endpoint, NotJudgedError
from mlflow_ft_judge.settings import JudgeAt, JudgeOptions

LONGEST = 30.0
"""Seconds to wait for the list of models."""
SHOWN = 8


def check(options: JudgeOptions) -> None:
    """Ask each endpoint for its models.

    Raises:
        ConfigError: the settings name no judge, it does not answer, refuses the key, or does not have the model.
    """
    settings.rubrics(options)
    quick = replace(options, retries=min(options.retries, 1), timeout=min(options.timeout, LONGEST))
    for judge in settings.judges(options):
        _check(judge, quick)


def _check(judge: JudgeAt, options: JudgeOptions) -> None:
    endpoint = Endpoint(judge, options)
    try:
        models = endpoint.models()
    except NotJudgedError as error:
        raise ConfigError(
            f"the judge {judge.name} cannot be asked: {error.reason}",
            hint="start it, or correct plugins.judge.endpoint and plugins.judge.api_key_env",
        ) from error
    finally:
        endpoint.close()
    if models and judge.model not in models:
        near = difflib.get_close_matches(judge.model, models, n=1)
        hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(models[:SHOWN])}"
        raise ConfigError(f"the endpoint {judge.endpoint} has no model {judge.model!r}", hint=hint)

"""Guard sets: data of their own on which a training must make nothing worse, scored before it and after."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from mlflow_ft.config.schema import Config, DataSection
from mlflow_ft.errors import ConfigError, DataError
from mlflow_ft.plugins import Plugins
from mlflow_ft.preparing import dataset, prepared
from mlflow_ft.preparing.checking import Side
from mlflow_ft.progress import Progress
from mlflow_ft.registry import Registry
from mlflow_ft.values import Data, Score

if TYPE_CHECKING:
    from mlflow_ft.engine.judging.judge import JudgedModel
    from mlflow_ft.records import Evaluator

NAME = re.compile(r"[A-Za-z0-9_-]+")


def check_names(config: Config) -> None:
    """Raise ConfigError for a name that cannot be a part of a metric's name."""
    for name in config.evaluation.guards or {}:
        if not NAME.fullmatch(name):
            raise ConfigError(
                f"evaluation.guards: {name!r} cannot be a name", hint="use letters, digits, - and _: {safety: FILE}"
            )


def prepare(
    config: Config, data: Data, *, plugins: Plugins, registry: Registry, progress: Progress
) -> Mapping[str, Data]:
    """Every guard set as held-out data, in the tokens and by the template of what is trained on.

    Raises:
        DataError: a source is missing or of no known format, or a row cannot be proved.
    """
    found = {}
    for name, path in (config.evaluation.guards or {}).items():
        settings = DataSection(
            path=path,
            max_length=config.data.max_length,
            max_rows=config.data.max_rows,
            on_bad_row=config.data.on_bad_row,
            turns=config.data.turns,
        )
        template = data.tokenizer.chat_template
        rows = prepared.prepare(
            {path: None},
            config.model_copy(update={"data": settings}),
            tokenizer=data.tokenizer,
            plugins=plugins,
            registry=registry,
            progress=progress,
            title=f"prepare guard {name}",
            quality=False,
        )
        if data.tokenizer.chat_template != template:
            data.tokenizer.chat_template = template
            raise DataError(
                f"the guard set {name} ({path}) calls tools, and the template that is trained with writes none",
                hint="leave it out, or train on rows with tools, too",
            )
        dataset.refuse(rows, config, strict=config.data.on_bad_row == "error")
        split = dataset.side_of(Side(stored=rows, indices=dataset.held_out_all(rows)), "guard", data.tokenizer)
        found[name] = replace(data, eval=split, format="+".join(rows.formats), kind=rows.record.kind, guards={})
    return found


def scores(subject: JudgedModel, data: Data, evaluators: Mapping[str, Sequence[Evaluator]]) -> Iterator[Score]:
    """What the evaluators say of a model on every guard set; `GUARD/SCORE` is the name of a score."""
    for name, guard in data.guards.items():
        over = subject.over(guard)
        for evaluator in evaluators[name]:
            for score in evaluator.evaluate(over):
                yield replace(score, name=f"{name}/{score.name}", guard=name)


def digests(data: Data) -> dict[str, str]:
    """Which rows each guard set has."""
    return {name: guard.eval.digest for name, guard in data.guards.items()}

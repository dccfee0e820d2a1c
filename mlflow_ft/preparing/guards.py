"""Guard sets: separate data that training must not make worse, scored before and after it."""

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
from mlflow_ft.preparing.evaluating import Evaluating
from mlflow_ft.preparing.prepared import Preparation
from mlflow_ft.progress import Progress
from mlflow_ft.registry import Registry, suggest
from mlflow_ft.values import Data, Score

if TYPE_CHECKING:
    from mlflow_ft.engine.judging.judge import JudgedModel
    from mlflow_ft.records import Evaluator

NAME = re.compile(r"[A-Za-z0-9_-]+")
READY = "builtin"
"""The name of all ready guard sets together, and what the names of single ones begin with: `builtin/json`."""


def check_names(config: Config, registry: Registry) -> None:
    """Raise ConfigError for a name that cannot be part of a metric's name, or a guard set that is not registered."""
    for name, asked in (config.evaluation.guards or {}).items():
        if not NAME.fullmatch(name):
            raise ConfigError(
                f"evaluation.guards: {name!r} cannot be a name", hint="use letters, digits, - and _: {safety: FILE}"
            )
        if asked.partition("/")[0] == READY and asked not in registry.guards:
            known = [guard.name for guard in registry.guards]
            hint = suggest(asked, known) if known else "pip install mlflow-ft-guards, or name a file"
            raise ConfigError(f"evaluation.guards: there is no guard set {asked!r}", hint=hint)


def source(asked: str, registry: Registry) -> str:
    """The data source of what `evaluation.guards` names: a registered guard set's files, else the source itself."""
    return str(registry.guards[asked].path) if asked in registry.guards else asked


def prepare(
    config: Config, data: Data, *, plugins: Plugins, registry: Registry, progress: Progress
) -> Mapping[str, Data]:
    """Every guard set as held-out data, with the tokenizer and template of the training data.

    Raises:
        DataError: a source is missing or its format unknown, or the mask of a row cannot be proved.
    """
    guard_sets = {}
    for name, asked in (config.evaluation.guards or {}).items():
        path = source(asked, registry)
        settings = DataSection(
            path=path,
            max_length=config.data.max_length,
            max_rows=config.data.max_rows,
            on_bad_row=config.data.on_bad_row,
            turns=config.data.turns,
        )
        template = data.tokenizer.chat_template
        preparation = Preparation(
            config=config.model_copy(update={"data": settings}),
            tokenizer=data.tokenizer,
            plugins=plugins,
            registry=registry,
            progress=progress,
        )
        rows = prepared.prepare({path: None}, preparation, title=f"prepare guard {name}", quality=False)
        if data.tokenizer.chat_template != template:
            data.tokenizer.chat_template = template
            raise DataError(
                f"the guard set {name} ({path}) calls tools, but the training template cannot write tool calls",
                hint="leave it out, or include rows with tools in the training data",
            )
        dataset.refuse(rows, config, strict=config.data.on_bad_row == "error")
        split = dataset.side_of(Side(stored=rows, indices=dataset.held_out_all(rows)), "guard", data.tokenizer)
        guard_sets[name] = replace(data, eval=split, format="+".join(rows.formats), kind=rows.record.kind, guards={})
    return guard_sets


def scores(
    subject: JudgedModel, data: Data, evaluators: Mapping[str, Sequence[Evaluator]], evaluating: Evaluating
) -> Iterator[tuple[str, str, Score]]:
    """The guard set, the evaluator and the score, named `GUARD/SCORE`, of a model on every guard set."""
    for name, guard in data.guards.items():
        guarded = subject.over(guard)
        for evaluator in evaluators[name]:
            for score in evaluating.scores(evaluator, guarded, guard=name):
                yield name, evaluator.name, replace(score, name=f"{name}/{score.name}", guard=name)


def digests(data: Data) -> dict[str, str]:
    """The digest of each guard set's rows."""
    return {name: guard.eval.digest for name, guard in data.guards.items()}

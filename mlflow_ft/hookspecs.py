"""Every hook: its docstring is the contract and says when it is called. The verb in its name gives the rule.

register_   collected when the program starts; cheap, pure; if it raises, that plugin is left out and listed broken
detect_     asked in turn until one answers; None means "not mine"; if it raises, the run stops
before_     may veto by raising FineTuneError; the run stops and nothing is spent
after_ on_  watch only; if it raises, that is logged with the plugin's name and the run goes on
training_callbacks   collected from every plugin; if it raises, the run stops
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pluggy

from mlflow_ft.records import Adapter, Check, DataFormat, Evaluator, Exporter, Gate, Packager, Reward, Trainer

if TYPE_CHECKING:
    from mlflow_ft.values import Data, Job, Model, Scores

PROJECT = "mlflow_ft"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def register_formats() -> Iterable[DataFormat]:  # type: ignore[empty-body]  # a specification has no body
    """Return the data formats of this plugin. Called once, when the program starts."""


@hookspec
def register_checks() -> Iterable[Check]:  # type: ignore[empty-body]  # a specification has no body
    """Return the data checks of this plugin. Called once, when the program starts."""


@hookspec
def register_trainers() -> Iterable[Trainer]:  # type: ignore[empty-body]  # a specification has no body
    """Return the methods of this plugin. Called once, when the program starts.

    `Trainer.scores` names the score that a method is for, the first that is measured: by it a tuned model is compared
    with its base after the training, and with the champion at a promotion (`metric: auto`).
    """


@hookspec
def register_adapters() -> Iterable[Adapter]:  # type: ignore[empty-body]  # a specification has no body
    """Return the adapters of this plugin. Called once, when the program starts."""


@hookspec
def register_evaluators() -> Iterable[Evaluator]:  # type: ignore[empty-body]  # a specification has no body
    """Return the evaluators of this plugin. Called once, when the program starts."""


@hookspec
def register_rewards() -> Iterable[Reward]:  # type: ignore[empty-body]  # a specification has no body
    """Return the reward functions of this plugin. Called once, when the program starts."""


@hookspec
def register_packagers() -> Iterable[Packager]:  # type: ignore[empty-body]  # a specification has no body
    """Return the packagers of this plugin. Called once, when the program starts."""


@hookspec
def register_exporters() -> Iterable[Exporter]:  # type: ignore[empty-body]  # a specification has no body
    """Return the forms of this plugin that are made of the whole model. Called once, when the program starts."""


@hookspec
def register_gates() -> Iterable[Gate]:  # type: ignore[empty-body]  # a specification has no body
    """Return the gates of this plugin, which stand before a promotion. Called once, when the program starts.

    A gate reads its settings from `options` of the gates file, under its name, and declares them as `Gate.options`: any
    other is refused. With nothing to say of a model it abstains (`Verdict.abstain`), which is shown.
    """


@hookspec(firstresult=True)
def detect_format(columns: Sequence[str], sample: Sequence[Mapping[str, Any]]) -> str | None:
    """Name the registered format of these rows, or None where they are not this plugin's.

    Called once, where `data.format` is `auto`, after the training rows were read and before any is converted; the
    held-out rows have the same format. `columns` are the names that occur in `sample`, the first rows, at most 100.
    """


@hookspec
def before_train(job: Job, data: Data, model: Model) -> None:
    """Look at everything that is about to be trained; raise `FineTuneError` to stop the run.

    Called when data and model are ready and the mask is proved, before the first step.
    """


@hookspec
def training_callbacks(job: Job) -> Sequence[Any]:  # type: ignore[empty-body]  # a specification has no body
    """Return `transformers.TrainerCallback` objects that are added to the trainer's own.

    Called once, when the trainer is made, before the first step.
    """


@hookspec
def after_evaluate(job: Job, scores: Scores) -> None:
    """See the scores of the base model and of the tuned one. Called once, before anything is packaged."""


@hookspec
def on_run_error(job: Job, error: BaseException) -> None:
    """See the error that ends the run. Called once, before the run is marked FAILED or KILLED."""

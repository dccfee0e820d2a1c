"""Every hook. Its docstring is the contract and says when it is called; the verb in its name gives the rule.

register_   called at start-up; cheap, pure; if it raises, that plugin is left out and listed as broken
detect_     called plugin by plugin until one answers; None means "not mine"; if it raises, the run stops
before_     may veto by raising FineTuneError; the run stops before it costs anything
after_ on_  observe only; an error is logged with the plugin's name and the run continues
training_callbacks   called for every plugin; if it raises, the run stops
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pluggy

from mlflow_ft.records import (
    Adapter,
    Check,
    Command,
    DataFormat,
    Engine,
    Evaluator,
    Exporter,
    Gate,
    GuardSet,
    Launcher,
    Options,
    Packager,
    PlanRule,
    Reward,
    ServingEngine,
    Trainer,
)

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

    `Trainer.scores` names the method's own score, the first that is measured: it is used to compare a tuned model with
    its base after training, and with the champion in a promotion (`metric: auto`).
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
    """Return this plugin's exporters, which make further forms of the whole model. Called once, when the program
    starts."""


@hookspec
def register_gates() -> Iterable[Gate]:  # type: ignore[empty-body]  # a specification has no body
    """Return the gates of this plugin, the conditions for a promotion. Called once, when the program starts.

    A gate reads its settings from `options` of the gates file, under its name, and declares them as `Gate.options`: any
    other is refused. Where it does not apply to a model it abstains (`Verdict.abstain`), which is shown.
    """


@hookspec
def register_launchers() -> Iterable[Launcher]:  # type: ignore[empty-body]  # a specification has no body
    """Return the launchers of this plugin, which start the processes of a run. Called once, when the program starts."""


@hookspec
def register_plan_rules() -> Iterable[PlanRule]:  # type: ignore[empty-body]  # a specification has no body
    """Return the rules that this plugin adds to `mlflow-ft plan`. Called once, when the program starts.

    A rule sees the situation: rows, kind, aim, hardware, model. It advises methods, what trains, strategies or
    settings, and names its source. To overrule a built-in rule, give yours a `priority` above 0. Advice is never taken
    blindly: what the estimate of memory says does not fit is not recommended.
    """


@hookspec
def register_engines() -> Iterable[Engine]:  # type: ignore[empty-body]  # a specification has no body
    """Return the data engines of this plugin, which work on rows on several machines. Called once, when the program
    starts."""


@hookspec
def register_serving_engines() -> Iterable[ServingEngine]:  # type: ignore[empty-body]  # a specification has no body
    """Return the serving engines of this plugin: programs that answer requests to models over HTTP. Called once, when
    the program starts."""


@hookspec
def register_guards() -> Iterable[GuardSet]:  # type: ignore[empty-body]  # a specification has no body
    """Return the guard sets of this plugin, which `evaluation.guards` can name. Called once, when the program starts.

    A name in `evaluation.guards` is a registered guard set, else a data source.
    """


@hookspec
def register_options() -> Iterable[Options]:  # type: ignore[empty-body]  # a specification has no body
    """Return the settings of this plugin, which users set as `plugins.NAME.key`. Called once, when the program starts.

    They are checked like all others: an unknown key or a wrong value is refused before anything is loaded.
    """


@hookspec
def register_commands() -> Iterable[Command]:  # type: ignore[empty-body]  # a specification has no body
    """Return the commands that this plugin adds to `mlflow-ft`. Called once, when `mlflow-ft --help` or a command that
    is not built in asks for them."""


@hookspec(firstresult=True)
def detect_format(columns: Sequence[str], sample: Sequence[Mapping[str, Any]]) -> str | None:
    """Return the name of the registered format of these rows, or None where it is not one of this plugin's.

    Called where `data.format` is `auto`, before any row is converted, and possibly several times with different rows:
    parts of a file, or numbers as text. The held-out rows have the same format. `columns` are the names that occur in
    `sample`, the first rows, at most 100.
    """


@hookspec
def before_train(job: Job, data: Data, model: Model) -> None:
    """Inspect everything before training; raise `FineTuneError` to stop the run.

    Called when data and model are ready and the mask is proved, before the first step.
    """


@hookspec
def training_callbacks(job: Job) -> Sequence[Any]:  # type: ignore[empty-body]  # a specification has no body
    """Return `transformers.TrainerCallback` objects to add to the trainer's own.

    Called once, when the trainer is created, before the first step. A callback with `state_dict()` and
    `load_state_dict(state)` (plain values and tensors) keeps its state in checkpoints.
    """


@hookspec
def after_evaluate(job: Job, scores: Scores) -> None:
    """Observe the scores of the base model and of the tuned one. Called once, before anything is packaged."""


@hookspec
def on_run_error(job: Job, error: BaseException) -> None:
    """Observe the error that ends the run. Called once, before the run is marked FAILED or KILLED."""

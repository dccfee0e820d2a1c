"""Begin a sweep, or resume one: everything that can be checked is checked before the first trial."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_ft import plugins
from mlflow_ft.cli.asked import asked
from mlflow_ft.cli.chain_stages import dated
from mlflow_ft.cli.train import understand
from mlflow_ft.errors import ConfigError, FineTuneError
from mlflow_ft.registry import Registry

if TYPE_CHECKING:
    from mlflow_ft.config import Config
    from mlflow_ft.config.space import Space
    from mlflow_ft.operations.sweeping.plan import Plan
    from mlflow_ft.operations.sweeping.sweep import SweepOutcome
    from mlflow_ft.progress import Progress
    from mlflow_ft.values import Places
    from mlflow_ft.values.launch import StartProcess


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The options of a sweep."""

    sweep: str | None = None
    budget: str | None = None
    workers: int | None = None
    cpus: float | None = None
    gpus: float | None = None
    objective: str | None = None
    direction: str | None = None
    keep_weights: bool = False


def begin(
    words: Sequence[str], options: Asked, progress: Progress, *, start: StartProcess | None = None
) -> SweepOutcome:
    """Check everything, and run the sweep; `words` are METHOD and `--key value` pairs.

    With `run.resume` auto an interrupted sweep with the same settings is continued instead, if there is one.

    Raises:
        FineTuneError: something the user can fix; no run was opened.
    """
    from mlflow_ft.operations import interrupted
    from mlflow_ft.operations.sweeping import plan as plans
    from mlflow_ft.operations.sweeping import sweep
    from mlflow_ft.stages import preflight

    config, loaded = understand(words, progress)
    with ExitStack() as stack:
        with preflight.reporting_to_run():
            plan = planned(config, Registry(loaded), words, options)
            preflight.check(config, plugins=loaded, registry=Registry(loaded), progress=progress)
            places = stack.enter_context(places_of(plan, config, Registry(loaded), start))
        from mlflow_ft import tracking

        tracking.check_server()  # which creates a new local store
        if run_id := interrupted.same_command(config, progress, key=plans.key(config, plan)):
            stack.close()
            return resume(run_id, (), options, progress=progress, start=start)
        _announce(plan, progress)
        return sweep.run(plan, config, loaded, places=places, progress=progress)


@contextmanager
def places_of(plan: Plan, config: Config, registry: Registry, start: StartProcess | None) -> Iterator[Places]:
    """Where the trials run: where the launcher says, or as `start` starts them.

    Raises:
        FineTuneError: the launcher has no place for them.
    """
    from mlflow_ft.values import Places, Trials

    if start is not None:
        yield Places(start=start, shares=[{}] * (plan.workers or 1))
        return
    trials = registry.launchers[config.launch.launcher].trials
    assert trials is not None  # `planned` has refused it
    folder = config.run.output_dir.expanduser().resolve()
    asked = Trials(settings=config.launch, folder=folder, workers=plan.workers, cpus=plan.cpus, gpus=plan.gpus)
    with trials(asked) as places:
        yield places


def planned(config: Config, registry: Registry, words: Sequence[str], options: Asked) -> Plan:
    """What the sweep will do.

    Raises:
        ConfigError: the space, the budget, the objective or the direction is wrong, or a value cannot work.
    """
    from mlflow_ft.config.space import check_fixed
    from mlflow_ft.config.space_file import read_space
    from mlflow_ft.operations.sweeping import objective
    from mlflow_ft.operations.sweeping.budget import read_budget
    from mlflow_ft.operations.sweeping.default_space import default_space, user_settings
    from mlflow_ft.operations.sweeping.plan import Plan, why_unpruned

    budget = read_budget(options.budget)
    check_alone(config, registry)
    if options.sweep:
        space = read_space(Path(options.sweep).expanduser())
        check_fixed(space, user_settings(config))
    else:
        space = default_space(config, registry)
    check_values(space, config, registry)
    has_method = bool(words) and not words[0].startswith("--")
    return Plan(
        method=config.method,
        arguments=tuple(dated(words[1:] if has_method else words, datetime.now().astimezone().date())),
        space=space,
        objective=objective.choose(config, registry, name=options.objective, direction=options.direction),
        budget=budget,
        workers=options.workers,
        seed=config.run.seed,
        rank=config.adapter.r,
        unpruned=why_unpruned(config, space, registry.trainers[config.method].kinds),
        keep_weights=options.keep_weights,
        cpus=options.cpus,
        gpus=options.gpus,
    )


def check_alone(config: Config, registry: Registry) -> None:
    """Refuse several processes for a trial, and a launcher that starts no trials.

    Raises:
        ConfigError: one of them is asked for.
    """
    name = config.launch.launcher
    if registry.launchers[name].trials is None:
        with_trials = " and ".join(record.name for record in registry.launchers if record.trials is not None)
        raise ConfigError(
            f"launch.launcher {name} starts no trials: a trial is trained by one process",
            hint=f"leave it out; --workers runs several trials at once (launchers that start trials: {with_trials})",
        )
    if (config.launch.num_processes or 1) > 1 or config.launch.num_machines > 1:
        raise ConfigError(
            "a trial is trained by one process, but launch.num_processes or launch.num_machines ask for more",
            hint="leave them out; --workers runs several trials at once",
        )


def check_values(space: Space, config: Config, registry: Registry) -> None:
    """Refuse a space with values that the configuration refuses, alone or together, by its bounds and choices.

    Raises:
        ConfigError: a value is refused, with its place in the file.
    """
    from mlflow_ft.config import resolve
    from mlflow_ft.config.space import corners
    from mlflow_ft.stages import start

    start.check_names(config, registry)
    shared = {path: value for path, value in config.flat().items() if path != "method"}
    for corner in corners(space, rank=config.adapter.r):
        settings = resolve(config.method, defaults=shared, command_line=corner, options=registry.option_types)
        try:
            start.check_names(settings, registry)
        except FineTuneError as error:
            values = ", ".join(f"{given.key} {given.written}" for given in corner)
            raise ConfigError(
                f"the space has values that cannot work: {values}: {error.message}", hint=error.hint
            ) from error


def resume(
    run_id: str,
    words: Sequence[str],
    options: Asked = Asked(),
    *,
    progress: Progress,
    accept_changes: bool = False,
    start: StartProcess | None = None,
) -> SweepOutcome:
    """Continue an interrupted sweep with its recorded settings.

    Of `options`, only the budget, the workers and what each trial takes are used.

    Raises:
        FineTuneError: it cannot be resumed.
    """
    from mlflow_ft.operations import recorded_run
    from mlflow_ft.operations.sweeping import sweep
    from mlflow_ft.operations.sweeping.budget import read_budget
    from mlflow_ft.stages import preflight
    from mlflow_ft.tracking import unfinished

    loaded = plugins.load()
    with preflight.reporting_to_run():
        run = unfinished.find_run(run_id)
        plan = sweep.interrupted_plan(run)
        _check_recorded(plan, words)
        plan = replace(
            plan,
            budget=read_budget(options.budget) if options.budget else plan.budget,
            workers=options.workers or plan.workers,
            cpus=plan.cpus if options.cpus is None else options.cpus,
            gpus=plan.gpus if options.gpus is None else options.gpus,
        )
    with recorded_run.working_folder(run), ExitStack() as stack:
        with preflight.reporting_to_run():
            config = asked([plan.method, *plan.arguments], loaded)
            if not accept_changes:
                sweep.check_unchanged(run, config, loaded)
            preflight.check(config, plugins=loaded, registry=Registry(loaded), progress=progress)
            places = stack.enter_context(places_of(plan, config, Registry(loaded), start))
        with unfinished.reopening(run):
            return sweep.run(plan, config, loaded, places=places, progress=progress, accept_changes=accept_changes)


def _check_recorded(plan: Plan, words: Sequence[str]) -> None:
    """Refuse settings for a sweep that has recorded its own; the same method may be named again."""
    from mlflow_ft.config import pairs

    method = [] if not words or words[0].startswith("--") else [words[0]]
    if method and method[0] != plan.method:
        raise ConfigError(
            f"the sweep searches settings of {plan.method}, not of {method[0]}", hint="leave the method out"
        )
    if given := pairs(words[len(method) :]):
        raise ConfigError(f"{given[0].place}: the sweep has recorded its settings", hint="leave it out")


def of_run(run_id: str) -> bool:
    """Whether this is the parent run of a sweep."""
    from mlflow_ft import tracking
    from mlflow_ft.operations.sweeping.plan import PLAN_FILE

    return tracking.read_json(run_id, PLAN_FILE) is not None


def _announce(plan: Plan, progress: Progress) -> None:
    """Say what will be searched."""
    progress.say(f"sweep {plan.method}: {plan.grid or plan.budget}{' trials' * bool(plan.grid)}, {plan.objective}")
    progress.facts({dimension.path: str(dimension) for dimension in plan.space})
    if plan.unpruned:
        progress.say(f"no trial is pruned: {plan.unpruned}")

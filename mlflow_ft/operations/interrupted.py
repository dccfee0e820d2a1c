"""Find a run that ended before its time, and open it again where it stopped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_ft.config import Given
from mlflow_ft.config.schema import Config
from mlflow_ft.errors import ConfigError, ModelError, RefusedError, TrackingError
from mlflow_ft.job import Job
from mlflow_ft.operations import changes, recorded_run
from mlflow_ft.plugins import Plugins
from mlflow_ft.progress import Progress
from mlflow_ft.registry import Registry
from mlflow_ft.stages import done, start, unchanged, worse
from mlflow_ft.values import Resume

if TYPE_CHECKING:
    from mlflow.entities import Run

    from mlflow_ft.tracking import ActiveRun

RESUMED = "mlflow_ft.resumed"
"""The tag of a run that says where it was resumed: after which step or stage, by which machine."""
PLACES = ("data.path", "data.eval_path", "model.name", "rollout.reward_model", "model.init_from")
"""Settings that say where something is: it may have moved, and is recognised by its content."""
MADE = ("output_dir", "run.output_dir")
"""Settings with a path that need not exist yet."""
REFUSED: tuple[changes.Kind, ...] = ("config", "seed", "rewards", "code", "plugin", "library")
"""Kinds of changes that are refused unless accepted; rows and base model are compared when they are read."""


@dataclass(frozen=True, kw_only=True)
class Interrupted:
    """A run that ended before its time: what it recorded, and what is there of it."""

    run: Run
    config: Config
    folder: Path
    moment: datetime
    """The time that the chat template got."""
    trained: bool
    """Whether the training is complete on disk."""
    checkpoint: Path | None
    """Of a training that is not complete: its last sound checkpoint."""
    changed: Sequence[str] = ()
    """What changed since: another machine, accepted changes, or any if the training is complete."""
    accept_changes: bool = False

    @property
    def place(self) -> str:
        """Where it goes on, in words."""
        if self.trained:
            return "after the training"
        return f"after step {Resume(checkpoint=self.checkpoint).step}" if self.checkpoint else "from the start"


def same_command(config: Config, progress: Progress, *, key: str = "") -> str | None:
    """The run id of the latest interrupted run with the same settings, if `run.resume` is auto; else None.

    `key` identifies them, where they are more than the configuration.

    Raises:
        TrackingError: the server does not answer, or a process is working on a run with these settings.
    """
    if config.run.resume != "auto":
        return None
    from mlflow_ft.tracking import unfinished, vanished

    key = key or config.key
    vanished.reap_of(unfinished.CONFIG_KEY, key)
    run_id: str | None = unfinished.latest(key, config.run)
    if run_id is None:
        progress.say("no interrupted run with these settings: a new one begins")
    return run_id


def processes_of(config: Config) -> list[Given]:
    """The settings of `launch` that were given: a command that is started again may have other machines."""
    values = config.flat()
    return [
        Given(key=path, value=values[path], place=origin)
        for path, origin in config.origins.items()
        if path.startswith("launch.")
    ]


def from_here(settings: Sequence[Given]) -> list[Given]:
    """The settings, with paths that exist here as absolute ones: the run works in the folder where it was started."""
    return [
        replace(setting, value=str(Path(setting.value).absolute()), written=None)
        if isinstance(setting.value, str) and (setting.key in MADE or Path(setting.value).expanduser().exists())
        else setting
        for setting in settings
    ]


def find(
    run: Run,
    plugins: Plugins,
    registry: Registry,
    progress: Progress,
    *,
    settings: Sequence[Given] = (),
    accept: bool = False,
    of_sweep: bool = False,
) -> Interrupted:
    """What an interrupted run recorded, its folder, and its last sound checkpoint, here or in the store.

    `settings` replace recorded ones; `accept` allows changes, and `of_sweep` a trial, also one that is finished and
    registered nothing.

    Raises:
        TrackingError: a process is working on it. ConfigError: it is finished, was not made by `train`, or changed.
        RefusedError: its model was refused.
    """
    from mlflow_ft.tracking import Store

    given = recorded_run.settings(Store.connect(), run.info.run_id)
    recorded = recorded_run.resolved(given, registry)
    config = recorded_run.resolved(given, registry, changed=settings)
    _check_open(run, of_sweep=of_sweep)
    folder = _folder(run, config)
    trained = done.result(folder / "train") is not None
    changed, machine = _changed(run, recorded, config, plugins)
    if changed and not (accept or trained):
        raise ConfigError(
            f"not resumed: what decides the training of run {run.info.run_id} has changed since",
            problems=[change.problem for change in changed],
            hint="undo them, or accept them with --accept-changes; the run then records them",
        )
    named = any(path in PLACES for path in config.origins if config.flat().get(path) != recorded.flat().get(path))
    return Interrupted(
        run=run,
        config=config if named else recorded_run.pinned(config, run.data.tags),
        folder=folder,
        moment=recorded_run.moment(run),
        trained=trained,
        checkpoint=None if trained else _checkpoint(run, config, folder, progress.warn),
        changed=[str(change) for change in (*changed, *machine)],
        accept_changes=accept,
    )


def check_trained(earlier: Interrupted) -> None:
    """Raise ModelError if the training is not complete on this machine."""
    if earlier.trained:
        return
    reason = "has no finished training" if earlier.folder.is_dir() else "is not on this machine"
    raise ModelError(
        f"run {earlier.run.info.run_id} cannot be packaged: its folder {earlier.folder} {reason}",
        hint=f"to finish the training first: mlflow-ft resume {earlier.run.info.run_id}",
    )


def _check_open(run: Run, *, of_sweep: bool) -> None:
    from mlflow_ft.tracking import heartbeat, trials, unfinished

    sweep = run.data.tags.get(trials.SWEEP)
    if sweep and not of_sweep:
        raise ConfigError(
            f"run {run.info.run_id} is a trial of the sweep {sweep}, which resumes it",
            hint=f"mlflow-ft resume {sweep}; to register the model of this trial: mlflow-ft package {run.info.run_id}",
        )
    if reason := run.data.tags.get(trials.PRUNED):
        raise ConfigError(f"run {run.info.run_id} was pruned: {reason}", hint="there is nothing left to resume")
    if refused := run.data.tags.get(worse.REFUSED):
        raise RefusedError(
            f"run {run.info.run_id} was refused ({refused}): {run.data.tags.get(worse.TAG, '')}",
            hint="resuming or packaging it again does not change that",
        )
    if original := run.data.tags.get(unfinished.REPRODUCES):
        raise ConfigError(
            f"run {run.info.run_id} reproduces run {original}; it registers nothing, and is not resumed",
            hint=f"start it again: mlflow-ft reproduce {original}",
        )
    names = [f"{version.name} version {version.version}" for version in unfinished.versions_of(run)]
    if run.info.status == "FINISHED" and not (sweep and not names):
        raise ConfigError(
            f"run {run.info.run_id} is FINISHED; it registered {' and '.join(names) or 'nothing'}",
            hint="there is nothing left to resume",
        )
    if run.info.status == "RUNNING" and (worker := heartbeat.working_on(run.data.tags)):
        raise TrackingError(
            f"run {run.info.run_id} is not interrupted: {worker}",
            hint="if that process or machine is gone, mark the run KILLED first: mlflow-ft runs --reap --away 60",
        )


def _changed(
    run: Run, recorded: Config, config: Config, plugins: Plugins
) -> tuple[list[changes.Change], list[changes.Change]]:
    """What changed since: what is refused, and what is another machine, or another number of them."""
    then, now = changes.of_run(run.data.tags, recorded), changes.current(config, plugins)
    listed = [
        change
        for change in changes.differences(then, now, kinds=(*REFUSED, "machine"))
        if change.name not in PLACES and change.then != changes.NOT_RECORDED
    ]
    machine = [change for change in listed if change.kind == "machine" or change.name.startswith("launch.")]
    return [change for change in listed if change not in machine], machine


def _folder(run: Run, config: Config) -> Path:
    """The run's folder: the recorded one if it is on this machine, else a new one in `run.output_dir`."""
    from mlflow_ft.tracking.unfinished import FOLDER

    recorded = run.data.tags.get(FOLDER)
    if recorded and Path(recorded).is_dir():
        return Path(recorded)
    return config.run.output_dir.expanduser().resolve() / str(run.info.run_id)


def _checkpoint(run: Run, config: Config, folder: Path, say: Callable[[str], None]) -> Path | None:
    """The last sound checkpoint: on this machine, or in the store if that has a later one.

    The one with the lowest held-out loss, an earlier one, is fetched too if it may be kept in the end.
    """
    from mlflow_ft import tracking
    from mlflow_ft.engine.checkpoints import folder as checkpoints

    place = folder / "train" / "checkpoints"
    here = checkpoints.latest(place, say)
    step = checkpoints.step_of(here) if here else 0
    later: Path | None = tracking.fetch_checkpoint(run.info.run_id, place, say, after=step)
    last = later or here
    if last and config.training.loads_best:
        _fetch_earlier(run, place, before=checkpoints.step_of(last), say=say)
    return last


def _fetch_earlier(run: Run, place: Path, *, before: int, say: Callable[[str], None]) -> None:
    """Fetch the checkpoint that the store has beside the last one, unless it is here."""
    from mlflow_ft import tracking
    from mlflow_ft.engine.checkpoints import folder as checkpoints

    here = [checkpoints.step_of(path) for path in checkpoints.complete(place)]
    after = max((step for step in here if step < before), default=0)
    tracking.fetch_checkpoint(run.info.run_id, place, say, after=after, before=before)


def reopen(earlier: Interrupted, plugins: Plugins, registry: Registry, run: ActiveRun, progress: Progress) -> Job:
    """Reopen the folder and the journal.

    Raises:
        TrackingError: another process is using the run.
    """
    from mlflow_ft import tracking
    from mlflow_ft.tracking.unfinished import FOLDER

    run.begin("resume")
    job = start.open_job(earlier.config, plugins, registry, run, progress, folder=earlier.folder)
    run.continue_curves()
    tags = {FOLDER: str(earlier.folder), RESUMED: _note(earlier)}
    if earlier.changed:
        tags["mlflow_ft.accepted_changes"] = "; ".join(earlier.changed)
        run.log_config(earlier.config)
        progress.warn(f"changed since the run was started: {'; '.join(earlier.changed)}")
    run.set_tags(tags)
    if earlier.run.info.status == "FAILED" and not tracking.stages_left(earlier.folder):  # packaging again may help
        done.reopen(earlier.folder / "package")
    progress.say(f"run {run.run_id} continues {earlier.place}")
    resume = Resume(
        checkpoint=earlier.checkpoint, accept_changes=earlier.accept_changes, recorded=dict(earlier.run.data.tags)
    )
    job = replace(job, resume=resume)
    _check_rewards(job)
    run.system_metrics()
    return job


def _check_rewards(job: Job) -> None:
    """Raise ConfigError if a reward function or the reward model changed."""
    error, hint = ConfigError, "restore the file, or the model behind the alias"
    functions = start.reward_functions(job.config, job.registry)
    unchanged.check(job, start.REWARDS, functions, what="the reward functions", error=error, hint=hint)
    if job.reward_model is not None:
        model = job.run.read().data.tags[start.REWARD_MODEL]
        unchanged.check(job, start.REWARD_MODEL, model, what="the reward model", error=error, hint=hint)


def _note(earlier: Interrupted) -> str:
    """The run's record of when and where it was resumed, with this time added."""
    import socket

    before = earlier.run.data.tags.get(RESUMED)
    now = f"{earlier.place} on {socket.gethostname()} at {datetime.now().astimezone().isoformat(timespec='seconds')}"
    return f"{before}; {now}" if before else now

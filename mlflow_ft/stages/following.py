"""The work of the processes other than rank 0: the same data, the same model, their share of training and evaluation.

They have no MLflow run and write to no disk but to a folder of their own. Rank 0 sends them the job once its data is
prepared; they prepare it again, from the cache where they share a disk, and refuse if anything differs.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from mlflow_ft import processes
from mlflow_ft.config.launch import LaunchSection
from mlflow_ft.config.schema import Config
from mlflow_ft.errors import DataError, ModelError, StoppedError
from mlflow_ft.job import Job
from mlflow_ft.plugins import Plugins
from mlflow_ft.processes import Place
from mlflow_ft.progress import Progress
from mlflow_ft.registry import Registry
from mlflow_ft.values import BaseModel, Data, Resume, Trained

JOB, TRAIN, JUDGE = "job", "train", "judge"
"""What rank 0 calls the others to."""
LOG = "output.log"
TAG = "mlflow_ft.processes"
"""The tag of a run with its processes, if there are several."""


@dataclass(frozen=True, kw_only=True)
class Shared:
    """A job as the other processes get it."""

    config: Config
    run_id: str
    base: BaseModel
    moment: datetime
    """The time that the chat template gets."""
    digests: Mapping[str, str]
    resume: Resume | None
    reward_model: Path | None


class QuietRun:
    """The run of a process that logs nothing."""

    def __init__(self, run_id: str, *, signals: Any) -> None:
        self.run_id = run_id
        self._signals = signals

    @property
    def stopping(self) -> bool:
        """Whether SIGTERM or SIGINT was received."""
        return self._signals.received is not None

    def deferring_stop(self) -> AbstractContextManager[None]:
        """Hold a signal back until the block is left."""
        deferring: AbstractContextManager[None] = self._signals.deferring()
        return deferring

    def __getattr__(self, name: str) -> Any:
        """Everything else that a run does is left to rank 0."""
        return lambda *_, **__: None


def share(job: Job, data: Data, base: BaseModel) -> None:
    """Send the job to the other processes; with one process it does nothing."""
    from mlflow_ft.engine import ranks
    from mlflow_ft.engine.tokens import clock

    if ranks.size() == 1:
        return
    job.run.set_tags({TAG: f"{ranks.described()}, {job.config.launch.strategy}"})
    shared = Shared(
        config=job.config,
        run_id=job.run.run_id,
        base=base,
        moment=clock.current(),
        digests=_digests(data),
        resume=job.resume,
        reward_model=job.reward_model,
    )
    ranks.call(JOB, shared)


def gather(config: Config) -> None:
    """Wait until the other processes of this job are there; alone, do nothing.

    Raises:
        ConfigError: some did not come in time.
    """
    place = processes.settle()
    if place.size == 1:
        return
    from mlflow_ft.engine import ranks
    from mlflow_ft.engine.launching import strategy

    settings = config.launch
    strategy.apply(settings)
    _outlive_the_others()
    ranks.join(place, join_minutes=settings.join_minutes, timeout_minutes=settings.timeout_minutes)


def _outlive_the_others() -> None:
    """Once another process is lost, ignore the SIGTERM with which torchrun ends this one: it has to report first."""
    import signal
    import threading

    from mlflow_ft.engine import ranks

    def stop(number: int, frame: object) -> None:
        if not ranks.losses:
            raise StoppedError(number)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, stop)


def release() -> None:
    """Let the other processes go; the last thing that rank 0 does."""
    if ranks := sys.modules.get("mlflow_ft.engine.ranks"):
        ranks.leave()


@contextmanager
def naming_lost() -> Iterator[None]:
    """Raise ProcessError instead of an error that another process caused by ending."""
    from mlflow_ft.engine import ranks

    try:
        yield
    except BaseException as error:
        if lost := ranks.lost(error):
            raise lost from error
        raise


def _digests(data: Data) -> dict[str, str]:
    return {"training": data.train.digest, "held-out": data.eval.digest}


# --- in the other processes


@contextmanager
def own_output() -> Iterator[Path]:
    """Write what this process prints to a file of its own, in a temporary folder, which is kept after an error."""
    import shutil

    folder = Path(tempfile.mkdtemp(prefix="mlflow-ft-rank-"))
    with (folder / LOG).open("wb") as file:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def follow(place: Place, plugins: Plugins) -> None:
    """Work for rank 0 until it needs this process no longer.

    Raises:
        ConfigError: the processes did not find each other. DataError, ModelError: this process reads other rows, or
        another base model, than rank 0.
    """
    from mlflow_ft.engine import ranks
    from mlflow_ft.tracking.signals import StopSignals

    signals, settings = StopSignals(), LaunchSection()
    error: BaseException | None = None
    with own_output() as folder, signals.installed():
        ranks.join(
            place,
            join_minutes=float(os.environ.get("MLFLOW_FT_JOIN_MINUTES", settings.join_minutes)),
            timeout_minutes=settings.timeout_minutes,
            log_file=str(folder / LOG),
        )
        follower = Follower(plugins, folder, signals)
        try:
            for task, content in ranks.calls():
                follower.do(task, content)
        except BaseException as raised:
            error = raised
            raise
        finally:
            ranks.report_end(error)
        ranks.leave()


@dataclass(frozen=True, kw_only=True)
class Work:
    """The job that rank 0 sent, as it is in this process."""

    job: Job
    data: Data
    base: BaseModel
    moment: datetime


class Follower:
    """Does what rank 0 calls for."""

    def __init__(self, plugins: Plugins, folder: Path, signals: Any) -> None:
        self._plugins, self._registry = plugins, Registry(plugins)
        self._folder, self._signals = folder, signals
        self._work: Work | None = None

    def do(self, task: str, content: Any) -> None:
        """Do one task; the first is a job."""
        from mlflow_ft.engine.tokens import clock

        if task == JOB:
            with clock.held(content.moment):
                self._work = self._prepared(content)
            return
        if self._work is None:
            raise RuntimeError(f"rank 0 called for {task} before it sent a job")
        with clock.held(self._work.moment):
            self._train(self._work) if task == TRAIN else self._judge(self._work, content)

    def _prepared(self, shared: Shared) -> Work:
        """The same base model, and the same rows.

        Raises:
            ModelError, DataError: they are others than those of rank 0.
        """
        from mlflow_ft.engine.launching import strategy
        from mlflow_ft.engine.tokens import tokenizers
        from mlflow_ft.preparing import dataset
        from mlflow_ft.stages import init_from

        progress, config = Progress(quiet=True), shared.config
        strategy.apply(config.launch)
        run: Any = QuietRun(shared.run_id, signals=self._signals)
        job = Job(
            config=config,
            plugins=self._plugins,
            registry=self._registry,
            run=run,
            folder=self._folder / shared.run_id,
            progress=progress,
            reward_model=shared.reward_model,
            resume=shared.resume,
        )
        if job.resume and job.resume.checkpoint and not job.resume.checkpoint.is_dir():
            raise ModelError(
                f"the checkpoint {job.resume.checkpoint} is not on this machine",
                hint="put run.output_dir on a disk that all machines share, to resume on several",
            )
        base = replace(init_from.find(config, progress), task=job.task)
        if base.revision != shared.base.revision:
            raise ModelError(
                f"the base model {base.name} differs: {base.revision} here, {shared.base.revision} on rank 0",
                hint="give all machines the same files",
            )
        checked = dataset.prepare(
            config, tokenizers.load(config, base), plugins=self._plugins, registry=self._registry, progress=progress
        )
        for side, digest in _digests(checked.data).items():
            if digest != shared.digests[side]:
                raise DataError(
                    f"the {side} rows differ: {digest} here, {shared.digests[side]} on rank 0",
                    hint="give all machines the same files",
                )
        return Work(job=job, data=checked.data, base=base, moment=shared.moment)

    def _train(self, work: Work) -> None:
        """Train with the others; rank 0 keeps the result."""
        from mlflow_ft.engine.training import trainable

        model = trainable.prepare(work.job, work.data, work.base)
        with suppress(StoppedError):  # rank 0 decides what comes next
            self._registry.trainers[work.job.config.method].train(work.job, work.data, model)

    def _judge(self, work: Work, trained: Trained) -> None:
        """Compute this process's share of losses and answers of both models."""
        from mlflow_ft.engine.judging import judge

        judge.follow(work.job, work.data, trained)

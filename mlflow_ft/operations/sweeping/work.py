"""Starts trials while there is budget, collects how they end, and keeps the weights of the best one."""

from __future__ import annotations

import math
import os
import shutil
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_ft.errors import FineTuneError, RefusedError, StoppedError, UndeliveredError
from mlflow_ft.operations.sweeping import report
from mlflow_ft.operations.sweeping import study as studies
from mlflow_ft.operations.sweeping.study import Drawn, Ended, Study
from mlflow_ft.progress import Progress
from mlflow_ft.values import Places, Process

if TYPE_CHECKING:
    from mlflow.entities import Run

    from mlflow_ft.tracking import ActiveRun

POLL_SECONDS = 0.2
STOP = signal.SIGTERM
"""Ends a trial after its current step, with a checkpoint."""
GIVE_UP = 3
"""If so many trials fail one after the other, the sweep ends: the cause is not in their values."""
KINDS: Mapping[int, type[FineTuneError]] = {kind.exit_code: kind for kind in (RefusedError, UndeliveredError)}


@dataclass(frozen=True, kw_only=True)
class Running:
    """A trial whose process runs."""

    drawn: Drawn
    run_id: str
    process: Process
    device: Mapping[str, str]
    began: float


class Work:
    """The trials of one sweep, by this process."""

    def __init__(
        self,
        active: ActiveRun,
        study: Study,
        file: Path,
        progress: Progress,
        *,
        places: Places,
        environ: Mapping[str, str],
        accept_changes: bool,
    ) -> None:
        self._active, self._study, self._file, self._progress = active, study, file, progress
        self._start_process, self._environ = places.start, environ
        self._changes = ["--accept-changes"] if accept_changes else []
        self._plan = study.plan
        self._free = [dict(share) for share in places.shares]
        self._several = len(self._free) > 1
        self._running: list[Running] = []
        self._open: list[Drawn] = []
        self._runs: dict[int, Run] = {}
        self._began, self._before = time.monotonic(), study.seconds
        self._stopped, self._failures = False, 0

    # --- trials

    def run_trials(self) -> None:
        """Run trials until the budget is spent or a signal arrives; those that were interrupted come first.

        Raises:
            FineTuneError: the first trials all failed. UndeliveredError: the tracking server is away.
        """
        self._take_up()
        try:
            while True:
                while self._free and not self._active.stopping and (drawn := self._next()):
                    self._begin(drawn)
                if not self._running:
                    return
                time.sleep(POLL_SECONDS)
                if self._active.stopping:
                    self._stop()
                for running in [running for running in self._running if running.process.poll() is not None]:
                    self._collect(running)
        finally:
            self._stop()
            while any(running.process.poll() is None for running in self._running):
                time.sleep(POLL_SECONDS)
            self._study.spent(self._seconds)

    @property
    def _seconds(self) -> float:
        return self._before + time.monotonic() - self._began

    def _take_up(self) -> None:
        """Find the trials that an earlier attempt began; those that ended meanwhile are not repeated."""
        from mlflow_ft.tracking import trials

        opened = self._study.open_trials()
        self._runs = trials.of_sweep(self._active.run_id) if self._study.trials else {}
        for drawn in opened:
            run = self._runs.get(drawn.number)
            ended = None if run is None else self._judged(trials.settled(run))
            if ended is None:
                self._open.append(drawn)
            else:
                self._tell(drawn, str(run.info.run_id) if run else "", *ended)
        finished = len(self._study.trials) - len(self._open)
        if finished or self._open:
            self._progress.say(f"the sweep continues: {finished} trials have ended, {len(self._open)} were interrupted")

    def _next(self) -> Drawn | None:
        if self._open:
            return self._open.pop(0)
        if not self._plan.budget.is_left(trials=len(self._study.trials), seconds=self._seconds):
            return None
        return self._study.draw()

    def _begin(self, drawn: Drawn) -> None:
        from mlflow_ft.tracking import trials

        before = self._runs.get(drawn.number)
        tags = trials.tags_of(self._active.run_id, drawn.number)
        run_id = str(before.info.run_id) if before else self._active.nested_run(drawn.name, tags=tags)
        self._study.note(drawn.number, studies.RUN, run_id)
        device = self._free.pop(0)
        arguments = ["trial", str(self._file), self._active.run_id, str(drawn.number), *self._changes]
        quiet = ["--quiet"] if self._progress.quiet or self._several else []
        values = ", ".join(f"{name} {report.shown(value)}" for name, value in drawn.values.items())
        self._progress.say(f"{'continues' if before else 'begins'} {drawn.name}: {values}")
        process = self._start(run_id, [*arguments, *quiet], device)
        began = time.monotonic()
        self._running.append(Running(drawn=drawn, run_id=run_id, process=process, device=device, began=began))

    def _start(self, run_id: str, arguments: Sequence[str], device: Mapping[str, str]) -> Process:
        from mlflow_ft.tracking import heartbeat

        variables = {**self._environ, "MLFLOW_RUN_ID": run_id, "MLFLOW_TRACKING_URI": self._active.tracking_uri}
        variables |= {heartbeat.CHAIN: str(os.getpid()), **device}
        return self._start_process(arguments, variables)

    def _stop(self) -> None:
        """Ask the trials to stop after their step, once; they continue when the sweep does."""
        if not self._stopped:
            for running in self._running:
                running.process.send_signal(STOP)
        self._stopped = self._stopped or bool(self._running)

    # --- how they end

    def _collect(self, running: Running) -> None:
        from mlflow_ft.tracking import trials

        self._running.remove(running)
        self._free.append(dict(running.device))
        code = running.process.poll()
        if code == UndeliveredError.exit_code:
            folder = self._active.folder.parent / running.run_id if self._active.folder else running.run_id
            raise UndeliveredError(
                f"{running.drawn.name} is complete on disk, but the tracking server is away",
                hint=f"when it is back: mlflow-ft sync {folder}, then mlflow-ft resume {self._active.run_id}",
            )
        run = trials.closed(running.run_id, f"its process ended with exit code {code}")
        ended = self._judged(run)
        if ended is None and self._active.stopping:
            return
        self._study.note(running.drawn.number, studies.SECONDS, round(time.monotonic() - running.began, 1))
        self._tell(running.drawn, running.run_id, *(ended or ("failed", None, trials.error(run))))
        self._failures = 0 if ended and ended[0] != "failed" else self._failures + 1
        if self._failures >= GIVE_UP:
            error = KINDS.get(code or 0, FineTuneError)
            raise error(f"{GIVE_UP} trials failed one after the other; the last one: {trials.error(run)}")

    def _judged(self, run: Run) -> tuple[Ended, float | None, str] | None:
        """How a trial ended, its score, and why it has none; None if it was interrupted."""
        from mlflow_ft.tracking import trials

        if reason := run.data.tags.get(trials.PRUNED):
            return "pruned", None, reason
        if run.info.status == "FAILED":
            return "failed", None, trials.error(run)
        if run.info.status != "FINISHED":
            return None
        objective = self._plan.objective
        keys = {name: trials.score_key(name) for name in objective.names}
        scores = trials.scores(run)
        scored = objective.value({name: scores[key] for name, key in keys.items() if key in scores})
        if scored is None or not math.isfinite(scored[1]):
            return "failed", None, f"it has no score {' or '.join(objective.names)}"
        return "complete", scored[1], ""

    def _tell(self, drawn: Drawn, run_id: str, ended: Ended, value: float | None, reason: str) -> None:
        """Record how a trial ended, in the study and in the curves of the sweep."""
        before = self._study.best
        if reason:
            self._study.note(drawn.number, studies.ERROR, reason)
        self._study.note(drawn.number, studies.RUN, run_id)
        self._study.tell(drawn.number, ended, value)
        best = self._study.best
        if value is not None and best is not None:
            self._active.metrics({"sweep/score": value, "sweep/best": float(best.value or 0)}, step=drawn.number)
        shown = f" {value:.4g}" if value is not None else ""
        self._progress.say(f"{drawn.name} {ended}{shown}{f': {reason}' if reason else ''}")
        if not self._plan.keep_weights:
            beaten = before if best is not None and best.number == drawn.number else self._study.trial(drawn.number)
            if beaten is not None:
                self._remove_weights(beaten.user_attrs[studies.RUN])

    def _remove_weights(self, run_id: str) -> None:
        """Remove the weights and checkpoints of a trial that is not the best; its record stays."""
        from mlflow_ft.tracking import Store, trials, unfinished

        run = Store.connect().run(run_id)
        if folder := run.data.tags.get(unfinished.FOLDER):
            shutil.rmtree(Path(folder) / "train", ignore_errors=True)
        trials.remove_checkpoints(run)

    # --- the best

    def register(self, run_id: str) -> list[Mapping[str, Any]]:
        """Package and register the model of the best trial, unless that is done, and return its versions.

        Raises:
            RefusedError: a form of the model differs from the trained one, or the model is worse than its base.
        """
        from mlflow_ft.tracking import unfinished

        if not (versions := self._versions(run_id)):
            self._progress.say(f"registering the best trial, run {run_id}")
            quiet = ["--quiet"] if self._progress.quiet else []
            process = self._start(run_id, ["package", run_id, "--json", *quiet], self._free[0])
            with self._active.deferring_stop():
                while process.poll() is None:
                    time.sleep(POLL_SECONDS)
                    if self._active.stopping and not self._stopped:
                        process.send_signal(STOP)
                        self._stopped = True
            self._check_registered(process.poll() or 0, unfinished.find_run(run_id))
            versions = self._versions(run_id)
        return versions

    def _versions(self, run_id: str) -> list[Mapping[str, Any]]:
        from mlflow_ft.tracking import unfinished

        run = unfinished.find_run(run_id)
        return list(unfinished.outcome(run)["versions"]) if run.info.status == "FINISHED" else []

    def _check_registered(self, code: int, run: Run) -> None:
        from mlflow_ft.tracking import trials

        if code in (130, 143):
            raise StoppedError(code - 128)
        if code:
            kind = KINDS.get(code, FineTuneError)
            raise kind(f"the best trial, run {run.info.run_id}, was not registered: {trials.error(run)}")

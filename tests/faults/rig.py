"""Start the command as a user does, interrupt it at a chosen moment, and compare what it leaves with a whole run."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run

from mlflow_ft.hashes import file_hash
from mlflow_ft.testing import make_rows, write_jsonl

SETTINGS = {
    "max_steps": 24,
    "save_steps": 5,
    "eval_steps": 8,
    "logging_steps": 2,
    "per_device_train_batch_size": 4,
    "max_new_tokens": 8,
    "evaluation.max_rows": 4,
    "adapter.r": 4,
    "adapter.lora_dropout": 0.1,
    "package.round_trip": "false",
    "on_worse": "warn",
}
TIMED = ("per_second", "tokens_seen", "step_time")


@dataclass(frozen=True, kw_only=True)
class Moment:
    """When to interrupt a command: some time after it has printed a number of lines."""

    lines: int
    seconds: float
    stage: str
    """The last line that a whole run had printed then."""


class Rig:
    """A store, a model and rows in a folder; with a server's URI, its runs are in an experiment of the server."""

    def __init__(self, folder: Path, model: Path, *, server: str = "", experiment: str = "Default") -> None:
        self.folder, self.model, self.experiment = folder, model, experiment
        self.rows = write_jsonl(folder / "rows.jsonl", make_rows(40))
        self.uri = server or f"sqlite:///{folder / 'mlflow.db'}"
        self.client = MlflowClient(self.uri, registry_uri=self.uri)

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "mlflow_ft", *words]

    def training(self, **settings: Any) -> list[str]:
        given = {"model": self.model, "data": self.rows, "experiment": self.experiment, **SETTINGS, **settings}
        return self.command("train", "lora", *(f"--{key}={value}" for key, value in given.items()))

    def start(self, command: list[str], **environ: str) -> Started:
        """Start a command in the rig's folder."""
        variables = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_RUN")}
        variables |= {"MLFLOW_TRACKING_URI": self.uri, "PYTHONPATH": str(Path(__file__).parents[2]), **environ}
        return Started(command, self.folder, variables)

    def finish(self, command: list[str]) -> Started:
        """Run a command to its end, which must be a success."""
        started = self.start(command)
        assert started.wait() == 0, started.text
        return started

    @cached_property
    def whole(self) -> Whole:
        """A run that nothing interrupted."""
        started = self.finish(self.training())
        return Whole(run=self.latest(), facts=self.facts(self.latest()), timeline=started.timeline)

    def moments(self, number: int, *, seed: int) -> list[Moment]:
        """Random moments in all stages of a run: after a random line of its output, before the next one."""
        draw, timeline, moments = random.Random(seed), self.whole.timeline, []
        for _ in range(number):
            lines = draw.randrange(1, len(timeline))
            gap = timeline[lines][0] - timeline[lines - 1][0]
            moments.append(Moment(lines=lines, seconds=draw.random() * gap, stage=timeline[lines - 1][1]))
        return moments

    def latest(self) -> Run:
        return self.runs()[0]

    def runs(self) -> list[Run]:
        """Every run, the latest first."""
        experiment = self.client.get_experiment_by_name(self.experiment)
        places = [experiment.experiment_id] if experiment else []
        return list(self.client.search_runs(places, order_by=["attributes.start_time DESC"])) if places else []

    def facts(self, run: Run) -> dict[str, Any]:
        """What must be the same in a run that was interrupted: weights, curves, models, versions."""
        run_id = run.info.run_id
        (weights,) = Path(run.data.tags["mlflow.mlflow_ft.folder"]).glob("train/adapter/*.safetensors")
        keys = [key for key in run.data.metrics if key.startswith(("train/", "eval/loss"))]
        points = {key: self.client.get_metric_history(run_id, key) for key in keys if not key.endswith(TIMED)}
        curves = {key: sorted((point.step, point.value) for point in points[key]) for key in points}
        models = self.client.search_logged_models([run.info.experiment_id], filter_string=f"source_run_id='{run_id}'")
        versions = self.client.search_model_versions(f"run_id='{run_id}'")
        return {
            "status": run.info.status,
            "weights": file_hash(weights),
            "curves": curves,
            "doubled": [key for key, curve in curves.items() if max(Counter(step for step, _ in curve).values()) > 1],
            "models": sorted((model.name, str(model.status)) for model in models),
            "versions": sorted(version.name for version in versions),
            "error": run.data.tags.get("mlflow_ft.error", ""),
        }

    def comparisons(self, run: Run) -> list[dict[str, Any]]:
        """What the resumed attempts compared before their first steps."""
        found = self.client.list_artifacts(run.info.run_id, "resume")
        texts = [Path(self.client.download_artifacts(run.info.run_id, file.path)).read_text() for file in found]
        return [json.loads(text) for text in texts]


@dataclass(frozen=True, kw_only=True)
class Whole:
    """A run that nothing interrupted: what it left, and when it printed what."""

    run: Run
    facts: dict[str, Any]
    timeline: list[tuple[float, str]]


class Started:
    """A command that runs, with everything it prints and when."""

    def __init__(self, command: list[str], folder: Path, environ: dict[str, str]) -> None:
        self.timeline: list[tuple[float, str]] = []
        self._changed = threading.Condition()
        self.process = subprocess.Popen(
            command, cwd=folder, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def text(self) -> str:
        return "\n".join(line for _, line in self.timeline)

    def _read(self) -> None:
        assert self.process.stdout
        with self.process.stdout as output:
            for line in output:
                with self._changed:
                    self.timeline.append((time.monotonic(), line.rstrip()))
                    self._changed.notify_all()

    def until(self, ready: Any) -> None:
        """Wait until the lines so far satisfy a condition, or the command ends."""
        with self._changed:
            while not ready(self.timeline) and self.process.poll() is None:
                self._changed.wait(0.2)

    def interrupt(self, moment: Moment, number: int = signal.SIGKILL) -> int:
        """Send a signal at a moment, and return the exit code."""
        self.until(lambda timeline: len(timeline) >= moment.lines)
        time.sleep(moment.seconds)
        self.process.send_signal(number)
        return self.wait()

    def reader_ends(self) -> None:
        """Wait until nothing can print any more: the children of the command have ended too."""
        self._reader.join(300)

    def wait(self) -> int:
        code = self.process.wait(300)
        self._reader.join(3)
        return code

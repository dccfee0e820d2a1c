"""Answers to a few held-out prompts, the same at every evaluation, as tables of the run: what no curve shows."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mlflow_ft.engine.aside import aside
from mlflow_ft.engine.judging import judge
from mlflow_ft.engine.rewards import reward_judges
from mlflow_ft.engine.rewards.reward_judges import LoadedReward
from mlflow_ft.errors import TrackingError
from mlflow_ft.rows import Example
from mlflow_ft.values import Answer, Data, Job

FIRST = 1000
"""Held-out rows that are looked at for prompts."""
LONGEST = 64
"""Tokens of an answer, at most: a sample shows how the model speaks, and must cost little beside a training step."""
Row = Mapping[str, Any]
log = logging.getLogger(__name__)


def prompts(job: Job, data: Data) -> list[Example]:
    """The first `evaluation.samples` held-out rows that ask for different things; none for a model that scores."""
    if job.task == "score":
        return []
    found: dict[str, Example] = {}
    for example in itertools.islice(filter(judge.answerable, data.eval.examples), FIRST):
        if len(found) == job.config.evaluation.samples:
            break
        found.setdefault(repr((example.prompt, example.tools)), example)
    return list(found.values())


class SamplesCallback(TrainerCallback):
    """Lets the model answer, greedily, at every evaluation, and logs the answers as a table `samples/step_N.json`.

    `judges` add a column each with their reward.
    """

    def __init__(self, job: Job, data: Data, stack: ExitStack, *, judges: Sequence[LoadedReward] = ()) -> None:
        self._job = job
        self._data = data
        self._judges = judges
        self._prompts = prompts(job, data)
        self._tables = Tables(job)
        stack.callback(self._tables.close)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **_: Any,
    ) -> None:
        if not self._prompts or not state.is_world_process_zero or model is None:
            return
        settings = self._job.config.evaluation
        with aside(model):
            answers = judge.answers(
                model,
                self._data,
                self._prompts,
                max_new_tokens=min(settings.max_new_tokens, LONGEST),
                batch_size=settings.per_device_eval_batch_size,
            )
            judged = reward_judges.of_answers(self._judges, answers)
        self._tables.put(table(state.global_step, answers, judged), f"samples/step_{state.global_step:06}.json")


def table(step: int, answers: Sequence[Answer], judged: Mapping[str, Sequence[float | None]]) -> list[Row]:
    """A row for each answer: the step, what was asked and expected, what was said, and what every reward says of it."""
    return [
        {
            "step": step,
            "prompt": one.asked,
            "expected": one.expected,
            "answer": one.text,
            "finished": one.finished,
        }
        | {f"reward/{name}": values[place] for name, values in judged.items()}
        for place, one in enumerate(answers)
    ]


class Tables:
    """Logs tables beside the training, which never waits for the server; what it refused is tried again with the next.

    At the end it is waited for; a table that cannot be delivered then is told, and no run fails for it.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._pending: dict[str, Sequence[Row]] = {}
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="mlflow-ft-samples")
        self._sending: Future[None] | None = None

    def put(self, rows: Sequence[Row], path: str) -> None:
        """Log the rows as the table `path`, soon."""
        with self._lock:
            self._pending[path] = rows
        if self._sending is None or self._sending.done():
            self._sending = self._thread.submit(self._send)

    def close(self) -> None:
        """Wait until all is delivered; a run that was told to stop tries no further."""
        if self._sending is not None:
            self._sending.result()
        if not self._job.run.stopping:
            self._send()
        self._thread.shutdown()
        if self._pending:
            log.warning("not logged, because the server was unreachable: %s", ", ".join(self._pending))

    def _send(self) -> None:
        while self._pending:
            with self._lock:
                path, rows = next(iter(self._pending.items()))
            try:
                self._job.run.table(rows, path)
            except TrackingError as error:
                log.warning("%s", error.message)
                return
            with self._lock:
                del self._pending[path]

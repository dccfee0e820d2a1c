"""Answers to a few held-out prompts, the same each time, logged as tables of the run."""

from __future__ import annotations

import itertools
import logging
import math
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
"""Held-out rows that are searched for prompts."""
SOON = 0.1
"""The share of the steps after which there are answers in any case, to see early that a run is of no use."""
LONGEST = 64
"""Most tokens of an answer: a sample shows how the model answers, and must be cheap compared with a training step."""
Row = Mapping[str, Any]
log = logging.getLogger(__name__)


def prompts(job: Job, data: Data) -> list[Example]:
    """The first `evaluation.samples` held-out rows with different prompts; none for a reward model."""
    if job.task == "score":
        return []
    prompts: dict[str, Example] = {}
    for example in itertools.islice(filter(judge.answerable, data.eval.examples), FIRST):
        if len(prompts) == job.config.evaluation.samples:
            break
        prompts.setdefault(repr((example.prompt, example.tools)), example)
    return list(prompts.values())


class SamplesCallback(TrainerCallback):
    """Generates greedy answers at every evaluation, and logs them as a table `samples/step_N.json`.

    If there is no evaluation until then, also after a tenth of the steps. Each of the `judges` adds a column with its
    reward.
    """

    def __init__(self, job: Job, data: Data, stack: ExitStack, *, judges: Sequence[LoadedReward] = ()) -> None:
        self._job = job
        self._data = data
        self._judges = judges
        self._prompts = prompts(job, data)
        self._tables = Tables(job)
        stack.callback(self._tables.close)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        soon = math.ceil(SOON * state.max_steps)
        if state.global_step == soon < (state.eval_steps or soon + 1) and not self._job.run.stopping:
            self._answer(state, model)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        self._answer(state, model)

    def _answer(self, state: TrainerState, model: Any) -> None:
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
    """A row for each answer: the step, the prompt, the expected answer, the answer, and its rewards."""
    return [
        {
            "step": step,
            "prompt": answer.asked,
            "expected": answer.expected,
            "answer": answer.text,
            "finished": answer.finished,
        }
        | {f"reward/{name}": values[place] for name, values in judged.items()}
        for place, answer in enumerate(answers)
    ]


class Tables:
    """Logs tables in a thread, so that training never waits for the server; failed ones are retried with the next.

    `close` waits for all of them; a table that cannot be logged then gives a warning, and the run continues.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._pending: dict[str, Sequence[Row]] = {}
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="mlflow-ft-samples")
        self._sending: Future[None] | None = None

    def put(self, rows: Sequence[Row], path: str) -> None:
        """Log the rows as the table `path` in the background."""
        with self._lock:
            self._pending[path] = rows
        if self._sending is None or self._sending.done():
            self._sending = self._thread.submit(self._send)

    def close(self) -> None:
        """Wait until all tables are logged; a run that is stopping does not retry."""
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

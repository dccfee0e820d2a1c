"""Runs the tasks on a model that is in memory."""

from __future__ import annotations

import logging
import os
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lm_eval.evaluator import evaluate as run_tasks
from lm_eval.models.huggingface import HFLM

from mlflow_ft import Score, Subject
from mlflow_ft.engine import generators
from mlflow_ft.engine.models import loading
from mlflow_ft_lm_eval.engine import results, tasks
from mlflow_ft_lm_eval.options import LmEvalOptions


def evaluate(subject: Subject, options: LmEvalOptions) -> Sequence[Score]:
    """The score of every task, metric and filter; results, questions and answers are logged under `eval/lm_eval/`.

    Raises:
        ConfigError: a task cannot be loaded.
    """
    found = measure(subject, options)
    asked = results.asked(options)
    scores = results.scores(found, asked)
    if subject.run is not None:
        results.log(subject.run, subject.name, found, scores, samples=options.samples)
    return scores


def measure(subject: Subject, options: LmEvalOptions) -> Mapping[str, Any]:
    """What the harness returns, with every sample. Neither the random generators nor the model are left changed."""
    states = generators.collect()
    try:
        return _measured(subject, options)
    finally:
        generators.restore(states)


def _measured(subject: Subject, options: LmEvalOptions) -> Mapping[str, Any]:
    loaded = tasks.load(tasks.wanted(options))
    seed = subject.config.run.seed if options.seed is None else options.seed
    for task in loaded["tasks"].values():
        task.set_fewshot_seed(seed=seed)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    subject.progress.say(f"benchmarks of the {subject.name} model: {', '.join(loaded['tasks'])}")
    with _quieter(quiet=subject.progress.quiet or not sys.stderr.isatty()), loading.quiet_peft():
        found: Mapping[str, Any] = run_tasks(
            wrapped(subject, options),
            loaded,
            limit=options.limit,
            bootstrap_iters=0,  # it would fork this process; the standard errors come from the samples
            system_instruction=options.system_instruction,
            apply_chat_template=options.apply_chat_template,
            fewshot_as_multiturn=options.fewshot_as_multiturn,
        )
    return found


def wrapped(subject: Subject, options: LmEvalOptions) -> HFLM:
    """The model in memory, as the harness sees one."""
    model = subject.model
    on_gpu = model.device.type == "cuda"
    size: str | int = options.batch_size
    if size == "auto" and not on_gpu:  # the harness tries batches of 64 as long as the model can read
        size = subject.config.evaluation.per_device_eval_batch_size
    with _tied_as_it_is(model):
        return HFLM(pretrained=model, tokenizer=subject.data.tokenizer, backend="causal", batch_size=size)


@contextmanager
def _tied_as_it_is(model: Any) -> Iterator[None]:
    """HFLM ties the weights again, which would undo the embeddings that training has untied."""
    model.tie_weights = lambda *_, **__: None
    try:
        yield
    finally:
        del model.tie_weights


@contextmanager
def _quieter(*, quiet: bool) -> Iterator[None]:
    """What the harness prints goes to stderr, or nowhere; of its log only errors are kept."""
    log = logging.getLogger("lm_eval")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with Path(os.devnull).open("w") as nowhere:
            to = nowhere if quiet else sys.stderr
            with redirect_stdout(to), redirect_stderr(to):
                yield
    finally:
        log.setLevel(level)

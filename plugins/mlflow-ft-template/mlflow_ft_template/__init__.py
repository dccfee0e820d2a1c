"""A plugin to copy: flash cards as rows, a check of them, an evaluator of answer lengths, a reward
for short ones, a method that reuses SFT, and a gate that keeps long-winded models from promotion.

    {"front": "Which planet is red?", "back": "Mars", "deck": "planets"}

Everything is registered by returning records; nothing heavy is imported before it is needed.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mlflow_ft import (
    Check,
    Checked,
    DataError,
    DataFormat,
    Evaluator,
    Example,
    Gate,
    Reward,
    Score,
    Trainer,
    Verdict,
    hookimpl,
)

if TYPE_CHECKING:
    from mlflow_ft.candidacy import Candidacy
    from mlflow_ft.config.gates import Gates
    from mlflow_ft.values import Data, Job, Model, Scores, Subject, Trained

FEWEST_ROWS = 4
log = logging.getLogger(__name__)


def from_card(values: Mapping[str, Any]) -> Example:
    """One row to one conversation; a ValueError says in one sentence what is wrong with the row."""
    front, back = values.get("front"), values.get("back")
    if not isinstance(front, str) or not front.strip():
        raise ValueError("`front` is missing or empty")
    if not isinstance(back, str) or not back.strip():
        raise ValueError("`back` is missing or empty")
    return Example(messages=({"role": "user", "content": front}, {"role": "assistant", "content": back}))


def parrots(row: Checked) -> str | None:
    """What is wrong with a row, in a few words, or None."""
    return "the answer is the question again" if row.prompt.strip() == row.responses[-1].strip() else None


def brevity(subject: Subject) -> Sequence[Score]:
    """How long an answer is beside the expected one: 1 is as long, 2 twice as long (in characters)."""
    return [Score.mean("length_ratio", [len(one.text) / len(one.expected) for one in subject.answers])]


def terse(completions: Sequence[Sequence[Mapping[str, Any]]], **_: Any) -> list[float]:
    """A reward for every sampled answer, whatever was asked."""
    return [1 / max(1, len(turns[-1]["content"].split())) for turns in completions]


def brief(about: Candidacy, gates: Gates) -> Sequence[Verdict]:
    """The gates file sets `options: {brief: {most: 1.5}}`; where it does not, the gate abstains."""
    most = gates.options.get("brief", {}).get("most")
    if most is None:
        return [Verdict.abstain("options.brief.most is not set")]
    ratio = about.candidate.score("length_ratio")
    found = "no such score" if ratio is None else f"{ratio:.2f} times as long"
    return [Verdict(passed=ratio is not None and ratio <= most, found=found, wanted=f"at most {most:g}")]


def train_gently(job: Job, data: Data, model: Model) -> Trained:
    """SFT as it is; what makes the method is its defaults."""
    from mlflow_ft.engine.training import sft

    return sft.train(job, data, model)


@hookimpl
def register_formats() -> list[DataFormat]:
    return [
        DataFormat(
            name="flash-card",
            summary="front and back of a card",
            columns=("front", "back"),
            convert=from_card,
        )
    ]


@hookimpl
def detect_format(columns: Sequence[str], sample: Sequence[Mapping[str, Any]]) -> str | None:
    return "flash-card" if {"front", "back"} <= set(columns) else None


@hookimpl
def register_checks() -> list[Check]:
    return [
        Check(
            name="parrot",
            summary="answers that repeat the question",
            severity="warn",
            inspect=parrots,
            kinds=("conversation",),
            remedy="write an answer, or leave the row out",
        )
    ]


@hookimpl
def register_evaluators() -> list[Evaluator]:
    return [
        Evaluator(
            name="brevity",
            summary="length of the answers beside the expected ones",
            evaluate=brevity,
            applies=lambda data: data.format == "flash-card",
        )
    ]


@hookimpl
def register_trainers() -> list[Trainer]:
    return [
        Trainer(
            name="gentle-lora",
            summary="LoRA of a low rank at a low learning rate, for small data",
            train=train_gently,
            defaults={"adapter.kind": "lora", "adapter.r": 4, "training.learning_rate": 1e-4},
            scores=("loss",),
        )
    ]


@hookimpl
def register_rewards() -> list[Reward]:
    return [Reward(name="terse", summary="shorter answers are better: 1 at one word, towards 0", score=terse)]


@hookimpl
def register_gates() -> list[Gate]:
    return [
        Gate(name="brief", summary="answers are not much longer than the expected ones", judge=brief, options=("most",))
    ]


@hookimpl
def before_train(job: Job, data: Data, model: Model) -> None:
    """A veto: nothing is spent on a job that cannot work."""
    if job.config.method == "gentle-lora" and len(data.train.examples) < FEWEST_ROWS:
        raise DataError(f"gentle-lora wants at least {FEWEST_ROWS} rows, and there are {len(data.train.examples)}")


@hookimpl
def training_callbacks(job: Job) -> list[Any]:
    """Callbacks of transformers, beside the trainer's own."""
    from mlflow_ft_template.steps import CountSteps

    return [CountSteps(job)]


@hookimpl
def after_evaluate(job: Job, scores: Scores) -> None:
    """A watcher: what it raises is logged, and the run goes on."""
    before = {score.name: score.value for score in scores.base}
    for score in scores.tuned:
        log.info("%s: %.4g before, %.4g after", score.name, before[score.name], score.value)


@hookimpl
def on_run_error(job: Job, error: BaseException) -> None:
    """A watcher of failures: here one would tell a chat room or a pager."""
    log.info("run %s failed: %s", job.run.run_id, error)

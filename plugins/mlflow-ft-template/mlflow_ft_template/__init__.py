"""A plugin to copy: flash cards as rows, a check for them, an evaluator of answer lengths, a reward for short
answers, a method that reuses SFT, a guard set, an exporter, and a gate against promoting long-winded models.

    {"front": "Which planet is red?", "back": "Mars", "deck": "planets"}

Hooks register things by returning records; heavy packages are imported only when they are needed.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge

from mlflow_ft import (
    Check,
    Checked,
    Command,
    DataError,
    DataFormat,
    Evaluator,
    Example,
    Exporter,
    Gate,
    GuardSet,
    Options,
    Reward,
    Score,
    Trainer,
    Verdict,
    hookimpl,
)

if TYPE_CHECKING:
    import click

    from mlflow_ft import Candidacy, Data, Form, Gates, Job, Model, Scores, Subject, Trained

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TemplateOptions:
    """The settings of this plugin."""

    fewest_rows: Annotated[int, Ge(1)] = 4
    """Training rows that gentle-lora needs at least."""


def from_card(values: Mapping[str, Any]) -> Example:
    """Turn a row into a conversation; a ValueError says in one sentence what is wrong with the row."""
    front, back = values.get("front"), values.get("back")
    if not isinstance(front, str) or not front.strip():
        raise ValueError("`front` is missing or empty")
    if not isinstance(back, str) or not back.strip():
        raise ValueError("`back` is missing or empty")
    return Example(messages=({"role": "user", "content": front}, {"role": "assistant", "content": back}))


def parrots(row: Checked) -> str | None:
    """What is wrong with a row, in a few words, or None."""
    return "the answer repeats the question" if row.prompt.strip() == row.responses[-1].strip() else None


def brevity(subject: Subject) -> Sequence[Score]:
    """Length of the answer relative to the expected one, in characters: 1 is as long, 2 twice as long."""
    return [Score.mean("length_ratio", [len(answer.text) / len(answer.expected) for answer in subject.answers])]


def terse(completions: Sequence[Sequence[Mapping[str, Any]]], **_: Any) -> list[float]:
    """A reward for every sampled answer, whatever the prompt."""
    return [1 / max(1, len(turns[-1]["content"].split())) for turns in completions]


def brief(about: Candidacy, gates: Gates) -> Sequence[Verdict]:
    """Compare the answers' length with `options: {brief: {most: 1.5}}` of the gates file; without it, abstain."""
    most = gates.options.get("brief", {}).get("most")
    if most is None:
        return [Verdict.abstain("options.brief.most is not set")]
    ratio = about.candidate.score("length_ratio")
    shown = "no such score" if ratio is None else f"{ratio:.2f} times as long"
    return [Verdict(passed=ratio is not None and ratio <= most, found=shown, wanted=f"at most {most:g}")]


def train_gently(job: Job, data: Data, model: Model) -> Trained:
    """Plain SFT; only the defaults make this a method."""
    from mlflow_ft.engine import sft

    return sft.train(job, data, model)


def export_half(source: Path, folder: Path) -> None:
    """Write the whole model in 16 bits."""
    from mlflow_ft_template import half

    half.export(source, folder)


def open_half(folder: Path) -> AbstractContextManager[Form]:
    """Load what `export_half` wrote, to compare it with the trained model before anything is logged."""
    from mlflow_ft_template import half

    return half.opened(folder)


def unsuitable(folder: Path | None) -> str | None:
    """Why this model cannot be exported, found out before training; None for the folder: no model is known yet."""
    if folder is None:
        return None
    names = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures") or [""]
    return None if names[0].endswith("ForCausalLM") else f"{names[0] or 'the model'} does not generate text"


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
            remedy="write an answer, or remove the row",
        )
    ]


@hookimpl
def register_evaluators() -> list[Evaluator]:
    return [
        Evaluator(
            name="brevity",
            summary="length of the answers relative to the expected ones",
            evaluate=brevity,
            scores=("length_ratio",),
            lower_is_better=("length_ratio",),
            applies=lambda data: data.format == "flash-card",
        )
    ]


@hookimpl
def register_trainers() -> list[Trainer]:
    return [
        Trainer(
            name="gentle-lora",
            summary="LoRA with a low rank and a low learning rate, for small data",
            train=train_gently,
            defaults={"adapter.kind": "lora", "adapter.r": 4, "training.learning_rate": 1e-4},
            scores=("loss",),
            held_out_loss=True,
        )
    ]


@hookimpl
def register_rewards() -> list[Reward]:
    return [Reward(name="terse", summary="1 for a one-word answer, falling towards 0 for longer ones", score=terse)]


@hookimpl
def register_exporters() -> list[Exporter]:
    return [
        Exporter(
            name="bfloat16",
            summary="the whole model in 16 bits (bfloat16)",
            export=export_half,
            opened=open_half,
            ready=unsuitable,
            max_kl=0.02,
        )
    ]


@hookimpl
def register_gates() -> list[Gate]:
    return [
        Gate(name="brief", summary="answers are not much longer than the expected ones", judge=brief, options=("most",))
    ]


@hookimpl
def register_guards() -> list[GuardSet]:
    cards = Path(__file__).parent / "planets.jsonl"
    return [GuardSet(name="planets", summary="cards that every model knows", path=cards, licence="Apache-2.0")]


@hookimpl
def register_options() -> list[Options]:
    return [Options(name="template", summary="what gentle-lora needs", fields=TemplateOptions)]


def load_decks() -> click.Command:
    """The command `mlflow-ft decks`."""
    from mlflow_ft_template import decks

    return decks.command


@hookimpl
def register_commands() -> list[Command]:
    return [Command(name="decks", summary="count the cards of each deck in a file", load=load_decks)]


@hookimpl
def before_train(job: Job, data: Data, model: Model) -> None:
    """A veto, before any time is spent on a job that cannot work."""
    fewest, rows = job.config.options(TemplateOptions).fewest_rows, len(data.train.examples)
    if job.config.method == "gentle-lora" and rows < fewest:
        raise DataError(
            f"gentle-lora needs at least {fewest} rows; the data has {rows}",
            hint="add rows, or lower plugins.template.fewest_rows",
        )


@hookimpl
def training_callbacks(job: Job) -> list[Any]:
    """Callbacks for transformers, in addition to the trainer's own."""
    from mlflow_ft_template.steps import CountSteps

    return [CountSteps(job)]


@hookimpl
def after_evaluate(job: Job, scores: Scores) -> None:
    """An observer: if it raises, the error is logged and the run goes on."""
    before = {score.name: score.value for score in scores.base}
    for score in scores.tuned:
        if score.name in before:
            log.info("%s: %.4g before, %.4g after", score.name, before[score.name], score.value)


@hookimpl
def on_run_error(job: Job, error: BaseException) -> None:
    """An observer of failures, which could notify a chat room or a pager."""
    log.info("run %s failed: %s", job.run.run_id, error)

"""The built-in evaluators: loss, exact match, valid JSON where it is expected, preferences and rewards."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mlflow_ft import Evaluator, Score, hookimpl

if TYPE_CHECKING:
    from mlflow_ft import Data, Subject


def held_out_loss(subject: Subject) -> Sequence[Score]:
    """Mean negative log-likelihood per learned token (nats), and its exponential."""
    losses = subject.losses
    tokens = sum(count for _, count in losses)
    loss = sum(total for total, _ in losses) / tokens if tokens else float("nan")
    rows = tuple(total / count if count else None for total, count in losses)
    perplexity = math.exp(min(loss, 700.0))
    return [Score(name="loss", value=loss, rows=rows), Score(name="perplexity", value=perplexity)]


def loss_by_label(subject: Subject) -> Sequence[Score]:
    """Mean negative log-likelihood per token (nats) of the answers labelled good, and of those labelled bad.

    `label_margin` is by how much the good ones are more likely; both labels count equally, however many rows they have.
    """
    labels = [example.label for example in subject.data.eval.examples]
    scores = []
    for name, wanted in (("good_loss", True), ("bad_loss", False)):
        losses = [loss for loss, label in zip(subject.losses, labels, strict=True) if label is wanted and loss[1]]
        tokens = sum(count for _, count in losses)
        value = sum(total for total, _ in losses) / tokens if tokens else float("nan")
        scores.append(Score(name=name, value=value, rows=tuple(total / count for total, count in losses)))
    return [*scores, Score.mean("label_margin", margins(subject.losses, labels))]


def margins(losses: Sequence[tuple[float, int]], labels: Sequence[bool | None]) -> list[float | None]:
    """For every row its log-likelihood per token times its label's weight, negated where the answer is labelled bad.

    Their mean is the mean of the good answers minus that of the bad ones.
    """
    scored = [label for (_, count), label in zip(losses, labels, strict=True) if count and label is not None]
    weight = {label: len(scored) / scored.count(label) for label in set(scored)}
    signs = {True: -1.0, False: 1.0}
    return [
        signs[label] * weight[label] * total / count if count and label is not None else None
        for (total, count), label in zip(losses, labels, strict=True)
    ]


def exact_match(subject: Subject) -> Sequence[Score]:
    """Share of answers that equal the expected one, ignoring white space at the ends."""
    rows = [float(answer.text.strip() == answer.expected.strip()) for answer in subject.answers]
    finished = [float(answer.finished) for answer in subject.answers]
    return [Score.mean("exact_match", rows), Score.mean("finished", finished)]


def valid_json(subject: Subject) -> Sequence[Score]:
    """Share of answers that are strictly valid JSON."""
    return [Score.mean("valid_json", [float(is_json(answer.text)) for answer in subject.answers])]


def expects_json(data: Data) -> bool:
    """Whether every held-out answer is a JSON object or list."""
    finals = [example.answer for example in data.eval.examples]
    return bool(finals) and all(text is not None and text.strip()[:1] in "{[" and is_json(text) for text in finals)


def is_json(text: str) -> bool:
    """Whether `text` is JSON; NaN and Infinity are not."""
    try:
        json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False
    return True


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def preferred(subject: Subject) -> Sequence[Score]:
    """Share of held-out pairs whose chosen answer scores higher; by how much, on average."""
    better = [float(chosen > rejected) for chosen, rejected in subject.pairs]
    margins = [chosen - rejected for chosen, rejected in subject.pairs]
    return [Score.mean("preference_accuracy", better), Score.mean("preference_margin", margins)]


def rewarded(subject: Subject) -> Sequence[Score]:
    """The mean of every reward over greedy answers to the held-out prompts, and of their weighted sum; no scores
    where no reward is named."""
    scores = [Score.mean(f"reward/{name}", values) for name, values in subject.rewards.items()]
    return [*scores, Score.mean("weighted_reward", subject.weighted_reward)] if scores else []


def has_pairs(data: Data) -> bool:
    """Whether the held-out rows are preferences."""
    return data.kind == "preference"


def has_answers(data: Data) -> bool:
    """Whether some held-out conversation ends with an answer in text."""
    return any(example.answer is not None for example in data.eval.examples)


def has_prompts(data: Data) -> bool:
    """Whether some held-out row asks for an answer in text."""
    return data.kind == "prompt" or has_answers(data)


@hookimpl
def register_evaluators() -> list[Evaluator]:
    return [
        Evaluator(
            name="loss",
            summary="loss and perplexity on the learned tokens",
            evaluate=held_out_loss,
            scores=("loss", "perplexity"),
            applies=lambda data: data.kind not in ("prompt", "unpaired"),
        ),
        Evaluator(
            name="loss-by-label",
            summary="loss on the answers labelled good, and on those labelled bad",
            evaluate=loss_by_label,
            scores=("good_loss", "bad_loss", "label_margin"),
            applies=lambda data: data.kind == "unpaired",
        ),
        Evaluator(
            name="exact-match",
            summary="share of greedy answers that equal the expected one; share that ended within the limit",
            evaluate=exact_match,
            scores=("exact_match", "finished"),
            applies=has_answers,
        ),
        Evaluator(
            name="valid-json",
            summary="share of greedy answers that are JSON, where JSON is expected",
            evaluate=valid_json,
            scores=("valid_json",),
            applies=expects_json,
        ),
        Evaluator(
            name="preference",
            summary="share of held-out pairs whose chosen answer is more likely than the rejected; by how many nats",
            evaluate=preferred,
            scores=("preference_accuracy", "preference_margin"),
            applies=has_pairs,
        ),
        Evaluator(
            name="reward-accuracy",
            summary="share of held-out pairs whose chosen answer a reward model scores higher; by how much",
            evaluate=preferred,
            scores=("preference_accuracy", "preference_margin"),
            applies=has_pairs,
            task="score",
        ),
        Evaluator(
            name="reward",
            summary="the rewards of greedy answers to the held-out prompts",
            evaluate=rewarded,
            scores=("weighted_reward", "reward/*"),
            applies=has_prompts,
        ),
    ]

"""A model under evaluation: exact held-out losses, and greedy answers to held-out prompts."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import torch

from mlflow_ft.engine import batches, ranks
from mlflow_ft.engine.judging import greedy
from mlflow_ft.engine.loss import causal_model, suited
from mlflow_ft.engine.models import loading
from mlflow_ft.engine.rewards import reward_judges
from mlflow_ft.engine.tokens import render
from mlflow_ft.progress import Bar, Progress
from mlflow_ft.rows import Encoded, Example
from mlflow_ft.values import Answer, Data, Job, Run, Trained

LOSSES, SCORES, ANSWERS = "losses", "scores", "answers"
"""What is computed of rows; with several processes each takes its share of them."""
NEXT = "next subject"
"""The call to the other processes that a model is no longer needed."""


@torch.no_grad()
def row_losses(
    model: Any,
    rows: Sequence[Encoded],
    *,
    batch_size: int,
    pad_token_id: int,
    bar: Bar | None = None,
    measure: Any = None,
) -> list[tuple[float, int]]:
    """For every row, the summed negative log-likelihood (nats) of its learned tokens, and their number.

    `measure` is one of the losses of `engine.loss`; the fastest that is correct, if not given.
    """
    losses: list[tuple[float, int]] = [(0.0, 0)] * len(rows)
    device = causal_model(model).device
    for indices in batches.by_length([len(row.input_ids) for row in rows], batch_size=batch_size):
        batch = batches.padded([rows[index] for index in indices], pad_token_id=pad_token_id)
        inputs = {name: value.to(device) for name, value in batch.items()}
        measure = measure or suited(model, inputs)
        token_losses = measure(model, inputs)
        sums = torch.zeros(len(indices), device=device).index_add_(0, token_losses.row, token_losses.nll)
        counts = torch.bincount(token_losses.row, minlength=len(indices))
        for index, total, count in zip(indices, sums.tolist(), counts.tolist(), strict=True):
            losses[index] = (total, count)
        if bar:
            bar.advance(len(indices))
    return losses


@torch.no_grad()
def row_scores(model: Any, rows: Sequence[Encoded], *, batch_size: int, pad_token_id: int) -> list[float]:
    """The score that a reward model gives each row."""
    scores = [0.0] * len(rows)
    device = causal_model(model).device
    for indices in batches.by_length([len(row.input_ids) for row in rows], batch_size=batch_size):
        batch = batches.padded([rows[index] for index in indices], pad_token_id=pad_token_id)
        inputs = {name: batch[name].to(device) for name in ("input_ids", "attention_mask")}
        for index, score in zip(indices, model(**inputs).logits[:, 0].float().tolist(), strict=True):
            scores[index] = score
    return scores


def answerable(example: Example) -> bool:
    """Whether a model can be asked for the last or next turn of an example; not if its answer is labelled bad."""
    return (example.answer is not None and example.label is not False) or example.kind == "prompt"


def mean_loss(losses: Sequence[tuple[float, int]]) -> float:
    """Mean over tokens, not over rows (nats); NaN if there are no tokens."""
    tokens = sum(count for _, count in losses)
    return sum(total for total, _ in losses) / tokens if tokens else float("nan")


class JudgedModel:
    """What evaluators see (`mlflow_ft.job.Subject`): losses and answers are computed once, on first access.

    `base_answers` is shared by base and tuned model: by the digest of the rows, what the base answered.
    """

    def __init__(
        self,
        *,
        name: Literal["base", "tuned"],
        module: Any,
        job: Job,
        data: Data,
        base_answers: dict[str, Sequence[Answer]] | None = None,
    ) -> None:
        self.name = name
        self.data = data
        self.config = job.config
        self._base_answers = {} if base_answers is None else base_answers
        self._module = module
        self._job = job
        self._scores = job.task == "score"
        self._batch: int = job.config.evaluation.per_device_eval_batch_size
        self._pad: int = data.tokenizer.pad_token_id

    @property
    def model(self) -> Any:
        """The loaded model, with its adapter switched on."""
        return self._module

    @property
    def run(self) -> Run | None:
        """The MLflow run; None where nothing is logged."""
        return self._job.run

    @property
    def progress(self) -> Progress:
        """Output to the terminal."""
        return self._job.progress

    @property
    def base_answers(self) -> Sequence[Answer]:
        """The base model's answers to the same prompts; empty where they are not known."""
        return self.answers if self.name == "base" else self._base_answers.get(self.data.eval.digest, ())

    def over(self, data: Data) -> JudgedModel:
        """The same model on other held-out rows."""
        return JudgedModel(
            name=self.name, module=self._module, job=self._job, data=data, base_answers=self._base_answers
        )

    def release(self) -> None:
        """Release the model; results computed so far remain available."""
        self._module = None

    @cached_property
    def losses(self) -> Sequence[tuple[float, int]]:
        rows = self.data.eval.encoded
        with self._job.progress.bar(f"loss of {self.name}", total=len(ranks.mine(rows)), unit="rows") as bar:
            return self._over_ranks(LOSSES, rows, bar)

    @cached_property
    def pairs(self) -> Sequence[tuple[float, float]]:
        """For every held-out preference, the model's scores of the chosen and the rejected answer."""
        if self.data.kind != "preference":
            return ()
        rejected = [row.rejected for row in self.data.eval.encoded if row.rejected]
        if self._scores:
            both = [*self.data.eval.encoded, *rejected]
            scores = self._over_ranks(SCORES, both)
        else:
            others = self._over_ranks(LOSSES, rejected)
            scores = [-total for total, _ in (*self.losses, *others)]
        return list(zip(scores[: len(rejected)], scores[len(rejected) :], strict=True))

    @cached_property
    def rewards(self) -> Mapping[str, Sequence[float | None]]:
        """For every reward, its values for the answers; empty if no reward is named."""
        return self._rewarded[0]

    @cached_property
    def weighted_reward(self) -> Sequence[float | None]:
        """For each of the answers the weighted sum of all rewards."""
        return self._rewarded[1]

    @cached_property
    def _rewarded(self) -> tuple[Mapping[str, Sequence[float | None]], Sequence[float | None]]:
        if not (self._job.config.rollout.reward_funcs or self._job.reward_model):
            return {}, ()
        judges = reward_judges.load(self._job.config, self._job.registry, model=self._job.reward_model)
        values = reward_judges.of_answers(judges, self.answers)
        return values, reward_judges.weighted(judges, values)

    @cached_property
    def answers(self) -> Sequence[Answer]:
        if self._scores:
            return ()
        settings = self._job.config.evaluation
        examples = list(itertools.islice(filter(answerable, self.data.eval.examples), settings.max_rows))
        with self._job.progress.bar(f"answers of {self.name}", total=len(ranks.mine(examples)), unit="rows") as bar:
            answered = self._over_ranks(ANSWERS, examples, bar)
        if self.name == "base":
            self._base_answers[self.data.eval.digest] = answered
        return answered

    def _over_ranks(self, work: str, rows: Sequence[Any], bar: Bar | None = None) -> list[Any]:
        """What is computed of each row, by all processes together."""
        if ranks.size() == 1:
            return self.compute(work, rows, bar)
        ranks.call(work, list(rows))
        return ranks.together(self.compute(work, ranks.mine(rows), bar))

    def compute(self, work: str, rows: Sequence[Any], bar: Bar | None = None) -> list[Any]:
        """The losses (`LOSSES`), scores or answers of rows, in this process."""
        if work == LOSSES:
            return row_losses(self._module, rows, batch_size=self._batch, pad_token_id=self._pad, bar=bar)
        if work == SCORES:
            return row_scores(self._module, rows, batch_size=self._batch, pad_token_id=self._pad)
        longest = self._job.config.evaluation.max_new_tokens
        return answers(self._module, self.data, rows, max_new_tokens=longest, batch_size=self._batch, bar=bar)


@torch.no_grad()
def answers(
    model: Any, data: Data, examples: Sequence[Example], *, max_new_tokens: int, batch_size: int, bar: Bar | None = None
) -> list[Answer]:
    """Generate greedy answers in place of each conversation's last turn."""
    ids = [render.prompt_ids(data.tokenizer, example) for example in examples]
    ends = greedy.ends_of(model)
    answered: dict[int, Answer] = {}
    pad = data.tokenizer.pad_token_id
    for batch in greedy.batches(model, ids, length=max_new_tokens, batch_size=batch_size, pad_token_id=pad):
        for index, tokens in batch.items():
            finished = bool(tokens) and tokens[-1] in ends
            text = data.tokenizer.decode(tokens[:-1] if finished else tokens, skip_special_tokens=True).strip()
            answered[index] = answer_to(examples[index], text, finished=finished)
        if bar:
            bar.advance(len(batch))
    return [answered[index] for index in range(len(examples))]


def answer_to(example: Example, text: str, *, finished: bool) -> Answer:
    """An answer with the expected one, and the row's columns for reward functions."""
    return Answer(
        prompt=example.prompt,
        expected=str(example.answer or example.columns.get(reward_judges.ANSWER) or ""),
        text=text,
        finished=finished,
        columns=reward_judges.columns(example),
    )


def subjects(job: Job, data: Data, trained: Trained) -> Iterator[JudgedModel]:
    """The base model, then the tuned one, each loaded from its files; the first is released before the second.

    If an adapter was trained further, the first is the base with the adapter before training.
    Compute everything needed from one before taking the next. The other processes load them too (`follow`).
    """
    start = trained.base.start
    with job.progress.bar("load base"):
        base = loading.load_base(job.config, trained.base)
        loading.agree(base, data)
        if start:
            base = loading.with_adapter(base, start)
    known: dict[str, Sequence[Answer]] = {}
    first = JudgedModel(name="base", module=base, job=job, data=data, base_answers=known)
    yield first
    ranks.call(NEXT)
    with job.progress.bar("load tuned"):
        if trained.adapter is None or start:
            first.release()
            del base
            tuned: Any = loading.load_trained(job, data, trained)
        else:
            tuned = loading.with_adapter(base, trained.adapter)
    yield JudgedModel(name="tuned", module=tuned, job=job, data=data, base_answers=known)
    ranks.call(NEXT)


def follow(job: Job, data: Data, trained: Trained) -> None:
    """Compute this process's share for both models while rank 0 evaluates them."""
    for subject in subjects(job, data, trained):
        for work, rows in ranks.calls():
            if work == NEXT:
                break
            ranks.together(subject.compute(work, ranks.mine(rows)))

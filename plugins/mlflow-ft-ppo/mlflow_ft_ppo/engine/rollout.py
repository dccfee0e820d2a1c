"""Prompts in a seeded order, and the policy's sampled answers to them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from mlflow_ft import Answer, Data, DataError, Example, Job, RolloutSection, Split
from mlflow_ft.engine.judging import judge
from mlflow_ft.engine.judging.greedy import cut, ends_of
from mlflow_ft.engine.loss import causal_model
from mlflow_ft.engine.models import left_padding
from mlflow_ft.engine.tokens import render


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """One sampled answer: the tokens of prompt and answer, including the end token, and both as text."""

    prompt_ids: list[int]
    ids: list[int]
    answer: Answer


@dataclass(frozen=True, kw_only=True)
class Tensors:
    """Sampled answers as input for the policy: each after its prompt, padded on the right."""

    input_ids: Tensor
    """int64, (answers, length)."""
    attention_mask: Tensor
    """int64, (answers, length)."""
    prompt_lengths: Tensor
    """int64, (answers,)."""
    mask: Tensor
    """float32, (answers, tokens): 1 up to and including the first end token, then 0."""

    def look(self, policy: Any, rows: Tensor) -> Any:
        """A policy's outputs for some of the answers, cut to the longest of them."""
        length = int(self.attention_mask[rows].sum(dim=1).max())
        return policy(
            self.input_ids[rows, :length],
            self.attention_mask[rows, :length],
            self.prompt_lengths[rows],
            tokens=self.mask.shape[1],
        )


def tensors(sampled: Sequence[Sampled], *, pad_token_id: int, device: Any) -> Tensors:
    """Put sampled answers into one batch."""
    rows = [sample.prompt_ids + sample.ids for sample in sampled]
    length, tokens = max(map(len, rows)), max(len(sample.ids) for sample in sampled)
    ids = torch.tensor([row + [pad_token_id] * (length - len(row)) for row in rows])
    return Tensors(
        input_ids=ids.to(device),
        attention_mask=_ones([len(row) for row in rows], length).to(device),
        prompt_lengths=torch.tensor([len(sample.prompt_ids) for sample in sampled]).to(device),
        mask=_ones([len(sample.ids) for sample in sampled], tokens).float().to(device),
    )


def _ones(lengths: Sequence[int], width: int) -> Tensor:
    """Ones up to each length, then zeros; int64 of shape (rows, width)."""
    return (torch.arange(width)[None] < torch.tensor(lengths)[:, None]).long()


class Prompts:
    """The prompts of a split that fit: the generation prompt at their end must not be cut off."""

    def __init__(self, split: Split, data: Data, *, longest: int) -> None:
        self._split = split
        self._tokenizer = data.tokenizer
        self.longest = longest
        self.indices = [index for index, length in enumerate(self._lengths(data)) if length <= longest]

    def __len__(self) -> int:
        return len(self.indices)

    def _lengths(self, data: Data) -> Iterator[int]:
        if data.kind == "prompt":  # already rendered, with the generation prompt, when the rows were read
            for row in self._split.encoded:
                yield self.longest + 1 if row.truncated else len(row.input_ids)
        else:
            for example in self._split.examples:
                yield len(self.ids(example))

    def ids(self, example: Example) -> list[int]:
        """The tokens before the answer, including the generation prompt."""
        return render.prompt_ids(self._tokenizer, example)

    def examples(self, seed: int, *, skip: int = 0) -> Iterator[Example]:
        """The prompts in an endless stream, in a new order in each epoch, without the first ones."""
        generator = torch.Generator().manual_seed(seed)
        orders = (torch.randperm(len(self), generator=generator).tolist() for _ in itertools.count())
        for place in itertools.islice(itertools.chain.from_iterable(orders), skip, None):
            yield self._split.examples[self.indices[place]]


def prompts(job: Job, data: Data, model: Any) -> Prompts:
    """The training prompts that leave room for an answer.

    Raises:
        DataError: no prompt is short enough.
    """
    config, settings = causal_model(model).config, job.config
    positions = getattr(config.get_text_config(), "max_position_embeddings", None) or settings.data.max_length * 2
    room = positions - settings.rollout.max_completion_length
    fitting = Prompts(data.train, data, longest=min(settings.data.max_length, room))
    limits = f"data.max_length is {settings.data.max_length}, and the model has {positions} positions, "
    limits += f"{settings.rollout.max_completion_length} of them for the answer"
    if not fitting:
        raise DataError(
            f"no prompt is short enough to leave room for an answer: {limits}",
            hint="shorten the prompts, or lower rollout.max_completion_length",
        )
    if dropped := len(data.train.examples) - len(fitting):
        job.progress.warn(f"ignoring {dropped:,} of {len(data.train.examples):,} prompts, which are too long: {limits}")
    return fitting


@torch.no_grad()
def sample(
    model: Any, data: Data, prompts: Prompts, examples: Sequence[Example], *, settings: RolloutSection, batch_size: int
) -> list[Sampled]:
    """One answer to every example, sampled at the temperature from the model's probabilities, up to its end token."""
    ids = [prompts.ids(example) for example in examples]
    ends = ends_of(model)
    answers: dict[int, Sampled] = {}
    pad = data.tokenizer.pad_token_id
    batches = left_padding.batches(model, ids, batch_size=batch_size, pad_token_id=pad)
    with _sampling(model, data, settings):
        for rows in batches:
            generated = _generate(model, [ids[row] for row in rows], pad_token_id=pad)
            for row, new in zip(rows, generated, strict=True):
                tokens, finished = cut(new, ends)
                text = data.tokenizer.decode(tokens[: len(tokens) - finished], skip_special_tokens=True)
                answers[row] = Sampled(
                    prompt_ids=ids[row], ids=tokens, answer=judge.answer_to(examples[row], text, finished=finished)
                )
    return [answers[row] for row in range(len(examples))]


def _generate(model: Any, ids: list[list[int]], *, pad_token_id: int) -> list[list[int]]:
    """The model's continuations of prompts, which are padded on the left as generation requires."""
    device = causal_model(model).device
    batch = left_padding.padded(ids, pad_token_id=pad_token_id)
    output = model.generate(**{name: value.to(device) for name, value in batch.items()})
    new: list[list[int]] = output[:, batch["input_ids"].shape[1] :].tolist()
    return new


@contextmanager
def _sampling(model: Any, data: Data, settings: RolloutSection) -> Iterator[None]:
    """Inside the block, generation samples with the settings of `rollout` and none of the model's own defaults.

    A top_k or a repetition penalty would sample from another distribution than the one that is trained.
    """
    causal = causal_model(model)
    kept = causal.generation_config
    causal.generation_config = GenerationConfig(
        do_sample=True,
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=0,
        max_new_tokens=settings.max_completion_length,
        eos_token_id=ends_of(model),
        pad_token_id=data.tokenizer.pad_token_id,
        bos_token_id=kept.bos_token_id,
        use_cache=True,
    )
    try:
        yield
    finally:
        causal.generation_config = kept


def take(stream: Iterator[Example], *, prompts: int, generations: int, process: int, processes: int) -> list[Example]:
    """This process's share of a step's examples, each repeated once per answer."""
    share = list(itertools.islice(stream, prompts * processes))[process::processes]
    return [example for example in share for _ in range(generations)]

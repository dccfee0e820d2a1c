"""Greedy answers of a model in memory to prompts of any length, as many at a time as it can give."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from mlflow_ft.engine import hardware
from mlflow_ft.engine.loss import causal_model
from mlflow_ft.engine.models import early_leave, generation, held_weights, left_padding, loading
from mlflow_ft.engine.models.row_isolation import Row
from mlflow_ft.engine.tokens import room


@torch.no_grad()
def batches(
    model: Any, prompts: Sequence[Row], *, length: int, batch_size: int, pad_token_id: int
) -> Iterator[dict[int, list[int]]]:
    """The most probable next tokens of each prompt, at most `length`, up to and including an end token.

    Yields batches: the tokens by the index of the prompt. They have `batch_size` prompts, or more where
    `hardware.answers_at_once` allows it; and only one where the model has too few positions for prompts and answers, so
    that each answer may be as long as its own prompt allows.
    """
    longest = max(map(len, prompts), default=0)
    size = hardware.answers_at_once(batch_size, longest + length)
    if _left(model, longest, length) < length:
        size = 1
    with held_weights.held(model):
        for indices in left_padding.batches(model, prompts, batch_size=size, pad_token_id=pad_token_id):
            rows = [prompts[index] for index in indices]
            yield dict(zip(indices, _together(model, rows, length=length, pad_token_id=pad_token_id), strict=True))


def _left(model: Any, used: int, length: int) -> int:
    """How many of `length` tokens a model has positions for, after `used` others."""
    left = room.left(model, used)
    return length if left is None else min(left, length)


def _together(model: Any, prompts: Sequence[Row], *, length: int, pad_token_id: int) -> list[list[int]]:
    """What follows each prompt; they are padded on the left."""
    length = _left(model, max(map(len, prompts)), length)
    if not length:
        return [[] for _ in prompts]
    causal = causal_model(model)
    batch = left_padding.padded(prompts, pad_token_id=pad_token_id)
    with loading.quiet_peft(), early_leave.leaving_early(model):
        output = model.generate(
            **{name: value.to(causal.device) for name, value in batch.items()},
            max_new_tokens=length,
            use_cache=True,
            **generation.GREEDY,
        )
    ends = ends_of(model)
    return [cut(row, ends)[0] for row in output[:, batch["input_ids"].shape[1] :].tolist()]


def ends_of(model: Any) -> list[int]:
    """Every token that ends an answer."""
    return loading.token_ids(causal_model(model).generation_config.eos_token_id)


def cut(tokens: Sequence[int], ends: Sequence[int]) -> tuple[list[int], bool]:
    """The generated tokens up to and including the first end token, without padding, and whether there was one."""
    end = next((place for place, token in enumerate(tokens) if token in ends), None)
    return list(tokens if end is None else tokens[: end + 1]), end is not None

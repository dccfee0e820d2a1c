"""The output layer that TRL puts into a model for dpo, kto, grpo and rloo: does it agree with the model's own?

It scores the hidden states itself, in chunks. For some models it knows what they do after their output layer (scaling,
soft-capping); for others it does not, and their log-probabilities would be silently wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import trl.trainer.utils
from torch import Tensor
from torch.nn import functional
from trl.kernels.chunked_logprob import OPTIONAL_OUTPUTS, ChunkedLogProbFunction

from mlflow_ft.engine import frozen_head
from mlflow_ft.engine.loss import causal_model
from mlflow_ft.errors import ConfigError, brief
from mlflow_ft.values import Data, Job

FAILURES = (AttributeError, LookupError, TypeError, ValueError, RuntimeError)
"""What TRL's code raises for a model that is not built as it expects."""
LONGEST = 64
"""At most so many tokens of a row are compared."""
EXACT, ROUGH = 1e-4, 5e-2
"""Largest difference (nats) that may be rounding: of any log-probability in float32, of their mean in other types."""


def proof(job: Job, data: Data, *, temperature: float) -> Callable[[Any, bool], None]:
    """A check on the first training row, for a trainer that uses TRL's output layer."""
    row = next(iter(data.train.encoded)).input_ids[:LONGEST]

    def call(model: Any, rough: bool) -> None:  # noqa: FBT001  # a callback
        check(job, model, row, temperature=temperature, rough=rough)

    return call


@torch.no_grad()
def check(job: Job, model: Any, row: Sequence[int], *, temperature: float, rough: bool) -> None:
    """Compare the log-probabilities of a row's tokens from TRL's output layer with those from the model's own logits.

    TRL's output layer divides the logits by `temperature`.

    Raises:
        ConfigError: they differ, or TRL's output layer does not fit the model.
    """
    causal = causal_model(model)
    ids = torch.tensor([list(row)], device=causal.device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    logits = model(**inputs, use_cache=False).logits[:, -ids.shape[1] : -1].float()
    own = functional.log_softmax(logits / temperature, dim=-1).gather(2, ids[:, 1:, None])[..., 0]
    try:
        fused = model(**inputs, labels=ids, fused_lm_head=True).log_probs[:, -own.shape[1] :]
    except FAILURES as error:
        raise refused(job, causal, f"does not fit it: {brief(error)}") from error
    differences = (fused.float() - own).abs()
    exact = causal.dtype == torch.float32 and not rough
    if (difference := float(differences.max() if exact else differences.mean())) > (EXACT if exact else ROUGH):
        raise refused(job, causal, f"changes log-probabilities by up to {difference:.2g} nats")


def refused(job: Job, causal: Any, reason: str) -> ConfigError:
    """The error for a method that cannot be used with this model, with the reason."""
    return ConfigError(
        f"{job.config.method} cannot train a {type(causal).__name__}: TRL's replacement for its output layer {reason}",
        hint="use a method that reads the model's own logits: sft, orpo, cpo, simpo",
    )


class Scoring:
    """In the place of TRL's `ChunkedLogProbFunction`: what it computes, by `frozen_head` where that can be used.

    Not where the entropy may be a part of the loss (grpo, rloo), nor for outputs that only TRL's function has.
    """

    @staticmethod
    def apply(
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        tokens: Tensor,
        temperature: float,
        chunk_size: int,
        softcap: float | None = None,
        logit_scale: float = 1.0,
        outputs: Collection[str] = OPTIONAL_OUTPUTS,
    ) -> tuple[Tensor | None, ...]:
        """As TRL's: log-probabilities, entropy, the sum of squares, mean logits, and which tokens are the likeliest."""
        details = {"entropy", "mean_logits"} <= set(outputs)  # of dpo and kto, which only report them
        known = (details or "entropy" not in outputs) and "log_sum_sq_probs" not in outputs and softcap is None
        if not known or not frozen_head.fits_matrix(weight, bias, states):
            apply: Any = ChunkedLogProbFunction.apply  # which torch does not annotate
            more = temperature, chunk_size, softcap, logit_scale, outputs
            result: tuple[Tensor | None, ...] = apply(states, weight, bias, tokens, *more)
            return result
        scale = logit_scale / temperature
        scored = frozen_head.score(states, weight, bias, tokens, scale=scale, details=details)
        top = scored.is_top1 if "is_top1" in outputs else None
        return scored.log_probs, scored.entropy, None, scored.mean_logits, top


@contextmanager
def on_learned_tokens() -> Iterator[None]:
    """Let TRL's output layer score the learned tokens only, by `Scoring`. On a CPU it scores every position.

    TRL does so for devices on which other shapes mean another compilation; a CPU is not one of them.
    """
    ours = {"_use_triton": lambda device: True, "_ChunkedLogProbFunction": Scoring}  # what `add_fused_lm_head` uses
    before = {name: getattr(trl.trainer.utils, name, None) for name in ours}
    if None in before.values() or torch.cuda.is_available():
        yield
        return
    for name, value in ours.items():
        setattr(trl.trainer.utils, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(trl.trainer.utils, name, value)


@torch.no_grad()
def balances(model: Any) -> bool:
    """Whether TRL's output layer, too, returns the loss that balances the experts of a mixture."""
    ids = torch.zeros((1, 4), dtype=torch.long, device=causal_model(model).device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids, "output_router_logits": True}
    try:
        return model(**inputs, fused_lm_head=True).aux_loss is not None
    except FAILURES:
        return False

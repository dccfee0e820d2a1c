"""The log-probabilities of tokens by an output layer that is not trained, with their gradient made on the way.

A token's log-probability has the gradient W[token] - p W by its hidden state, where W is the layer's matrix and p the
probabilities of all tokens. It is computed while p is in memory: two products of matrices for the forward and backward
pass together, where logits that are computed again in the backward pass need three. One tensor of logits is used again
and again; on a CPU the system clears every new one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

AT_ONCE_BYTES = 128 << 20
"""Bytes of logits (float32) that are in memory at the same time. With half of them a product takes a tenth longer."""


class Scored(NamedTuple):
    """What the layer says of each token, of shape (tokens,)."""

    log_probs: Tensor
    """In nats, float32."""
    is_top1: Tensor
    """bool: whether the token is the likeliest, and the first of several."""
    entropy: Tensor | None
    """Of the probabilities of all tokens, in nats; it has no gradient. None if it was not asked for."""
    mean_logits: Tensor | None
    """Over all tokens; it has no gradient."""


def fits(head: Any, states: Tensor) -> bool:
    """Whether the layer is nothing but a matrix, and a bias, in float32 that are not trained, on a CPU."""
    return type(head) is nn.Linear and "forward" not in vars(head) and fits_matrix(head.weight, head.bias, states)


def fits_matrix(weight: Tensor, bias: Tensor | None, states: Tensor) -> bool:
    """The same of a matrix and its bias."""
    parts = [weight] if bias is None else [weight, bias]
    exact = all(part.dtype == torch.float32 and part.device.type == "cpu" for part in (*parts, states))
    return exact and not any(part.requires_grad for part in parts) and not torch.is_autocast_enabled("cpu")


def score(
    states: Tensor, weight: Tensor, bias: Tensor | None, tokens: Tensor, *, scale: float = 1.0, details: bool = False
) -> Scored:
    """Score one token for each hidden state.

    Args:
        states: of shape (tokens, hidden).
        weight: of shape (vocabulary, hidden).
        bias: of shape (vocabulary,), or None.
        tokens: ids, of shape (tokens,).
        scale: by which logits are multiplied.
        details: whether entropy and mean logits are asked for.
    """
    apply: Any = _Scoring.apply  # which torch does not annotate
    return Scored(*apply(states, weight, bias, tokens, scale, details))


class _Scoring(torch.autograd.Function):
    """`score`; it keeps the gradient of each log-probability, of the size of the hidden states."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        tokens: Tensor,
        scale: float,
        details: bool,  # noqa: FBT001  # torch passes everything by position
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        count, at_once = len(states), max(1, AT_ONCE_BYTES // (4 * len(weight)))
        logits = states.new_empty(min(count, at_once), len(weight))
        log_probs, is_top1 = states.new_empty(count), torch.empty(count, dtype=torch.bool)
        entropy, mean_logits = (states.new_empty(count) if details else None for _ in range(2))
        gradient = torch.empty_like(states) if ctx.needs_input_grad[0] else None
        weighted = torch.empty_like(logits) if details and gradient is None else None
        for start in range(0, count, at_once):
            rows = slice(start, start + at_once)
            wanted, part = tokens[rows], logits[: len(tokens[rows])]
            torch.mm(states[rows], weight.t(), out=part)
            part = part if bias is None else part.add_(bias)
            part = part if scale == 1 else part.mul_(scale)
            if mean_logits is not None:
                mean_logits[rows] = part.mean(dim=1)
            top, likeliest = part.max(dim=1)
            is_top1[rows] = likeliest == wanted
            at = part.gather(1, wanted[:, None])[:, 0] - top
            part.sub_(top[:, None])
            if weighted is not None:
                weighted[: len(part)].copy_(part)
            total = part.exp_().sum(dim=1)  # from here on, probabilities times their sum
            log_probs[rows] = at - total.log()
            if weighted is not None and entropy is not None:
                entropy[rows] = total.log() - weighted[: len(part)].mul_(part).sum(dim=1) / total
            if gradient is not None:
                expected = torch.mm(part, weight).div_(total[:, None])
                if entropy is not None:
                    mean = (states[rows] * expected).sum(dim=1) + (0 if bias is None else part @ bias / total)
                    entropy[rows] = top + total.log() - scale * mean
                gradient[rows] = weight[wanted].sub_(expected).mul_(scale)
        ctx.save_for_backward(gradient)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(is_top1, *(more for more in (entropy, mean_logits) if more is not None))
        return log_probs, is_top1, entropy, mean_logits

    @staticmethod
    def backward(ctx: Any, *of_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        """The gradient of the hidden states."""
        [gradient] = ctx.saved_tensors
        of_log_probs = of_outputs[0]
        none = None, None, None, None, None
        if of_log_probs is None:
            return None, *none
        return gradient * of_log_probs[:, None], *none

"""The loss on the learned tokens only: logits of other tokens are never computed.

A causal model's last layer turns every position's hidden state (hidden_size numbers) into logits (vocabulary_size
numbers). If three quarters of the positions are masked, three quarters of this work are wasted, and the logits are by
far the largest tensor of a batch. So the head is bypassed while the model runs, and applied afterwards to the labelled
positions, in chunks whose logits are recomputed in the backward pass; if the head is not trained, its gradient is made
in the forward pass (`frozen_head`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from mlflow_ft.engine import frozen_head, row_attention

CHUNK_BYTES, CHUNK_BYTES_ON_GPU = 64 << 20, 256 << 20
"""Bytes of logits (float32) that are in memory at the same time. A pass holds about four times as much: the logits,
their probabilities and gradients. GPUs are slower with small parts."""
CHECKED = 64
"""Tokens on which a model's own logits are compared with those of its head."""
AGREEMENT = 1e-4
"""Largest difference of a token's loss (nats, and relative) from that over the model's own logits, in float32."""
ROUGH_AGREEMENT = 1e-2
"""The same for the mean, in types of lower precision, where rounding affects single tokens."""

OF_ROWS = ("input_ids", "attention_mask", "position_ids", "labels")
"""The tensors of a batch with one row for each of its rows."""


@dataclass(frozen=True, kw_only=True)
class TokenLoss:
    """For every learned token, in the order of the batch: its loss, whether it was the likeliest, and its row."""

    nll: Tensor
    """Negative log-likelihood in nats, float32, shape (learned tokens,)."""
    correct: Tensor
    """bool, shape (learned tokens,)."""
    row: Tensor
    """Index of the row in the batch, shape (learned tokens,)."""
    balance: Tensor | None = None
    """How unevenly a mixture of experts uses its experts, a scalar; None if not requested."""


def token_loss(
    model: nn.Module, inputs: Mapping[str, Tensor], *, wrapped: nn.Module | None = None, balance: bool = False
) -> TokenLoss:
    """Run the model on a batch and return the loss of every labelled token.

    Args:
        model: the model itself, whose head is bypassed.
        inputs: `input_ids`, `attention_mask` and `labels`, each of shape (rows, length).
        wrapped: what to call instead of `model`, if it is wrapped (DistributedDataParallel).
        balance: whether to compute the balance of a mixture of experts.
    """
    labels = inputs["labels"]
    head = causal_model(model).get_output_embeddings()
    with _held_back(head) as apply_head:
        output = _run(wrapped or model, inputs, balance=balance)
    hidden = output.logits[:, -labels.shape[1] :]  # soft prompts come before it
    targets = labels[:, 1:]
    learned = targets != -100
    selected, wanted = hidden[:, :-1][learned], targets[learned]
    nll, correct = of_states(head, apply_head, selected, wanted)
    row = torch.arange(labels.shape[0], device=labels.device).repeat_interleave(learned.sum(dim=1))
    return TokenLoss(nll=nll, correct=correct, row=row, balance=_balance(output))


def of_states(head: Any, apply_head: Any, states: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of each token, and whether it was the likeliest, by hidden states of shape (tokens, hidden)."""
    if frozen_head.fits(head, states):
        scored = frozen_head.score(states, head.weight, head.bias, tokens)
        return -scored.log_probs, scored.is_top1
    losses, hits = [], []
    at_once = chunk(head, on_gpu=states.is_cuda)
    for some, wanted in zip(states.split(at_once), tokens.split(at_once), strict=True):
        nll, hit = checkpoint(_chunk, apply_head, some, wanted, use_reentrant=False)
        losses.append(nll)
        hits.append(hit)
    return torch.cat(losses), torch.cat(hits)


def chunk(head: Any, *, on_gpu: bool) -> int:
    """How many labelled tokens have their logits in memory at the same time, with this output layer."""
    return max(1, (CHUNK_BYTES_ON_GPU if on_gpu else CHUNK_BYTES) // (4 * words(head)))


def words(head: Any) -> int:
    """The number of tokens that an output layer gives logits for."""
    return int(getattr(head, "out_features", head.weight.shape[0]))


def _run(model: nn.Module, inputs: Mapping[str, Tensor], *, balance: bool) -> Any:
    rest = {name: value for name, value in inputs.items() if name != "labels"}
    with row_attention.of_rows(row_attention.lengths(inputs)):
        return model(**rest, use_cache=False, **({"output_router_logits": True} if balance else {}))


def _balance(output: Any) -> Tensor | None:
    return getattr(output, "aux_loss", None)


def _chunk(apply_head: Any, states: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    logits = apply_head(states).float()
    return functional.cross_entropy(logits, tokens, reduction="none"), logits.detach().argmax(dim=-1) == tokens


@contextmanager
def _held_back(head: Any) -> Iterator[Any]:
    """Make the head return hidden states unchanged; yields a function that applies the real head."""
    original, own = head.forward, vars(head).get("forward")
    dtype = head.weight.dtype

    def apply(states: Tensor) -> Any:
        # under mixed precision, accelerate converts a model's outputs to float32
        return original(states.to(dtype) if dtype.is_floating_point else states)

    head.forward = lambda states, *_, **__: states
    try:
        yield apply
    finally:
        if own:
            head.forward = own
        else:
            del head.forward


def on_device(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """A batch on the model's device; values other than tensors are unchanged."""
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}


def keeps_last(model: nn.Module) -> bool:
    """Whether the model can compute the logits of its last tokens alone, as generation then does."""
    return "logits_to_keep" in inspect.signature(causal_model(model).forward).parameters


def causal_model(model: nn.Module) -> Any:
    """The transformers model inside a PeftModel, or the model itself."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def suited(model: nn.Module, inputs: Mapping[str, Tensor]) -> Callable[..., TokenLoss]:
    """The loss to use with a model: `token_loss` if it is correct on this batch, else `full_token_loss`."""
    return token_loss if agrees_with_logits(model, inputs) else full_token_loss


@torch.no_grad()
def agrees_with_logits(model: nn.Module, inputs: Mapping[str, Tensor]) -> bool:
    """Whether `token_loss` equals the loss over the model's own logits, on the first tokens of a row.

    It does not if a model changes its logits after the head (soft-capping, scaling); such a model needs the loss over
    its full logits.
    """
    first = _beginning(inputs, words=words(causal_model(model).get_output_embeddings()))
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        ours = token_loss(model, first).nll
        theirs = full_token_loss(model, first).nll
    finally:
        for module, training in modes:
            module.training = training
    if getattr(causal_model(model).config, "final_logit_softcapping", None):
        return False  # it changes small logits too little to be detected here
    if causal_model(model).dtype == torch.float32:
        return bool(torch.allclose(ours, theirs, rtol=AGREEMENT, atol=AGREEMENT))
    return bool(torch.allclose(ours.mean(), theirs.mean(), rtol=ROUGH_AGREEMENT, atol=ROUGH_AGREEMENT))


def _beginning(inputs: Mapping[str, Tensor], *, words: int) -> dict[str, Tensor]:
    """The first tokens of the longest row, all of them learned: the logits of a whole row would be too large."""
    rows, length = inputs["input_ids"].shape
    row, places = 0, torch.arange(length, device=inputs["input_ids"].device)
    if "attention_mask" in inputs:
        row = int(inputs["attention_mask"].sum(dim=1).argmax())
        places = inputs["attention_mask"][row].nonzero()[:, 0]
    first = {name: inputs[name].expand(rows, -1)[row, places[:CHECKED]][None] for name in OF_ROWS if name in inputs}
    unknown = first["input_ids"] >= words  # the embedding has more tokens than the head
    return first | {"labels": first["input_ids"].masked_fill(unknown, -100)}


def full_token_loss(
    model: nn.Module, inputs: Mapping[str, Tensor], *, wrapped: nn.Module | None = None, balance: bool = False
) -> TokenLoss:
    """Like `token_loss`, over the model's own logits: slower, with more memory, and correct for every model."""
    labels = inputs["labels"]
    output = _run(wrapped or model, inputs, balance=balance)
    logits = output.logits[:, -labels.shape[1] : -1]
    targets = labels[:, 1:]
    learned = targets != -100
    selected, wanted = logits[learned].float(), targets[learned]
    row = torch.arange(labels.shape[0], device=labels.device).repeat_interleave(learned.sum(dim=1))
    nll = functional.cross_entropy(selected, wanted, reduction="none")
    correct = selected.detach().argmax(dim=-1) == wanted
    return TokenLoss(nll=nll, correct=correct, row=row, balance=_balance(output))

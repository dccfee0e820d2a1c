"""The passes of a training, an evaluation and a generation on fake tensors, with the losses of the real ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from trl.kernels.chunked_logprob import ChunkedLogProbFunction

from mlflow_ft.engine import frozen_head, loss
from mlflow_ft.engine.loss import causal_model
from mlflow_ft.engine.memory.live import GRADIENTS, LOGITS, Live, gradients_in_use
from mlflow_ft.engine.memory.values import Setting
from mlflow_ft.engine.models import fused_head, lean, routers
from mlflow_ft.engine.models.wrapping import layers_below_head
from mlflow_ft.engine.training import parts

TILE_TOKENS, TILE_WORDS = 4096, 32768
"""The tile of logits that TRL's output layer computes at once, for dpo, kto, grpo and rloo."""
OF_DPO = ("log_probs", "entropy", "mean_logits", "is_top1")
"""What TRL's DPO asks of that layer."""
PAIRS = ("dpo", "cpo", "orpo", "reward")
"""Methods with two answers to each row."""
TILED = ("dpo", "kto", "grpo", "rloo", "ppo")
WITH_REFERENCE = ("dpo", "kto")
SAMPLED = ("grpo", "rloo", "ppo")
CACHE = "cache"


@dataclass(frozen=True, kw_only=True)
class Pass:
    """What a pass takes at its peak, in bytes by kind, beyond the weights."""

    at_peak: Mapping[str, int]
    kept: Mapping[str, int] = field(default_factory=dict)
    """What is kept between the forward and the backward pass, by kind of layer."""

    @property
    def total(self) -> int:
        return sum(self.at_peak.values())


def step(setting: Setting, model: Any) -> Pass:
    """One forward and backward pass of the longest batch."""
    model.train()
    if setting.checkpointing:
        causal_model(model).activation_checkpointing_enable({"use_reentrant": False})
    live = Live(model)
    kept: dict[str, int] = {}
    batch, sides = setting.batch, 2 if setting.method in PAIRS else 1
    if setting.at_once is not None and not routers.weighted(model):  # the balance is that of the whole batch
        batch = parts.rows_at_once(batch, sides * setting.length, setting.at_once)
    rows = batch * sides
    recomputing = setting.recomputing and not setting.checkpointing
    with live.watching(model), lean.passes(model, fused=setting.fused, recomputing=recomputing):
        if setting.accumulation > 1 or batch < setting.batch:
            gradients_in_use(model, live)
        with _computing(setting):
            value = _loss(setting, model, live, _ids(rows, setting.length))
        kept = live.by_kind
        value.backward()
    for weight in model.parameters():
        weight.grad = None
    if setting.checkpointing:
        causal_model(model).activation_checkpointing_disable()
    kept.pop(GRADIENTS, None)
    return Pass(at_peak=live.at_peak, kept=kept)


def evaluated(setting: Setting, model: Any) -> Pass:
    """The loss of a batch of held-out rows."""
    return _without_gradients(setting, model, lambda live: _scored(setting, model, live, setting.eval_batch))


def first_tokens(setting: Setting, model: Any) -> Pass:
    """The loss over all logits of a row's first tokens, with which the loss on labelled tokens is compared."""

    def call(live: Live) -> None:
        _over_logits(model, live, _ids(1, min(setting.length, loss.CHECKED)), share=1)

    return _without_gradients(setting, model, call)


def generated(setting: Setting, model: Any, *, rows: int) -> Pass:
    """Answers to a batch of prompts: the first pass, with the cache at the length that it has at the end."""

    cache = 0

    def call(live: Live) -> None:
        nonlocal cache
        last = {"logits_to_keep": 1} if loss.keeps_last(model) else {}
        output = model(input_ids=_ids(rows, setting.length + setting.new_tokens), use_cache=True, **last)
        tensors = _tensors(getattr(output, "past_key_values", None))
        cache = sum({tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}.values())

    total = _without_gradients(setting, model, call).total
    return Pass(at_peak={CACHE: cache, "activations": total - cache})


def _without_gradients(setting: Setting, model: Any, call: Callable[[Live], Any]) -> Pass:
    model.eval()
    live = Live(model)
    with torch.no_grad(), live.watching(model), _computing(setting):
        call(live)
    return Pass(at_peak=live.at_peak)


def _computing(setting: Setting) -> AbstractContextManager[Any]:
    if setting.dtype == "float32":
        return nullcontext()
    return torch.autocast("cpu", dtype=getattr(torch, setting.dtype))


def _ids(rows: int, length: int) -> Tensor:
    return torch.zeros(rows, length, dtype=torch.long)


def _tensors(value: Any) -> list[Tensor]:
    """The tensors in a cache of keys and values, or states."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [tensor for part in value for tensor in _tensors(part)]
    if isinstance(value, dict):
        return _tensors(list(value.values()))
    return _tensors(list(vars(value).values())) if hasattr(value, "__dict__") and not isinstance(value, type) else []


# --- the losses


def _loss(setting: Setting, model: Any, live: Live, ids: Tensor) -> Tensor:
    if setting.method == "reward":
        scores: Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
        return scores.float().mean()
    if setting.method in ("cpo", "orpo"):
        return _over_logits(model, live, ids, share=1)
    if setting.method not in TILED:
        return _learned(setting, model, live, ids)
    value = _tiled(setting, model, live, ids)
    if setting.method in WITH_REFERENCE and setting.reference:
        switched_off = model.disable_adapter() if hasattr(model, "disable_adapter") else nullcontext()
        with torch.no_grad(), switched_off:
            _tiled(setting, model, live, ids)
    return value


def _scored(setting: Setting, model: Any, live: Live, rows: int) -> None:
    ids = _ids(rows, setting.length)
    if setting.task == "score":
        model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    else:
        _learned(setting, model, live, ids)


def _learned(setting: Setting, model: Any, live: Live, ids: Tensor) -> Tensor:
    """As `loss.token_loss`: the logits of learned tokens, in chunks; all logits where the model changes them."""
    causal = causal_model(model)
    if getattr(causal.config, "final_logit_softcapping", None):
        return _over_logits(model, live, ids, share=setting.learned)
    with ExitStack() as stack:
        apply_head = stack.enter_context(loss._held_back(causal.get_output_embeddings()))
        hidden = model(input_ids=ids, use_cache=False).logits
    hidden = hidden.float() if setting.dtype != "float32" else hidden
    chosen = math.ceil(setting.learned * ids.shape[0] * (ids.shape[1] - 1))
    states = hidden[:, :-1].reshape(-1, hidden.shape[-1])[:chosen].clone()
    del hidden
    losses = []
    head = causal.get_output_embeddings()
    with live.of_kind(LOGITS):
        if not _on_gpu(setting) and frozen_head.fits(head, states):
            tokens = torch.zeros(len(states), dtype=torch.long)
            return frozen_head.score(states, head.weight, head.bias, tokens).log_probs.sum()
        for part in states.split(loss.chunk(causal.get_output_embeddings(), on_gpu=_on_gpu(setting))):
            tokens = torch.zeros(len(part), dtype=torch.long)
            losses.append(checkpoint(_chunk, apply_head, part, tokens, live, use_reentrant=False))
    return torch.cat(losses).sum()


def _chunk(apply_head: Any, states: Tensor, tokens: Tensor, live: Live) -> Tensor:
    with live.of_kind(LOGITS):
        return loss._chunk(apply_head, states, tokens)[0]


def _over_logits(model: Any, live: Live, ids: Tensor, *, share: float) -> Tensor:
    """As `loss.full_token_loss`, and as the losses of cpo and orpo."""
    logits: Tensor = model(input_ids=ids, use_cache=False).logits
    live.is_now(logits, LOGITS)
    with live.of_kind(LOGITS):
        words = logits.shape[-1]
        chosen = math.ceil(share * ids.shape[0] * (ids.shape[1] - 1))
        selected = logits[:, :-1].reshape(-1, words)[:chosen].clone().float()
        nll = functional.cross_entropy(selected, torch.zeros(chosen, dtype=torch.long), reduction="none")
        selected.detach().argmax(dim=-1)
        return nll.sum()


def _on_gpu(setting: Setting) -> bool:
    return torch.cuda.is_available() if setting.gpu is None else setting.gpu


def _tiled(setting: Setting, model: Any, live: Live, ids: Tensor) -> Tensor:
    """As TRL's output layer: the logits of a tile of tokens and words at a time, recomputed in the backward pass."""
    causal = causal_model(model)
    head = causal.get_output_embeddings()
    backbone: Any = layers_below_head(model)
    hidden = backbone(input_ids=ids, use_cache=False).last_hidden_state
    states = hidden[:, :-1].reshape(-1, hidden.shape[-1])
    on_gpu = _on_gpu(setting)
    with live.of_kind(LOGITS):
        if on_gpu:  # a kernel, without copies of the tile
            in_place: Any = _Tiled.apply
            value: Tensor = in_place(states, head.weight)
        else:
            apply: Any = fused_head.Scoring.apply if setting.method in WITH_REFERENCE else ChunkedLogProbFunction.apply
            targets = torch.zeros(len(states), dtype=torch.long)
            value = apply(states, head.weight, head.bias, targets, 1.0, TILE_WORDS, None, 1.0, OF_DPO)[0]
    return value.sum()


class _Tiled(torch.autograd.Function):
    """TRL's `ChunkedLogProbFunction` with its Triton kernels, as far as it takes memory."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(states, weight)
        states.new_empty(min(len(states), TILE_TOKENS), min(len(weight), TILE_WORDS))
        return states.new_zeros(len(states), dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        states, weight = ctx.saved_tensors
        states.new_empty(min(len(states), TILE_TOKENS), min(len(weight), TILE_WORDS))
        of_states = torch.zeros_like(states, dtype=torch.float32)
        of_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        return of_states.to(states.dtype), None if of_weight is None else of_weight.to(weight.dtype)

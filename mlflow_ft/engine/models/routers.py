"""The routers of mixtures of experts: their logits are computed in training steps only.

Training adds a loss that spreads the tokens over the experts (Switch Transformer, arXiv 2101.03961), weighted by
`router_aux_loss_coef` of the model's config. transformers computes it whenever the config sets `output_router_logits`;
in generation the shapes do not match, and the model fails. So the switch is off in every config that is loaded or
saved, and the trainers ask for the logits in each step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedConfig

from mlflow_ft.engine.aside import aside
from mlflow_ft.engine.loss import causal_model
from mlflow_ft.engine.models import fused_head
from mlflow_ft.progress import Progress

SWITCH, WEIGHT = "output_router_logits", "router_aux_loss_coef"


def silence(config: PreTrainedConfig) -> None:
    """Switch the router logits off in a model's config and in those of its parts."""
    for part in (config, *(getattr(config, name, None) for name in config.sub_configs)):
        if getattr(part, SWITCH, None):
            setattr(part, SWITCH, False)


@contextmanager
def wanted(module: Any) -> Iterator[None]:
    """Inside, the logits are switched on if the model's config gives their loss a weight; afterwards all is as before.

    TRL's trainers read the switch or the weight from the model's config when they are created, and SFT's sets both.
    """
    config = causal_model(module).config.get_text_config()
    before = {name: getattr(config, name) for name in (SWITCH, WEIGHT) if hasattr(config, name)}
    if len(before) == 2:
        setattr(config, SWITCH, bool(before[WEIGHT]))
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(config, name, value)


class UnbalancedEvaluation:
    """Evaluates without the loss that balances the experts, so that held-out losses are the method's own."""

    aux_loss_enabled: bool

    def evaluate(self, *args: Any, **options: Any) -> dict[str, float]:
        """As transformers' Trainer does."""
        enabled, self.aux_loss_enabled = self.aux_loss_enabled, False
        try:
            metrics: dict[str, float] = super().evaluate(*args, **options)  # type: ignore[misc]  # a mixin
        finally:
            self.aux_loss_enabled = enabled
        return metrics


def weighted(module: Any) -> bool:
    """Whether the model's config gives the loss that balances experts a weight."""
    config = causal_model(module).config.get_text_config()
    return hasattr(config, SWITCH) and bool(getattr(config, WEIGHT, 0))


@torch.no_grad()
def balanced(module: Any) -> bool:
    """Whether transformers computes the loss that spreads the tokens over this model's experts, adapter included."""
    causal = causal_model(module)
    if not hasattr(causal.config.get_text_config(), SWITCH) or not causal.can_generate():
        return False
    ids = torch.zeros((1, 4), dtype=torch.long, device=causal.device)
    with aside(module):
        try:
            output = module(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **{SWITCH: True})
        except RuntimeError:  # with a learned prefix the mask is longer than what the routers see
            return False
    return getattr(output, "aux_loss", None) is not None


def settle(trainer: Any, module: Any, progress: Progress, *, fused: bool) -> None:
    """Report the loss that a trainer of TRL adds to balance the experts, and switch it off where it cannot be computed.

    `fused`: whether the trainer uses TRL's own output layer.
    """
    if not getattr(trainer, "aux_loss_enabled", False):
        return
    if balanced(module) and (not fused or fused_head.balances(module)):
        weight = getattr(trainer, "router_aux_loss_coef", None) or getattr(trainer, "aux_loss_coef", 0.0)
        progress.say(f"a loss that balances the experts is added to the training loss, with weight {weight:g}")
        return
    trainer.aux_loss_enabled = False
    kind = type(causal_model(module)).__name__
    library = "TRL" if balanced(module) else "transformers"
    progress.say(f"no loss balances the experts: {library} does not compute one for {kind}")

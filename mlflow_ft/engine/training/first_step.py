"""Check that a training trains something: weights without a gradient would be saved untrained, without an error."""

from __future__ import annotations

import math
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mlflow_ft.errors import RefusedError


class GradientCallback(TrainerCallback):
    """Stops training if no weight has a gradient in the first step, or if the learning rate was 0 in all of them.

    Some gradients may be zero: LoRA's A has none while B is 0. All may be zero only if sampled answers got equal
    rewards (`zero_is_right`). Gradients that are sharded over processes (DeepSpeed, FSDP) are not checked.
    """

    def __init__(self, *, zero_is_right: bool = False) -> None:
        self._zero_is_right = zero_is_right
        self._seen = False
        self._highest: float | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step:  # a resumed training has learned before
            self._highest = math.inf

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._highest == 0:
            raise RefusedError(
                f"nothing was trained: the learning rate was 0 in all {state.global_step:,} steps",
                hint="lower training.warmup_steps, or check lr_scheduler_kwargs in objective.options",
            )

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        if (optimizer := more.get("optimizer")) is not None:
            self._highest = max(self._highest or 0.0, *(float(group["lr"]) for group in optimizer.param_groups))
        if self._seen or args.deepspeed or args.fsdp:
            return
        self._seen = True
        trained = [parameter for parameter in more["model"].parameters() if parameter.requires_grad]
        gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
        if gradients and (self._zero_is_right or any(bool(gradient.any()) for gradient in gradients)):
            return
        raise RefusedError(
            f"nothing is trained: after the first step the gradients of all {len(trained)} weight tensors are "
            f"{'zero' if gradients else 'missing'}",
            hint="check adapter.target_modules, adapter.layers_to_transform and, for a custom model, its code",
        )

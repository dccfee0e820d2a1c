"""Check that the first step trains something: weights without a gradient would be saved untrained, without an error."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mlflow_ft.errors import RefusedError


class GradientCallback(TrainerCallback):
    """Stops training if no weight has a gradient in the first step.

    Some gradients may be zero: LoRA's A has none while B is 0. All may be zero only if sampled answers got equal
    rewards (`zero_is_right`). Gradients that are sharded over processes (DeepSpeed, FSDP) are not checked.
    """

    def __init__(self, *, zero_is_right: bool = False) -> None:
        self._zero_is_right = zero_is_right
        self._seen = False

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
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

"""Whether the first step trains anything: what gets no gradient would be saved as it began, without an error."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mlflow_ft.errors import RefusedError


class GradientCallback(TrainerCallback):
    """Refuses a training in whose first step no weight has a gradient.

    Some zeros are right: LoRA's A has none while B is 0. All of them are not, but where answers are sampled and
    rewarded alike (`zero_is_right`). Where the gradients are spread over processes, a part says nothing.
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
            f"nothing is trained: after the first step the {'gradient of every' if gradients else 'gradients of all'} "
            f"{len(trained)} weight tensors {'is zero' if gradients else 'are missing'}",
            hint="check adapter.target_modules, adapter.layers_to_transform and, for a custom model, its code",
        )

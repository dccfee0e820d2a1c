"""What AdaLoRA needs at every step, and trainers do not do: reallocate ranks, and keep the factors orthogonal.

Zhang et al., "Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning", arXiv 2303.10512. PEFT implements both,
but never calls the first, and adds the second only to a loss that the model itself computes.
"""

from __future__ import annotations

from typing import Any

import torch
from peft import AdaLoraModel
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mlflow_ft.errors import ConfigError
from mlflow_ft.values import Job

WARM_UP, SETTLED = 0.1, 0.3
"""Default shares of the steps with all ranks at the beginning, and with the final ranks at the end."""
SUMS = ("ipt", "exp_avg_ipt", "exp_avg_unc")
"""What PEFT's allocator adds up from step to step."""


class AllocateCallback(TrainerCallback):
    """Sets AdaLoRA's number of steps, keeps its factors orthogonal, and reduces its ranks."""

    of_weights = True
    """The ranks belong to the weights of their step."""

    def __init__(self, job: Job) -> None:
        self._given = job.config.adapter.options or {}
        self._tuner: AdaLoraModel | None = None
        self._loaded: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: the importance of every rank so far, and the ranks that were kept."""
        if self._tuner is None:
            return {}
        allocator = self._tuner.rankallocator
        return {"ranks": _settings(self._tuner).rank_pattern or {}} | {name: getattr(allocator, name) for name in SUMS}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        if self._tuner is None or not state:
            return
        _settings(self._tuner).rank_pattern = state["ranks"]
        for name in SUMS:
            getattr(self._tuner.rankallocator, name).update(state[name])

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        self._tuner = tuner = _tuner(more["model"])
        settings = _settings(tuner)
        settings.total_step = steps = state.max_steps
        if "tinit" not in self._given:
            settings.tinit = int(WARM_UP * steps)
        if "tfinal" not in self._given:
            settings.tfinal = int(SETTLED * steps)
        if steps - settings.tfinal < max(settings.tinit + 1, 2):  # the first step only measures
            raise ConfigError(
                f"adalora: tinit {settings.tinit} and tfinal {settings.tfinal} leave none of the {steps} steps for "
                "reducing ranks",
                hint="lower them in adapter.options, or train longer",
            )
        tuner.rankallocator.set_total_step(steps)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        tuner = _tuner(more["model"])
        weight = _settings(tuner).orth_reg_weight
        for parameter, gradient in orthogonality(tuner):
            parameter.grad = gradient * weight if parameter.grad is None else parameter.grad + gradient * weight

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        _tuner(more["model"]).update_and_allocate(state.global_step + 1)


def orthogonality(tuner: AdaLoraModel) -> list[tuple[torch.nn.Parameter, torch.Tensor]]:
    """The gradient of the mean of |A A' - I| and |B' B - I| (Frobenius) over all factors, equation 4 of the paper."""
    factors = [
        (parameter, "lora_A" in name)
        for name, parameter in tuner.named_parameters()
        if parameter.requires_grad and ("lora_A" in name or "lora_B" in name)
    ]
    with torch.enable_grad():
        parts = []
        for factor, is_a in factors:
            product = factor @ factor.T if is_a else factor.T @ factor
            parts.append(torch.linalg.matrix_norm(product - torch.eye(len(product), device=product.device)))
        gradients = torch.autograd.grad(torch.stack(parts).mean(), [factor for factor, _ in factors])
    return [(factor, gradient) for (factor, _), gradient in zip(factors, gradients, strict=True)]


def is_adalora(module: Any) -> bool:
    """Whether the model has an AdaLoRA adapter."""
    return isinstance(getattr(module, "base_model", None), AdaLoraModel)


def _settings(tuner: AdaLoraModel) -> Any:
    return tuner.peft_config[tuner.trainable_adapter_name]


def _tuner(module: Any) -> AdaLoraModel:
    while not is_adalora(module):
        module = module.module  # unwrap, for example DistributedDataParallel
    tuner: AdaLoraModel = module.base_model
    return tuner

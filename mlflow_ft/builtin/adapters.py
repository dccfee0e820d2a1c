"""The adapters that ship inside."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlflow_ft import Adapter, hookimpl

if TYPE_CHECKING:
    from mlflow_ft.job import Job, Model


def no_adapter(job: Job, model: Model) -> None:
    """Every weight trains."""


def lora(job: Job, model: Model) -> Any:
    """LoRA: W + (lora_alpha / r) B A; only A (r x in) and B (out x r) train."""
    from peft import LoraConfig, TaskType

    settings = job.config.adapter
    return LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=settings.r,
        lora_alpha=2 * settings.r if settings.lora_alpha is None else settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=settings.target_modules,
        use_rslora=settings.use_rslora,
    )


@hookimpl
def register_adapters() -> list[Adapter]:
    return [
        Adapter(name="none", summary="no adapter: every weight trains", configure=no_adapter),
        Adapter(
            name="lora",
            summary="low-rank updates, scaled by lora_alpha / r",
            configure=lora,
            paper="https://arxiv.org/abs/2106.09685",
        ),
    ]

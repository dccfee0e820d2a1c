"""Save the model at every evaluation, without any effect on the training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mlflow_ft.engine.aside import aside
from mlflow_ft.engine.hub import quiet_transformers
from mlflow_ft.engine.training import starts
from mlflow_ft.engine.training.callbacks import HELD_OUT, SKIPPED, curve
from mlflow_ft.values import Checkpointer


class CheckpointCallback(TrainerCallback):
    """Passes the model to `keep` at every evaluation except the first, which is of the untrained model."""

    def __init__(self, keep: Checkpointer) -> None:
        self._keep = keep

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        metrics: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        if not state.is_world_process_zero or model is None or not state.global_step:
            return
        numbers = {
            curve(name): float(value)
            for name, value in (metrics or {}).items()
            if name.startswith(HELD_OUT) and name not in SKIPPED and isinstance(value, int | float)
        }
        with aside(model):
            self._keep(model, state.global_step, numbers)


def save(module: Any, folder: Path, *, beginning: Path, weights: bool = True) -> Path:
    """Save the current model, an adapter or all of it; `beginning` is the job's folder.

    Without `weights`, only the configuration of a model without an adapter is saved.

    Returns:
        The folder that was written: `folder/adapter` or `folder/model`.
    """
    adapter = hasattr(module, "peft_config")
    target = folder / ("adapter" if adapter else "model")
    cached = module.config.use_cache
    module.config.use_cache = True
    try:
        with quiet_transformers():
            if adapter:
                starts.save(module, target, beginning=beginning, last=False)
            else:
                module.save_pretrained(target, **({} if weights else {"state_dict": {}}))
    finally:
        module.config.use_cache = cached
    return target

"""The setting of a run's configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mlflow_ft import processes
from mlflow_ft.config.schema import Config
from mlflow_ft.engine import hardware
from mlflow_ft.engine.memory.values import Setting
from mlflow_ft.engine.models import architecture, own_quantization, skeleton
from mlflow_ft.errors import FineTuneError
from mlflow_ft.registry import Registry
from mlflow_ft.values import BaseModel, Model


@dataclass(frozen=True, kw_only=True)
class _Planned:
    """As much of a job as adapters need for their PEFT config."""

    config: Config
    registry: Registry


def setting_of(config: Config, registry: Registry, base: BaseModel, **changes: Any) -> Setting:
    """The setting of a configuration on this machine; `changes` replace fields of it.

    Raises:
        UnsuitedError: the adapter cannot be configured without weights.
    """
    training, rollout = config.training, config.rollout
    trainer, adapter = registry.trainers[config.method], registry.adapters[config.adapter.kind]
    own = own_quantization.of(base.path)
    values: dict[str, Any] = {
        "model": base.path,
        "task": trainer.task,
        "method": _objective(config.method, trainer.task),
        "adapter": _peft_config(config, registry, base),
        "quantize": own.held if own and own.held else config.model.quantize,
        "double_quant": config.model.double_quant,
        "dtype": str(hardware.compute_dtype(config.model.dtype)).removeprefix("torch."),
        "batch": training.batch_size,
        "length": config.data.max_length,
        "at_once": hardware.tokens_at_once(config, trainer),
        "accumulation": training.gradient_accumulation_steps,
        "checkpointing": hardware.checkpointing(config),
        "recomputing": hardware.recomputing(config),
        "fused": hardware.fused(config),
        "optimizer": hardware.optimizer(config),
        "attention": config.model.attn_implementation,
        "strategy": config.launch.strategy,
        "processes": processes_of(config),
        "eval_batch": config.evaluation.per_device_eval_batch_size,
        "new_tokens": max(config.evaluation.max_new_tokens, rollout.max_completion_length),
        "generations": rollout.num_generations,
        "reference": not config.objective.precompute_ref_log_probs,
        "merges": adapter.merges and "merged" in (config.package.packagers or ("merged",)),
    }
    return Setting(**values | changes)


def processes_of(config: Config) -> int:
    """The processes that train together: those that are there, or else those that the configuration asks for."""
    there = processes.place().size
    if there > 1 or config.launch.launcher == "local":
        return there
    return hardware.processes(config.launch)


def _objective(method: str, task: str) -> str:
    """The method's name as in `Setting.method`."""
    if task == "score":
        return "reward"
    return {"simpo": "cpo"}.get(method, method)


def _peft_config(config: Config, registry: Registry, base: BaseModel) -> Any:
    adapter = registry.adapters[config.adapter.kind]
    if adapter.name == "none":
        return None
    task = registry.trainers[config.method].task
    try:
        model = Model(base=base, module=architecture.build(base.path, task=task), trainable=0, total=0)
        planned: Any = _Planned(config=config, registry=registry)
        peft_config = adapter.configure(planned, model)
    except (FineTuneError, *skeleton.FAILURES) as error:
        raise skeleton.UnsuitedError(f"the adapter cannot be configured without weights: {error}") from error
    if peft_config is not None and hasattr(peft_config, "init_lora_weights"):
        peft_config.init_lora_weights = True  # the others read weights or rows; the sizes are the same
    return peft_config

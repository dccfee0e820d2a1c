"""What a way to train takes: the memory of each device, with the largest batch that fits, and the time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlflow_ft.config.schema import Config
from mlflow_ft.operations.planning import duration
from mlflow_ft.registry import Registry
from mlflow_ft.values import BaseModel, Choice, Hardware, Situation
from mlflow_ft.values.planning import Cost

if TYPE_CHECKING:
    from mlflow_ft.engine.memory.values import Estimate, Setting

USABLE, USABLE_ON_CPU = 0.93, 0.8
"""The share of the memory that a training can use. On a GPU the rest is for CUDA itself and for fragmentation."""
LARGEST_BATCH = 16
EVALUATION = "evaluation"


def available(hardware: Hardware) -> int:
    """Bytes of each device that a training can use."""
    return round(hardware.memory * 1e9 * (USABLE if hardware.gpus else USABLE_ON_CPU))


def processes(choice: Choice, hardware: Hardware) -> int:
    """How many processes train."""
    return 1 if choice.strategy == "local" else hardware.gpus


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Estimates what ways to train take, for one base model."""

    base: BaseModel
    registry: Registry
    situation: Situation

    def cost(self, choice: Choice, config: Config, *, step_rows: int) -> tuple[Cost, int]:
        """The cost with the largest batch that fits, and with how many rows to evaluate; the smallest if none fits.

        `step_rows` are the rows per optimizer step over all devices.
        """
        hardware = self.situation.hardware
        count, room = processes(choice, hardware), available(hardware)
        per_device = max(1, step_rows // count)
        batch, eval_batch, estimate = self._batch(choice, config, per_device)
        cost = Cost(
            memory=estimate.peak,
            available=room,
            parts=dict(estimate.largest.parts),
            phase=estimate.phase,
            hours=duration.hours(
                self.situation, choice, config, processes=count, checkpointing=checkpoints(hardware, config)
            ),
            batch=batch,
            accumulation=max(1, per_device // batch),
        )
        return cost, eval_batch

    def _batch(self, choice: Choice, config: Config, per_device: int) -> tuple[int, int, Estimate]:
        """The largest batches that fit, for training and evaluation, with their estimate; 1 and 1 if none does."""
        room = available(self.situation.hardware)
        smallest = self.estimate(choice, config, batch=1, eval_batch=1)
        if smallest.peak > room:
            return 1, 1, smallest
        batch = 2 ** (min(LARGEST_BATCH, per_device).bit_length() - 1)
        eval_batch = config.evaluation.per_device_eval_batch_size
        while True:
            estimate = self.estimate(choice, config, batch=batch, eval_batch=eval_batch)
            if estimate.peak <= room:
                return batch, eval_batch, estimate
            if estimate.phase == EVALUATION:
                eval_batch = max(1, eval_batch // 4)
            else:
                batch = max(1, batch // 2)

    def estimate(self, choice: Choice, config: Config, *, batch: int, eval_batch: int) -> Estimate:
        """The memory on each device of the situation, which need not be this machine's."""
        from mlflow_ft.engine.memory import configured, estimating

        hardware = self.situation.hardware
        strategy = choice.strategy
        setting: Setting = configured.setting_of(
            config,
            self.registry,
            self.base,
            batch=batch,
            eval_batch=eval_batch,
            strategy=strategy,
            processes=processes(choice, hardware),
            dtype=dtype(hardware, config),
            checkpointing=checkpoints(hardware, config),
            optimizer=optimizer(hardware, config),
        )
        return estimating.estimate(setting)


def dtype(hardware: Hardware, config: Config) -> str:
    """The type that a training computes in there; a GPU is taken to support bfloat16."""
    if config.model.dtype != "auto":
        return config.model.dtype
    return "bfloat16" if hardware.gpus else "float32"


def checkpoints(hardware: Hardware, config: Config) -> bool:
    """Whether activations are recomputed there."""
    chosen = config.training.gradient_checkpointing
    return hardware.gpus > 0 if chosen is None else chosen


def optimizer(hardware: Hardware, config: Config) -> str:
    """The optimizer there."""
    if config.training.optim != "auto":
        return config.training.optim
    return "paged_adamw_8bit" if hardware.gpus and config.model.quantize != "none" else "adamw_torch_fused"

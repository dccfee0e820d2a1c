"""What a way to train takes: the memory of each device, with the largest batch that fits, and the time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from mlflow_ft.config.schema import Config
from mlflow_ft.operations.planning import duration
from mlflow_ft.registry import Registry
from mlflow_ft.values import BaseModel, Choice, Hardware, Situation
from mlflow_ft.values.planning import Cost

if TYPE_CHECKING:
    from mlflow_ft.engine.memory.values import Estimate

USABLE, USABLE_ON_CPU = 0.93, 0.8
"""The share of the memory that a training can use. On a GPU the rest is for CUDA itself and for fragmentation."""
LARGEST_BATCH = 16
TRAINING: Final = "training"
EVALUATION: Final = "evaluation"
MERGE: Final = "merge"
STATE, OPTIMIZER, FLOAT32, HALF = 16, 12, 4, 2
"""Bytes of a weight that trains: with its gradient and AdamW's state; these two alone; in float32; in 16 bits."""
HELD = {"qlora": 0.5}
"""Bytes of a weight of the base, where it is quantised."""


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

    @property
    def room(self) -> int:
        """Bytes of each device that a training can use."""
        return available(self.situation.hardware)

    def cost(self, choice: Choice, config: Config, *, per_device: int) -> Cost:
        """The cost with the largest batch that fits, or with the smallest if none does.

        `per_device` are the rows of a device in an optimizer step.
        """
        from mlflow_ft.engine import hardware as machine

        hardware = self.situation.hardware
        least = self._least(choice, hardware)
        if least > self.room:
            parts, phase, batch, eval_batch, merges = {"weights and optimizer": least}, TRAINING, 1, 1, False
        else:
            batch, eval_batch, estimate = self._batch(choice, config, per_device)
            phases = [phase for phase in estimate.phases if phase.name != MERGE]
            largest = max(phases, key=lambda phase: phase.total)
            parts, phase = dict(largest.parts), largest.name
            merges = all(phase.total <= self.room for phase in estimate.phases if phase.name == MERGE)
        count = processes(choice, hardware)
        checkpointing = machine.checkpointing(config, gpu=hardware.gpus > 0)
        spent = duration.hours(self.situation, choice, config, processes=count, checkpointing=checkpointing)
        return Cost(
            memory=sum(parts.values()),
            available=self.room,
            parts=parts,
            phase=phase,
            hours=spent,
            batch=batch,
            accumulation=max(1, round(per_device / batch)),
            eval_batch=eval_batch,
            merges=merges,
            at_least=least > self.room,
        )

    def _least(self, choice: Choice, hardware: Hardware) -> int:
        """Bytes that weights and optimizer alone take on each device: what needs more than there is needs no trace."""
        from mlflow_ft.engine.memory import sharding

        weights, count = self.situation.parameters, processes(choice, hardware)
        if choice.weights == "full":
            parts = sharding.SHARDED.get(choice.strategy, ())
            sharded = STATE if "weights" in parts else OPTIMIZER if parts else 0
            return round(max(weights * (STATE - sharded + sharded / count), weights * FLOAT32))
        held = HELD.get(choice.weights, HALF if hardware.gpus else FLOAT32)
        return round(weights * held)

    def _batch(self, choice: Choice, config: Config, per_device: int) -> tuple[int, int, Estimate]:
        """The largest batches that fit, for training and evaluation, with their estimate; 1 and 1 if none does.

        Memory grows linearly with a batch, or faster: between two batches it is at most what a line between them says.
        """
        batch = 2 ** (min(LARGEST_BATCH, per_device).bit_length() - 1)
        eval_batch = config.evaluation.per_device_eval_batch_size
        large = self.estimate(choice, config, batch=batch, eval_batch=eval_batch, per_device=per_device)
        if self._fits(large):
            return batch, eval_batch, large
        small = self.estimate(choice, config, batch=1, eval_batch=1, per_device=per_device)
        if not self._fits(small):
            return 1, 1, small
        batch = self._largest(small[TRAINING].total, large[TRAINING].total, batch)
        eval_batch = self._largest(small[EVALUATION].total, large[EVALUATION].total, eval_batch)
        return (
            batch,
            eval_batch,
            self.estimate(choice, config, batch=batch, eval_batch=eval_batch, per_device=per_device),
        )

    def _fits(self, estimate: Estimate) -> bool:
        return all(phase.total <= self.room for phase in estimate.phases if phase.name != MERGE)

    def _largest(self, of_one: int, of_all: int, batch: int) -> int:
        """The largest half, quarter ... of a batch that fits, by a line between the memory of 1 row and of all."""
        while batch > 1 and of_all > self.room:
            half = max(1, batch // 2)
            of_all = of_one + (of_all - of_one) * (half - 1) // max(1, batch - 1)
            batch = half
        return batch

    def estimate(self, choice: Choice, config: Config, *, batch: int, eval_batch: int, per_device: int) -> Estimate:
        """The memory on each device of the situation, which need not be this machine's."""
        from mlflow_ft.engine import hardware as machine
        from mlflow_ft.engine.memory import configured, estimating

        hardware = self.situation.hardware
        setting = configured.setting_of(
            config,
            self.registry,
            self.base,
            batch=batch,
            accumulation=max(1, round(per_device / batch)),
            eval_batch=eval_batch,
            strategy=choice.strategy,
            processes=processes(choice, hardware),
            dtype=dtype(hardware, config),
            checkpointing=machine.checkpointing(config, gpu=hardware.gpus > 0),
            at_once=machine.tokens_at_once(config, self.registry.trainers[config.method], gpu=hardware.gpus > 0)
            if choice.strategy == "local"
            else None,
            optimizer=machine.optimizer(config, gpu=hardware.gpus > 0),
        )
        return estimating.estimate(setting)


def dtype(hardware: Hardware, config: Config) -> str:
    """The type that a training computes in there; a GPU is taken to support bfloat16."""
    if config.model.dtype != "auto":
        return config.model.dtype
    return "bfloat16" if hardware.gpus else "float32"

"""The memory that a run needs, compared with what the machine has, before weights are loaded."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlflow_ft.config.schema import Config
from mlflow_ft.errors import MEMORY_REMEDIES, ResourceError
from mlflow_ft.job import Job
from mlflow_ft.registry import Registry
from mlflow_ft.values import BaseModel, Data
from mlflow_ft.values.inspected import Caution

if TYPE_CHECKING:
    from mlflow_ft.engine.memory.values import Estimate, Phase
    from mlflow_ft.tracking.past_memory import Calibration

GIB = 2**30
MEMORY_TAG = "mlflow_ft.memory"
"""Tag with the estimate by parts."""
BEYOND = 1.1
"""A run is refused if it needs more than this times the memory: estimates are off by up to a tenth."""
SHOWN = 0.01
"""The smallest share of the memory that a part is named with."""
SHORT = 256
"""`data.max_length` up to which rows are not shortened further."""
ALWAYS = ("weights", "adapter", "gradients", "optimizer", "reference", "communication")
"""Parts that do not depend on the length of the rows."""


@dataclass(frozen=True, kw_only=True)
class Room:
    """What the device has, and how estimates for it have been off."""

    bytes: int
    device: str
    calibration: Calibration

    def lacks(self, size: float) -> bool:
        """Whether a calibrated size is more than there is, by more than estimates are off."""
        return size * self.calibration.factor > BEYOND * self.bytes


def room(config: Config, experiment_id: str | None) -> Room:
    """The room of a process on this machine, calibrated by the runs of an experiment if the store answers."""
    from mlflow_ft.engine.memory import measuring
    from mlflow_ft.errors import TrackingError
    from mlflow_ft.tracking.past_memory import Calibration, calibration

    known = Calibration()
    with suppress(TrackingError):
        known = calibration(experiment_id, measuring.device_kind())
    return _room(config, known)


def _room(config: Config, known: Calibration) -> Room:
    from mlflow_ft.engine.memory import configured, measuring

    sharing = -(-configured.processes_of(config) // config.launch.num_machines)
    return Room(bytes=measuring.available(sharing=sharing), device=measuring.device_kind(), calibration=known)


def estimate(config: Config, registry: Registry, base: BaseModel, **changes: Any) -> Estimate | None:
    """The estimate for a configuration; None for a model that cannot be run without weights.

    `changes` replace fields of the setting.
    """
    from mlflow_ft.engine.memory import configured, estimating
    from mlflow_ft.engine.models.skeleton import UnsuitedError

    try:
        return estimating.estimate(configured.setting_of(config, registry, base, **changes))
    except UnsuitedError:
        return None


def check(config: Config, registry: Registry, base: BaseModel, here: Room) -> str | Caution:
    """Compare the estimate for rows of `data.max_length` with the room; how long the rows are is not known yet.

    Raises:
        ResourceError: what rows of any length need is more than there is.
    """
    needs = estimate(config, registry, base)
    if needs is None:
        return "not estimated: this model cannot be run without weights"
    if config.launch.sharded:
        check_whole(config, needs, here)
    fixed = Fixed.of(needs)
    if here.lacks(fixed.size):
        raise too_little(fixed.described, here, hint=remedies(config, registry, base, here))
    if here.lacks(needs.peak):
        return Caution(
            message=f"with rows of {config.data.max_length:,} tokens, {described(needs.largest, here)}, and "
            f"{here.device} has {gib(here.bytes)}",
            remedy=remedies(config, registry, base, here),
        )
    return f"{described(needs.largest, here)} of {gib(here.bytes)}"


def check_whole(config: Config, needs: Estimate, here: Room) -> None:
    """Refuse a model that fits on no single device, although its shares would.

    Raises:
        ResourceError: it does not fit.
    """
    parts = {name: size for name, size in needs["evaluation"].parts.items() if name in ("weights", "adapter")}
    if not here.lacks(sum(parts.values())):
        return
    raise too_little(
        f"with {config.launch.strategy} each process loads the whole model before it keeps its share, and evaluation "
        f"and packaging have it whole on one device ({_listed(parts)})",
        here,
        hint="use a smaller model, or a quantised copy in each process: --adapter.kind lora --model.quantize nf4 "
        "--launch.strategy ddp",
    )


@dataclass(frozen=True, kw_only=True)
class Fixed:
    """What the training needs for rows of any length."""

    size: int
    described: str

    @classmethod
    def of(cls, needs: Estimate) -> Fixed:
        parts = {name: size for name, size in needs["training"].parts.items() if name in ALWAYS}
        return cls(size=sum(parts.values()), described=f"training needs {_listed(parts)} for rows of any length")


def refuse(job: Job, needs: Estimate, here: Room, base: BaseModel) -> None:
    """Refuse a run whose own rows need more memory than there is, before its weights are loaded.

    Raises:
        ResourceError: they do.
    """
    if here.lacks(needs["training"].total):
        hint = remedies(job.config, job.registry, base, here)
        raise too_little(described(needs["training"], here), here, hint=hint)


def too_little(needed: str, here: Room, *, hint: str) -> ResourceError:
    """The error for a run that does not fit."""
    return ResourceError(f"too little memory: {needed}, and {here.device} has {gib(here.bytes)}", hint=hint)


def described(phase: Phase, here: Room) -> str:
    """A phase's memory in words: `training needs about 7.3 GiB (weights 2.1, activations 4.0 ...)`."""
    total = phase.total * here.calibration.factor
    known = f"; {here.calibration}" if here.calibration.runs else ""
    return f"{phase.name} needs about {gib(total)} ({_listed(phase.parts)}{known})"


def _listed(parts: Any) -> str:
    largest = sorted(parts.items(), key=lambda part: -part[1])
    least = SHOWN * sum(parts.values())
    return ", ".join(f"{name} {gib(size)}" for name, size in largest if size >= least)


def gib(size: float) -> str:
    """Bytes in words: `7.3 GiB`, `512 MiB`."""
    return f"{size / GIB:,.1f} GiB" if size >= GIB else f"{size / 2**20:,.0f} MiB"


def remedies(config: Config, registry: Registry, base: BaseModel, here: Room) -> str:
    """What to change, in order of cost, with what the run would then need; the first that fits ends the list."""
    tried = []
    for words, changes in _changes(config):
        needs = estimate(config, registry, base, **changes)
        if needs is None:
            return MEMORY_REMEDIES
        size = needs.peak * here.calibration.factor
        tried.append(f"{words} ({gib(size)})")
        if size <= here.bytes:
            return f"in order of cost, with what it then needs: {'; '.join(tried)}"
    return f"none of these is enough: {'; '.join(tried)}; use a smaller model, or share it over several GPUs"


def _changes(config: Config) -> Iterator[tuple[str, dict[str, Any]]]:
    """Remedies in order of cost, each on top of those before it."""
    training, changes = config.training, dict[str, Any]()
    rows = training.batch_size * training.gradient_accumulation_steps
    if training.batch_size > 1:
        changes |= {"batch": 1, "accumulation": rows, "eval_batch": 1}
        smallest = {
            "training.per_device_train_batch_size": 1,
            "training.gradient_accumulation_steps": rows,
            "evaluation.per_device_eval_batch_size": 1,
        }
        yield " ".join(f"--{name} {value}" for name, value in smallest.items()), dict(changes)
    if training.gradient_checkpointing is not True:
        changes["checkpointing"] = True
        yield "--training.gradient_checkpointing true", dict(changes)
    if config.data.max_length > SHORT:
        changes["length"] = config.data.max_length // 2
        yield f"--data.max_length {config.data.max_length // 2}", dict(changes)
    if config.model.quantize != "nf4" and config.adapter.kind != "none":
        changes["quantize"] = "nf4"
        yield "--model.quantize nf4", dict(changes)


# --- in a run


def estimate_of_rows(job: Job, data: Data, base: BaseModel, *, batch: int, **changes: Any) -> Estimate | None:
    """The estimate for a batch of the job's longest rows."""
    from mlflow_ft.engine.memory import rows

    fields = rows.longest(job.config, data, batch=batch)
    return estimate(job.config, job.registry, base, **fields, **changes)


@contextmanager
def measured(job: Job, data: Data, base: BaseModel) -> Iterator[None]:
    """Around loading and training: refuse what does not fit, and log predicted and measured memory.

    Raises:
        ResourceError: the rows need more memory than there is; nothing was loaded.
    """
    from mlflow_ft.engine.memory import measuring
    from mlflow_ft.tracking import past_memory

    needs = estimate_of_rows(job, data, base, batch=job.config.training.batch_size)
    if needs is not None:
        here = _room(job.config, past_memory.Calibration())
        refuse(job, needs, here, base)
        job.run.set_tags({MEMORY_TAG: described(needs["training"], here)})
        job.run.metrics({past_memory.PREDICTED: needs["training"].total / GIB})
    importlib.import_module("mlflow_ft.engine.training.loop")  # so that its libraries count as there before
    meter = measuring.Meter()
    yield
    job.run.metrics({past_memory.MEASURED: meter.peak() / GIB})
    job.run.set_tags({past_memory.DEVICE_TAG: measuring.device_kind()})

"""Rules that choose how a training is spread over processes."""

from __future__ import annotations

from mlflow_ft import Advice, PlanRule, Situation
from mlflow_ft.builtin.plan_rules.weights import FEW_ROWS


def alone(situation: Situation) -> Advice:
    """One device."""
    return Advice(strategies=("local",), reason="one device: one process")


def hardly_worth_it(situation: Situation) -> Advice:
    """Several GPUs, but few rows."""
    return Advice(
        strategies=("local", "fsdp", "deepspeed-zero3"),
        reason=f"{situation.rows:,} rows take minutes on one GPU; the others are needed only if the model does not fit",
    )


def spread(situation: Situation) -> Advice:
    """Several GPUs."""
    return Advice(
        strategies=("ddp", "fsdp", "deepspeed-zero3"),
        reason=f"{situation.hardware.gpus} GPUs: a copy on each (ddp) exchanges least, shards (fsdp) need less memory",
    )


RULES = (
    PlanRule(
        name="one-device",
        summary="one GPU, or the CPU: one process",
        source="https://huggingface.co/docs/transformers/perf_train_gpu_many",
        applies=lambda situation: situation.hardware.gpus <= 1,
        advise=alone,
    ),
    PlanRule(
        name="few-rows-one-gpu",
        summary=f"several GPUs and under {FEW_ROWS:,} rows: one process, or shards where the model does not fit",
        source="https://huggingface.co/docs/transformers/perf_train_gpu_many",
        applies=lambda situation: situation.hardware.gpus > 1 and situation.rows < FEW_ROWS,
        advise=hardly_worth_it,
    ),
    PlanRule(
        name="several-gpus",
        summary="several GPUs: ddp where a copy fits on each, else fsdp",
        source="https://arxiv.org/abs/2304.11277",
        applies=lambda situation: situation.hardware.gpus > 1 and situation.rows >= FEW_ROWS,
        advise=spread,
    ),
)
"""The rules of this module, in the order in which they are asked."""

"""Rules that choose what trains (an adapter, on which base, or every weight) by the data's size and the memory."""

from __future__ import annotations

from mlflow_ft import Advice, PlanRule, Situation

FEW_ROWS = 1_000
MANY_ROWS = 100_000
SMALL_GPU = 24
"""GB of a GPU below which the base is quantised."""
LARGE_GPU = 80
SMALL_BASE = 0.25
"""The share of a GPU's memory up to which a base in 16 bits leaves room enough."""
IN_16_BITS = 2


def little_data(situation: Situation) -> Advice:
    """Under 1,000 rows."""
    return Advice(
        weights=("prompt",),
        reason=f"{situation.rows:,} rows are under {FEW_ROWS:,}: a learned prompt has few weights to overfit with",
        before="try a prompt with examples first (few-shot): it may be enough, and there is nothing to train",
        elsewhere={"few-shot": "nothing to train; every request is longer by the examples"},
    )


def much_data(situation: Situation) -> Advice:
    """Over 100,000 rows."""
    devices = "spread over the GPUs" if situation.hardware.gpus > 1 else "better on several GPUs"
    return Advice(
        weights=("full",),
        reason=f"{situation.rows:,} rows are over {MANY_ROWS:,}: enough to train every weight, {devices}",
    )


def cpu(situation: Situation) -> Advice:
    """No GPU."""
    return Advice(
        weights=("lora", "qlora", "full"),
        reason="without a GPU, an adapter on the unquantised base is fastest; quantised only if it must be",
    )


def small_gpu(situation: Situation) -> Advice:
    """A GPU with less than 24 GB."""
    is_small = IN_16_BITS * situation.parameters < SMALL_BASE * situation.hardware.memory * 1e9
    also = "; this base is small, so lora without quantisation is as good a choice" if is_small else ""
    return Advice(
        weights=("qlora", "lora", "full"),
        reason=f"{situation.hardware.memory:.0f} GB are under {SMALL_GPU} GB: LoRA on a base in 4 bits{also}",
    )


def large_gpu(situation: Situation) -> Advice:
    """One GPU with 24 GB or more."""
    return Advice(
        weights=("lora", "qlora", "full"),
        reason=f"{situation.hardware.memory:.0f} GB: LoRA on the base in 16 bits, or in 4 bits where that does not fit",
    )


def large_gpus(situation: Situation) -> Advice:
    """Several GPUs with 24 GB or more each."""
    return Advice(
        weights=("lora", "full", "qlora"),
        reason=f"{situation.hardware.gpus} GPUs with {situation.hardware.memory:.0f} GB: LoRA, or every weight",
    )


RULES = (
    PlanRule(
        name="few-rows",
        summary=f"under {FEW_ROWS:,} rows to imitate: few-shot, or prompt tuning",
        source="https://arxiv.org/abs/2005.14165, https://arxiv.org/abs/2104.08691",
        applies=lambda situation: situation.rows < FEW_ROWS and situation.aim == "instruct",
        advise=little_data,
    ),
    PlanRule(
        name="many-rows",
        summary=f"over {MANY_ROWS:,} rows on GPUs: every weight trains, on several GPUs",
        source="https://arxiv.org/abs/2405.09673",
        applies=lambda situation: situation.rows > MANY_ROWS and situation.hardware.gpus > 0,
        advise=much_data,
    ),
    PlanRule(
        name="no-gpu",
        summary="without a GPU: lora",
        source="https://arxiv.org/abs/2106.09685",
        applies=lambda situation: situation.hardware.gpus == 0,
        advise=cpu,
    ),
    PlanRule(
        name="small-gpu",
        summary=f"GPUs under {SMALL_GPU} GB: qlora",
        source="https://arxiv.org/abs/2305.14314",
        applies=lambda situation: situation.hardware.gpus > 0 and situation.hardware.memory < SMALL_GPU,
        advise=small_gpu,
    ),
    PlanRule(
        name="large-gpu",
        summary=f"one GPU with {SMALL_GPU} to {LARGE_GPU} GB or more: lora",
        source="https://arxiv.org/abs/2106.09685, https://thinkingmachines.ai/blog/lora/",
        applies=lambda situation: situation.hardware.gpus == 1 and situation.hardware.memory >= SMALL_GPU,
        advise=large_gpu,
    ),
    PlanRule(
        name="large-gpus",
        summary=f"several GPUs with {SMALL_GPU} GB or more each: lora, or full",
        source="https://arxiv.org/abs/1910.02054",
        applies=lambda situation: situation.hardware.gpus > 1 and situation.hardware.memory >= SMALL_GPU,
        advise=large_gpus,
    ),
)
"""The rules of this module, in the order in which they are asked."""

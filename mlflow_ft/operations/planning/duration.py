"""How long a training takes, roughly: its floating-point operations over the speed of the hardware."""

from __future__ import annotations

from mlflow_ft.config.schema import Config
from mlflow_ft.values import Choice, Hardware, Situation

PEAKS = {
    "H200": 989,
    "H100": 989,
    "A100": 312,
    "L40S": 362,
    "A6000": 155,
    "4090": 165,
    "3090": 71,
    "A10": 125,
    "L4": 121,
    "T4": 65,
    "V100": 125,
}
"""By a part of the GPU's name, dense 16-bit TFLOP/s of its data sheet; the first that fits counts."""
TYPICAL = ((90, 989), (64, 312), (40, 155), (20, 120), (0, 65))
"""By the least memory in GB, the TFLOP/s of a usual GPU of that size, where its name is not known."""
OF_A_CORE = 0.07
"""TFLOP/s of a CPU core with AVX-512 in float32, measured in large matrix products."""
UTILISATION = 0.35
"""The share of the peak that a training reaches."""
SAMPLING = 0.05
"""The share of the peak that sampling answers reaches: it waits for memory."""
QUANTISED, SHARDED = 0.7, 0.85
"""What dequantising the base, and exchanging shards, leave of the speed."""
PADDED = 0.7
"""The share of the tokens in a batch that are not padding, where rows are not packed."""
COMPARED = ("preference", "unpaired")
REFERENCE = ("dpo", "kto")
SAMPLED = ("grpo", "rloo", "ppo")


def tflops(hardware: Hardware) -> float:
    """The peak of one device."""
    if not hardware.gpus:
        return OF_A_CORE * hardware.cores
    known = next((peak for name, peak in PEAKS.items() if name in hardware.name), None)
    return known or next(peak for least, peak in TYPICAL if hardware.memory >= least)


def hours(situation: Situation, choice: Choice, config: Config, *, processes: int, checkpointing: bool) -> float:
    """Hours of training, without evaluation and packaging.

    A forward pass takes 2 operations per weight and token, the backward pass 4; 2 if the weights are frozen
    (arXiv:2001.08361, section 2.1); recomputed activations take another forward pass.
    """
    weights, training = situation.parameters, config.training
    test_size = config.data.test_size
    rows = situation.rows * (1 - test_size) if test_size < 1 else max(1, situation.rows - test_size)
    tokens = rows * min(situation.row_tokens, config.data.max_length) * training.num_train_epochs
    per_token = 2 + (2 if choice.weights != "full" else 4) + (2 if checkpointing else 0)
    per_token += 2 if choice.method in REFERENCE else 0
    sampled = 0.0
    if choice.method in SAMPLED:
        answers = rows * training.num_train_epochs * config.rollout.num_generations
        sampled = answers * config.rollout.max_completion_length
        tokens = tokens * config.rollout.num_generations + sampled
    elif situation.kind == "preference" and choice.method != "sft":
        tokens *= 2
    tokens /= 1 if config.objective.packing else PADDED
    speed = tflops(situation.hardware) * 1e12 * processes
    speed *= (QUANTISED if config.model.quantize != "none" else 1) * (
        1 if choice.strategy in ("local", "ddp") else SHARDED
    )
    seconds = weights * (tokens * per_token / UTILISATION + sampled * 2 / SAMPLING) / speed
    return seconds / 3600

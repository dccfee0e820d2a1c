"""The setting that an estimate of memory is about, and the estimate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mlflow_ft.rows import Task

Strategy = Literal["local", "ddp", "fsdp", "deepspeed-zero2", "deepspeed-zero3"]
PhaseName = Literal["training", "evaluation", "merge"]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a training is like, as far as its memory depends on it. All sizes are those of one device."""

    model: Path
    """The folder of the base model; only its config.json is read."""
    task: Task = "generate"
    method: str = "sft"
    """sft, dpo, cpo, orpo, kto, reward, grpo, rloo or ppo; others count as sft."""
    adapter: Any = None
    """A PEFT config (`LoraConfig(...)`); None trains every weight."""
    quantize: Literal["none", "int8", "nf4"] = "none"
    double_quant: bool = True
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """The type to compute in. Weights have it too, but are float32 if every weight is trained."""
    batch: int = 8
    """Rows per device and forward pass; pairs for dpo."""
    length: int = 1024
    """The longest row, in tokens."""
    learned: float = 1.0
    """The share of tokens that are learned, whose logits are computed."""
    at_once: int | None = None
    """Tokens of a forward and backward pass at most, in parts of whole rows (`hardware.tokens_at_once`); None for those
    of the batch."""
    accumulation: int = 1
    checkpointing: bool = False
    recomputing: bool = False
    """Whether activations that cost little are computed again (`training.gradient_checkpointing` selective); with
    `checkpointing` they are in any case."""
    fused: bool = False
    """Whether LoRA's part of layers, and gated MLPs, are computed in one step (`adapter.fused`)."""
    optimizer: str = "adamw_torch_fused"
    attention: str | None = None
    """As `model.attn_implementation`."""
    gpu: bool | None = None
    """Whether it is for a GPU; as this machine has, if None."""
    strategy: Strategy = "local"
    processes: int = 1
    eval_batch: int = 16
    new_tokens: int = 128
    """The longest answer that is generated, in evaluation and for the methods that learn from sampled answers."""
    generations: int = 4
    """Answers that are sampled for each prompt (grpo, rloo)."""
    reference: bool = True
    """Whether the reference model of dpo and kto is in memory; False if its log-probabilities are precomputed."""
    reward_model: Path | None = None
    """The folder of the reward model that is in memory (grpo, rloo, ppo)."""
    merges: bool = True
    """Whether the adapter is merged into its base after training."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A phase of a run, and the memory that it needs at most, in bytes by part."""

    name: PhaseName
    parts: Mapping[str, int]
    """weights, adapter, gradients, optimizer, activations, logits, reference, cache ...: what is there at the peak."""

    @property
    def total(self) -> int:
        return sum(self.parts.values())


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The memory that a run needs on each device."""

    phases: Sequence[Phase]
    activations: Mapping[str, int] = field(default_factory=dict)
    """Bytes that layers keep for the backward pass, by kind of layer; part of what training needs."""

    def __getitem__(self, name: PhaseName) -> Phase:
        return next(phase for phase in self.phases if phase.name == name)

    @property
    def largest(self) -> Phase:
        """The phase that needs the most."""
        return max(self.phases, key=lambda phase: phase.total)

    @property
    def peak(self) -> int:
        return self.largest.total

    @property
    def phase(self) -> PhaseName:
        return self.largest.name

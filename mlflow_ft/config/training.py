"""The settings of the optimisation and of its checkpoints."""

from __future__ import annotations

import math
import re
from typing import Annotated, Literal

from pydantic import Field, field_validator

from mlflow_ft.config.section import Section

AUTO = "auto"
USUAL_BATCH = 8
Rows = Annotated[int, Field(ge=1)] | Literal["auto"]


class TrainingSection(Section):
    """The optimisation; names and meanings are those of transformers.TrainingArguments."""

    num_train_epochs: float = Field(default=3.0, gt=0)
    """Passes over the training rows."""
    max_steps: int = -1
    """Stop after this many optimizer steps; -1: after the epochs."""
    learning_rate: float = Field(default=2e-4, gt=0)
    """Peak learning rate."""
    lr_scheduler_type: str = "cosine"
    """Shape of the learning rate after the warm-up."""
    warmup_steps: float = Field(default=0.03, ge=0)
    """Steps of linear warm-up, or their share of all steps when below 1."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Clip gradients to this norm."""
    per_device_train_batch_size: Rows = 8
    """Rows per device and forward pass; auto: the most that fit into memory, with as many forward passes per step as
    keep the step at 8 x `gradient_accumulation_steps` rows."""
    batching: Literal["auto", "tokens", "by_length", "padded"] = "auto"
    """How rows become batches: tokens lays them end to end, without padding; by_length pads rows of similar length;
    padded pads rows in random order; auto is tokens if the model is proved to keep rows apart, else padded."""
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    """Forward passes per optimizer step."""
    gradient_checkpointing: bool | Literal["selective"] | None = None
    """Compute activations again in the backward pass instead of keeping them: true does it for whole layers, selective
    only for what costs little (norms, products of gates), with gradients equal bit for bit, false for nothing. When not
    given, true on a GPU, selective on a CPU."""
    liger: bool | Literal["auto"] = "auto"
    """Liger's kernels for norms and gated MLPs on a GPU; auto uses them where liger-kernel is installed."""
    compile: bool = False
    """Let torch compile each layer of the model; the first steps take minutes longer."""
    optim: str = "auto"
    """Name from transformers; auto is paged_adamw_8bit for a quantised base on a GPU, else adamw_torch_fused."""
    logging_steps: int = Field(default=1, ge=1)
    """Optimizer steps between two points of the training curves."""
    log_checkpoints: bool = False
    """Log the model at every evaluation as a separate logged model, with its held-out loss."""
    eval_steps: float = Field(default=0.25, gt=0)
    """Optimizer steps between two held-out losses, or their share of all steps when below 1."""
    early_stopping: int | None = Field(default=None, ge=1)
    """End the training after this many held-out losses in a row that are not below the lowest one (the patience);
    never when not given. For methods with a held-out loss."""
    load_best: bool | None = None
    """Keep the weights with the lowest held-out loss instead of the last ones: whenever it falls to its lowest, a
    checkpoint is written. When not given, true with `early_stopping`, else false."""
    save_steps: float | str = "5min"
    """Optimizer steps between two checkpoints, their share of all steps when below 1, or minutes (`5min`). A signal
    always writes one."""
    save_total_limit: int = Field(default=2, ge=1)
    """Checkpoints to keep, besides the one with the lowest held-out loss of those at an evaluation."""
    upload_checkpoints: bool = True
    """Upload each checkpoint to the run in the background, so that `resume` works on another machine."""

    @field_validator("max_steps")
    @classmethod
    def _trains(cls, steps: int) -> int:
        if steps != -1 and steps < 1:
            raise ValueError("write a number of steps of at least 1, or -1 to stop after the epochs")
        return steps

    @field_validator("save_steps")
    @classmethod
    def _is_a_distance(cls, steps: float | str) -> float | str:
        _distance(steps)
        return steps

    @property
    def batch_size(self) -> int:
        """Rows per device and forward pass; the usual number while `auto` is not settled yet."""
        return USUAL_BATCH if isinstance(self.per_device_train_batch_size, str) else self.per_device_train_batch_size

    @property
    def loads_best(self) -> bool:
        """Whether the weights with the lowest held-out loss are kept, not the last ones."""
        return self.early_stopping is not None if self.load_best is None else self.load_best

    @property
    def save_every(self) -> tuple[float, Literal["steps", "share", "minutes"]]:
        """The distance between two checkpoints, and its unit."""
        return _distance(self.save_steps)


def _distance(steps: float | str) -> tuple[float, Literal["steps", "share", "minutes"]]:
    text = str(steps).strip()
    minutes = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+) ?min(?:utes?)?", text)
    try:
        number = float(minutes[1] if minutes else text)
    except ValueError:
        number = 0.0
    if not 0 < number < math.inf:
        raise ValueError("write a number of steps (100), a share of all steps (0.1), or minutes (5min)")
    if minutes:
        return number, "minutes"
    return (number, "share") if number < 1 else (number, "steps")

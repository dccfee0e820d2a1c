"""Before the first step: one forward and backward pass of the longest batch, which has no effect on the training.

Too little memory shows in the first minute and not in the hour in which the longest rows come together. On a GPU, the
memory that the optimizer's state and accumulated gradients take later is held meanwhile. On a CPU the pass takes as
long as a step, so it is left out where the longest batch is not much longer than the others.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mlflow_ft.config.training import AUTO
from mlflow_ft.engine.aside import aside
from mlflow_ft.engine.checkpoints.of_trainer import COUNTERS
from mlflow_ft.engine.loss import causal_model
from mlflow_ft.engine.training.parts import InParts
from mlflow_ft.errors import MEMORY_REMEDIES, ResourceError, out_of_memory
from mlflow_ft.values import Job

MUCH_LONGER = 2
"""On a CPU, the longest row must have more than this many times the tokens of the mean row."""
READ = 10_000
"""Rows whose lengths are read at once."""
SIDES = (
    ("input_ids",),
    ("rejected_ids",),
    ("chosen_ids",),
    ("prompt_ids", "completion_ids"),
    ("prompt_ids", "KL_completion_ids"),
)
"""Columns whose tokens together make a row of a batch; a data set has one or two of these."""
OF_OPTIMIZER = {"adamw_torch": 8, "adamw_torch_fused": 8, "adamw_8bit": 2, "adamw_bnb_8bit": 2, "sgd": 0}
"""Bytes of state for each trained weight. The state of a paged optimizer moves out of the GPU's memory."""
FURTHER = ("_entropy_window_stats", "_last_world_entropy", "current_gradient_accumulation_steps", "_loss")
"""Further attributes that trainers change in a pass, or need in one."""
PLAIN = (bool, int, float, str, type(None), Tensor)
"""Kinds of attributes of a layer that a pass may replace. Weights and buffers are not among them."""


class LongestBatchError(ResourceError):
    """The longest batch does not fit into memory."""


@dataclass(frozen=True, kw_only=True)
class LongestBatch:
    """The batch that needs the most memory."""

    inputs: Mapping[str, Any]
    """What the trainer's `compute_loss` takes."""
    about: str
    """Its size in words: `8 rows of up to 1,024 tokens`."""
    exceeds: float
    """How many times longer its longest row is than the mean row."""


Find = Callable[[Any], "LongestBatch | None"]
"""Makes the longest batch of a trainer; None if its rows have no known columns."""


class LongestBatchCallback(TrainerCallback):
    """Runs the longest batch when the model is ready to train.

    Weights that are spread over processes (DeepSpeed, FSDP) need every process for a pass, and are left alone.
    """

    def __init__(self, job: Job, trainer: Any, find: Find) -> None:
        self._job = job
        self._trainer = trainer
        self._find = find
        # a batch size that an estimate chose must prove itself
        self._chosen = job.config.origins.get("training.per_device_train_batch_size", "").startswith(AUTO)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if args.deepspeed or args.fsdp:
            return
        with aside():
            batch = self._find(self._trainer)
        if batch is None or not (torch.cuda.is_available() or batch.exceeds > MUCH_LONGER or self._chosen):
            return
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        run(self._trainer, batch)
        peak = f", {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB at most" if torch.cuda.is_available() else ""
        self._job.progress.say(f"the longest batch fits into memory: {batch.about}{peak}")


# --- which batch


def of_rows(trainer: Any) -> LongestBatch | None:
    """The longest rows of the trainer's data set, as many as a batch has."""
    rows = trainer.train_dataset
    lengths = row_lengths(rows)
    if lengths is None or not len(lengths):
        return None
    size = min(trainer._train_batch_size, len(lengths))
    chosen = np.argsort(-lengths, kind="stable")[:size]
    return LongestBatch(
        inputs=trainer.data_collator([rows[int(index)] for index in chosen]),
        about=f"{size} rows of up to {int(lengths.max()):,} tokens",
        exceeds=float(lengths.max() / lengths.mean()),
    )


def row_lengths(rows: Any) -> np.ndarray[Any, Any] | None:
    """The tokens of each row of a `datasets.Dataset`, of its longer side in a pair; None without columns of SIDES."""
    sides = [side for side in SIDES if set(side) <= set(rows.column_names)]
    if not sides:
        return None
    arrow = rows.select_columns(sorted({name for side in sides for name in side})).with_format("arrow")
    parts = []
    for part in arrow.iter(batch_size=READ):
        counts = {name: pc.fill_null(pc.list_value_length(part[name]), 0).to_numpy() for name in part.column_names}
        parts.append(np.max([sum(counts[name] for name in side) for side in sides], axis=0))
    return np.concatenate(parts) if parts else np.zeros(0, dtype=int)


def of_answers(trainer: Any, *, prompt: int, answer: int) -> LongestBatch:
    """Prompts of `prompt` tokens with answers of `answer` tokens, both random, as GRPO and RLOO learn from them."""
    size = trainer._train_batch_size
    vocabulary = len(causal_model(trainer.model).get_input_embeddings().weight)
    inputs: dict[str, Any] = {
        "prompt_ids": torch.randint(vocabulary, (size, prompt)),
        "prompt_mask": torch.ones(size, prompt, dtype=torch.long),
        "completion_ids": torch.randint(vocabulary, (size, answer)),
        "completion_mask": torch.ones(size, answer, dtype=torch.long),
        "advantages": torch.ones(size),
        "old_logps": torch.zeros(size),
        "ref_per_token_logps": torch.zeros(size, answer),
        "num_items_in_batch": torch.tensor(size * answer),
    }
    about = f"{size} prompts of {prompt:,} tokens with answers of {answer:,}"
    return LongestBatch(inputs=inputs, about=about, exceeds=1.0)


# --- the pass


def run(trainer: Any, batch: LongestBatch) -> None:
    """Run a batch forward and backward, and leave trainer, model and random generators as they were.

    Raises:
        LongestBatchError: there is too little memory for it.
    """
    model = getattr(trainer, "model_wrapped", None) or trainer.model
    try:
        with ExitStack() as kept:
            kept.enter_context(aside(model))
            kept.enter_context(_unchanged(trainer, model))
            kept.enter_context(_late(trainer, model))
            model.train()
            for part in trainer.parts(batch.inputs) if isinstance(trainer, InParts) else [batch.inputs]:
                inputs = Trainer._prepare_inputs(trainer, dict(part))
                with trainer.compute_loss_context_manager():
                    loss = trainer.compute_loss(model, inputs)
                trainer.accelerator.backward(loss.mean())
    except Exception as error:  # too little memory has a different class on each device; any other is raised again
        if told := out_of_memory(error):
            reason = told.message.removeprefix("out of memory: ")
            raise LongestBatchError(
                f"out of memory in the longest batch, {batch.about}: {reason}", hint=MEMORY_REMEDIES
            ) from error
        raise


@contextmanager
def _unchanged(trainer: Any, model: nn.Module) -> Iterator[None]:
    """Restore what a pass changes: the trainer's counters, and buffers and numbers in the model's layers.

    Some layers remember the longest row that they have seen, such as rotary positions that are scaled by length.
    """
    names = [name for name in (*COUNTERS, *FURTHER) if hasattr(trainer, name)]
    counters = {name: copy.deepcopy(getattr(trainer, name)) for name in names}
    layers = [(layer, _plain(layer), _buffers(layer)) for layer in model.modules()]
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    try:
        yield
    finally:
        del trainer.current_gradient_accumulation_steps
        for name, value in counters.items():
            setattr(trainer, name, value)
        for layer, plain, buffers in layers:
            vars(layer).update(plain)
            for name, (buffer, content) in buffers.items():
                layer._buffers[name] = buffer.copy_(content)
        model.zero_grad()


def _plain(layer: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(layer).items() if isinstance(value, PLAIN)}


def _buffers(layer: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """Each buffer, and a copy of its content."""
    return {name: (buffer, buffer.clone()) for name, buffer in layer._buffers.items() if buffer is not None}


@contextmanager
def _late(trainer: Any, model: nn.Module) -> Iterator[None]:
    """On a GPU, hold the memory that is taken from the second step on, and while gradients accumulate."""
    if not torch.cuda.is_available():
        yield
        return
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    size = 0 if trainer.optimizer.state else state_size(trainer, trained)
    held = [torch.empty(size, dtype=torch.uint8, device="cuda")]
    if trainer.args.gradient_accumulation_steps > 1:
        for weight in trained:
            weight.grad = torch.zeros_like(weight)
    try:
        yield
    finally:
        held.clear()


def state_size(trainer: Any, trained: list[nn.Parameter]) -> int:
    """Bytes that the optimizer will keep for the weights that it trains; 0 for an optimizer that is not known."""
    return OF_OPTIMIZER.get(str(trainer.args.optim.value), 0) * sum(weight.numel() for weight in trained)

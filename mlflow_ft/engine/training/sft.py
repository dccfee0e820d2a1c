"""Supervised fine-tuning: TRL's trainer on rows that are already tokenised and masked, with our own loss."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer, pack_dataset

from mlflow_ft.engine import ranks
from mlflow_ft.engine.checkpoints import of_trainer
from mlflow_ft.engine.judging import judge
from mlflow_ft.engine.loss import OF_ROWS, full_token_loss, suited
from mlflow_ft.engine.models import row_isolation
from mlflow_ft.engine.models.row_isolation import Batch, Check, Row, Seen, see_each_other
from mlflow_ft.engine.tokens.masking import IGNORED
from mlflow_ft.engine.training import even_batches, loop, parts
from mlflow_ft.engine.training.parts import InParts, Part
from mlflow_ft.errors import ConfigError, brief
from mlflow_ft.rows import Encoded
from mlflow_ft.values import Data, Job, Model, Trained

BOUNDARIES = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx")
"""Further inputs that say where the rows of a packed batch begin and end."""


class LabelledTokensTrainer(InParts, SFTTrainer):
    """TRL's SFTTrainer with the loss on the labelled tokens only, and the exact mean over tokens on held-out rows."""

    by_tokens = True
    """The mean is over the tokens of all processes."""

    def __init__(self, *, held_out: Sequence[Encoded], sharded: bool = False, **options: Any) -> None:
        with _own_head(options["model"]):
            super().__init__(**options)
        self._module = cast("Any", self.model)
        self._pad_token_id: int = options["processing_class"].pad_token_id
        self._held_out = held_out
        self._loss: Any = None
        self._sharded = sharded

    def _parts(self, inputs: Part, tokens: int) -> list[Part]:
        return parts.of_rows(inputs, tokens, shares=self.shares_beginnings)

    @staticmethod
    def _weights(part: Part) -> Mapping[str, float]:
        return {"mean_token_accuracy": int((part["labels"][:, 1:] != IGNORED).sum())}

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,  # noqa: FBT001, FBT002  # transformers' own signature
        num_items_in_batch: Any = None,
    ) -> Any:
        """The loss as the mean over the tokens of the whole step, so that accumulation does not change it.

        For a mixture of experts, the loss that balances its experts is added: the mean over the parts of an accumulated
        step, as in TRL.
        """
        unwrapped = self.accelerator.unwrap_model(model)
        if self._loss is None:
            self._loss = full_token_loss if self._sharded else suited(unwrapped, _tensors(inputs))
        losses = self._loss(unwrapped, _tensors(inputs), wrapped=model, balance=self.aux_loss_enabled)
        tokens = torch.as_tensor(losses.nll.numel() if num_items_in_batch is None else num_items_in_batch)
        loss = losses.nll.sum() / tokens.clamp(min=1).to(losses.nll.device)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # the gradients are averaged over the processes
        metrics = self._metrics["train"]
        if losses.balance is not None:
            parts = 1 if num_items_in_batch is None else self.current_gradient_accumulation_steps
            loss = loss + self.router_aux_loss_coef * losses.balance.to(loss.device) / parts
            metrics["aux_loss"].append(self.accelerator.gather(losses.balance.detach()).mean().item())
        metrics["mean_token_accuracy"].append(losses.correct.float().mean().item() if losses.correct.numel() else 0.0)
        length = (
            inputs["attention_mask"].sum() if "attention_mask" in inputs else torch.tensor(inputs["labels"].numel())
        )
        length = length * (even_batches.STANDS_IN not in inputs)
        self._total_train_tokens += int(self.accelerator.gather(length.to(loss.device)).sum())
        metrics["num_tokens"] = [self._total_train_tokens]
        return (loss, None) if return_outputs else loss

    def evaluate(self, *_: Any, metric_key_prefix: str = "eval", **__: Any) -> dict[str, float]:
        """The mean loss over the held-out tokens; transformers gives batches of different lengths equal weight."""
        self._module.eval()
        of_trainer.settle(self)
        losses = judge.row_losses(
            self.accelerator.unwrap_model(self._module),
            self._held_out if self._sharded else ranks.mine(self._held_out),  # each pass needs all shares
            batch_size=self.args.per_device_eval_batch_size,
            pad_token_id=self._pad_token_id,
            measure=full_token_loss if self._sharded else None,
        )
        losses = losses if self._sharded else ranks.together(losses)
        metrics = {f"{metric_key_prefix}_loss": judge.mean_loss(losses)}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self._module.train()
        return metrics


@contextmanager
def _own_head(model: Any) -> Iterator[None]:
    """Make TRL accept a model with an adapter on its output layer, which its own loss would ignore; ours uses it."""
    model.get_output_embeddings = lambda: None
    try:
        yield
    finally:
        del model.get_output_embeddings


def _tensors(inputs: dict[str, Any]) -> dict[str, Tensor]:
    return {name: inputs[name] for name in (*OF_ROWS, *BOUNDARIES) if name in inputs}


class ForPacked:
    """Collates packed rows into one long row without padding, in which examples do not see each other.

    There is no attention mask: positions restart at 0 where an example begins. Its first token is never learned,
    because the token before it belongs to another example. Layers with a state ignore positions; the kernels of some
    take `boundaries`.
    """

    def __init__(self, *, boundaries: bool = False) -> None:
        self.boundaries = boundaries

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """`input_ids`, `labels` and `position_ids`, each of shape (1, tokens); with `boundaries`, also BOUNDARIES."""
        lengths = [length for row in rows for length in row["seq_lengths"]]
        positions = torch.cat([torch.arange(length) for length in lengths])
        labels = torch.tensor([label for row in rows for label in row["labels"]])
        batch = {
            "input_ids": torch.tensor([token for row in rows for token in row["input_ids"]])[None],
            "labels": labels.masked_fill(positions == 0, IGNORED)[None],
            "position_ids": positions[None],
        }
        return batch | (_boundaries(lengths) if self.boundaries else {})


def _boundaries(lengths: Sequence[int]) -> dict[str, Any]:
    """Where examples begin and end, in the format of transformers' kernels and of TRL's collator."""
    edges = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
    numbers = torch.repeat_interleave(torch.arange(len(lengths), dtype=torch.int32), torch.tensor(lengths))
    values = (edges, edges, max(lengths), max(lengths), numbers[None])
    return dict(zip(BOUNDARIES, values, strict=True))


def train(job: Job, data: Data, model: Model) -> Trained:
    """Train on the assistant's tokens, and save the adapter, or the whole model, in the stage's folder.

    Raises:
        RefusedError: a NaN or infinite loss. StoppedError: a signal arrived; the current step was finished.
    """
    own = {"max_length": None, "packing": False, "dataset_kwargs": {"skip_prepare_dataset": True}}
    arguments = loop.arguments(SFTConfig, job, job.folder / "train", own)
    if arguments.loss_type != "nll":
        raise ConfigError(
            "objective.options: only the mean loss over the learned tokens is supported", hint="remove loss_type"
        )
    rows = data.train.encoded.dataset()
    packing = job.config.objective.packing
    if packing:
        with loop.quiet_datasets():
            rows = pack_dataset(rows, job.config.data.max_length, "bfd")  # best fit decreasing: no row is cut

    def make(callbacks: list[TrainerCallback]) -> LabelledTokensTrainer:
        return LabelledTokensTrainer(
            model=model.module,
            args=arguments,
            train_dataset=rows,
            data_collator=ForPacked() if packing else None,
            eval_dataset=data.eval.encoded.dataset(),
            held_out=data.eval.encoded,
            sharded=job.config.launch.sharded,
            processing_class=data.tokenizer,
            callbacks=callbacks,
        )

    return loop.run(job, data, model, make, check=proof)


def proof(job: Job, data: Data, trainer: Any) -> Check:
    """A check that rows in the trainer's batches do not see each other: on pairs of rows, and on its first batch."""
    collator, rows = trainer.data_collator, trainer.train_dataset
    lengths = "seq_lengths" in rows.column_names

    def collate(several: Sequence[Row]) -> Batch:
        records = [{"input_ids": list(row), "labels": list(row)} for row in several]
        batch: Batch = collator([row | {"seq_lengths": [len(row["input_ids"])]} if lengths else row for row in records])
        return batch

    def look(model: Any, rough: bool) -> Seen | None:  # noqa: FBT001  # a callback
        size = min(job.config.training.batch_size, len(rows))
        first = collator([rows[index] for index in range(size)])
        packed = first if "position_ids" in first else None  # padding is the same in any batch
        return see_each_other(model, row_isolation.some(data), collate, batch=packed, rough=rough)

    def check(model: Any, rough: bool) -> None:  # noqa: FBT001  # a callback
        if not lengths and job.config.training.batch_size == 1:
            return
        if not (lengths or trainer.padding_free):
            row_isolation.refuse_padding(job, look(model, rough))
        elif seen := look(model, rough):
            refuse_packed(job, seen, _with_boundaries(collator, model, look, rough=rough))

    return check


def _with_boundaries(collator: Any, model: Any, look: Callable[[Any, bool], Seen | None], *, rough: bool) -> str | None:
    """Let the collator pass where rows begin and end; None if that separates them, else the error of it, or ""."""
    if not isinstance(collator, ForPacked):
        return ""
    collator.boundaries = True
    try:
        return "" if look(model, rough) else None
    except (ValueError, TypeError, RuntimeError) as error:
        return f"; {brief(error)}"


def refuse_packed(job: Job, seen: Seen, reason: str | None) -> None:
    """Raise ConfigError because packed rows see each other, unless `reason` is None: then boundaries prevent it."""
    if reason is None:
        return
    through = f", through {seen.layers}" if seen.layers else ""
    setting = "objective.packing" if job.config.objective.packing else "objective.options padding_free"
    raise ConfigError(
        f"{setting}: rows packed together affect each other on this model: the loss of a token changes by up to "
        f"{seen.difference:.2g} nats{through}",
        hint=f"omit it; --objective.options train_sampling_strategy=group_by_length keeps padding small{reason}",
    )

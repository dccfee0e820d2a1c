"""Supervised fine-tuning: TRL's trainer over rows that are tokenised and masked already, with a loss of our own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer, pack_dataset

from mlflow_ft.engine import judge, training
from mlflow_ft.engine.loss import suited
from mlflow_ft.engine.masking import IGNORED
from mlflow_ft.job import Data, Encoded, Job, Model, Trained


class LabelledTokensTrainer(SFTTrainer):
    """TRL's SFTTrainer with the loss on the labelled tokens only, and the exact mean over tokens on held-out rows."""

    def __init__(self, *, held_out: Sequence[Encoded], **options: Any) -> None:
        with _own_head(options["model"]):
            super().__init__(**options)
        self._module = cast("Any", self.model)
        self._pad_token_id: int = options["processing_class"].pad_token_id
        self._held_out = held_out
        self._loss: Any = None

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,  # noqa: FBT001, FBT002  # transformers' own signature
        num_items_in_batch: Any = None,
    ) -> Any:
        """The summed loss over the tokens of the whole step, so that accumulation does not change it.

        A mixture of experts has the loss beside it that balances its experts. It is no sum over tokens: of a step in
        several parts it is the mean of theirs, as in TRL.
        """
        unwrapped = self.accelerator.unwrap_model(model)
        if self._loss is None:
            self._loss = suited(unwrapped, _tensors(inputs))
        found = self._loss(unwrapped, _tensors(inputs), wrapped=model, balance=self.aux_loss_enabled)
        tokens = torch.as_tensor(found.nll.numel() if num_items_in_batch is None else num_items_in_batch)
        loss = found.nll.sum() / tokens.clamp(min=1).to(found.nll.device)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # the gradients are averaged over the processes
        metrics = self._metrics["train"]
        if found.balance is not None:
            parts = 1 if num_items_in_batch is None else self.current_gradient_accumulation_steps
            loss = loss + self.router_aux_loss_coef * found.balance.to(loss.device) / parts
            metrics["aux_loss"].append(self.accelerator.gather(found.balance.detach()).mean().item())
        metrics["mean_token_accuracy"].append(found.correct.float().mean().item() if found.correct.numel() else 0.0)
        length = (
            inputs["attention_mask"].sum() if "attention_mask" in inputs else torch.tensor(inputs["labels"].numel())
        )
        self._total_train_tokens += int(self.accelerator.gather(length.to(loss.device)).sum())
        metrics["num_tokens"] = [self._total_train_tokens]
        return (loss, None) if return_outputs else loss

    def evaluate(self, *_: Any, metric_key_prefix: str = "eval", **__: Any) -> dict[str, float]:
        """The mean loss over the held-out tokens; transformers' own weighs batches of unequal length alike."""
        self._module.eval()
        losses = judge.row_losses(
            self.accelerator.unwrap_model(self._module),
            self._held_out,
            batch_size=self.args.per_device_eval_batch_size,
            pad_token_id=self._pad_token_id,
        )
        metrics = {f"{metric_key_prefix}_loss": judge.mean_loss(losses)}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self._module.train()
        return metrics


@contextmanager
def _own_head(model: Any) -> Iterator[None]:
    """Let TRL take a model with an adapter on its output layer: its own loss would miss that; ours goes through it."""
    model.get_output_embeddings = lambda: None
    try:
        yield
    finally:
        del model.get_output_embeddings


def _tensors(inputs: dict[str, Any]) -> dict[str, Tensor]:
    return {name: inputs[name] for name in ("input_ids", "attention_mask", "position_ids", "labels") if name in inputs}


class ForPacked:
    """Collates packed rows into one long row without padding, in which no example sees another.

    There is no attention mask: positions that begin again at 0 tell the model where an example begins. Its first token
    is never learned, since what stands before it belongs to another.
    """

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """`input_ids`, `labels` and `position_ids`, each of shape (1, tokens)."""
        lengths = [length for row in rows for length in row["seq_lengths"]]
        positions = torch.cat([torch.arange(length) for length in lengths])
        labels = torch.tensor([label for row in rows for label in row["labels"]])
        return {
            "input_ids": torch.tensor([token for row in rows for token in row["input_ids"]])[None],
            "labels": labels.masked_fill(positions == 0, IGNORED)[None],
            "position_ids": positions[None],
        }


def train(job: Job, data: Data, model: Model) -> Trained:
    """Train on the assistant's tokens, and leave the adapter, or the whole model, under the stage's folder.

    Raises:
        RefusedError: the loss is no number. StoppedError: a signal came; the step in progress was finished.
    """
    own = {"max_length": None, "packing": False, "dataset_kwargs": {"skip_prepare_dataset": True}}
    arguments = training.arguments(SFTConfig, job, job.folder / "train", own)
    rows = data.train.encoded.dataset()
    packing = job.config.objective.packing
    if packing:
        rows = pack_dataset(rows, job.config.data.max_length, "bfd")  # best fit decreasing: none is cut

    def make(callbacks: list[TrainerCallback]) -> LabelledTokensTrainer:
        return LabelledTokensTrainer(
            model=model.module,
            args=arguments,
            train_dataset=rows,
            data_collator=ForPacked() if packing else None,
            eval_dataset=data.eval.encoded.dataset(),
            held_out=data.eval.encoded,
            processing_class=data.tokenizer,
            callbacks=callbacks,
        )

    return training.run(job, data, model, make)

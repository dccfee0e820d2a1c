"""Supervised fine-tuning: TRL's trainer over rows that are tokenised and masked already, with a loss of our own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PrinterCallback
from trl import SFTConfig, SFTTrainer

from mlflow_ft.engine import hardware, judge, parity
from mlflow_ft.engine.callbacks import JournalCallback, WatchCallback
from mlflow_ft.engine.hub import quiet_transformers
from mlflow_ft.engine.loss import suited
from mlflow_ft.job import Data, Encoded, Job, Model, Trained


class LabelledTokensTrainer(SFTTrainer):
    """TRL's SFTTrainer with the loss on the labelled tokens only, and the exact mean over tokens on held-out rows."""

    def __init__(self, *, held_out: Sequence[Encoded], **options: Any) -> None:
        super().__init__(**options)
        self._module = cast("Any", self.model)
        self._pad_token_id: int = options["processing_class"].pad_token_id
        self._held_out = held_out
        self._loss: Any = None
        for parameter in self._module.parameters():
            if parameter.requires_grad:  # TRL casts the adapters of a quantised base to bfloat16
                parameter.data = parameter.data.float()

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,  # noqa: FBT001, FBT002  # transformers' own signature
        num_items_in_batch: Any = None,
    ) -> Any:
        """The summed loss over the tokens of the whole step, so that accumulation does not change it."""
        if self.aux_loss_enabled:  # a mixture of experts: TRL adds the routers' loss
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)  # type: ignore[no-untyped-call]  # TRL
        unwrapped = self.accelerator.unwrap_model(model)
        if self._loss is None:
            self._loss = suited(unwrapped, _tensors(inputs))
        found = self._loss(unwrapped, _tensors(inputs), wrapped=model)
        tokens = torch.as_tensor(found.nll.numel() if num_items_in_batch is None else num_items_in_batch)
        loss = found.nll.sum() / tokens.clamp(min=1).to(found.nll.device)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # the gradients are averaged over the processes
        metrics = self._metrics["train"]
        metrics["mean_token_accuracy"].append(found.correct.float().mean().item() if found.correct.numel() else 0.0)
        self._total_train_tokens += int(self.accelerator.gather(inputs["attention_mask"].sum()).sum())
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


def _tensors(inputs: dict[str, Any]) -> dict[str, Tensor]:
    return {name: inputs[name] for name in ("input_ids", "attention_mask", "labels")}


def train(job: Job, data: Data, model: Model) -> Trained:
    """Train and leave the adapter, or the whole model, under the stage's folder.

    Raises:
        RefusedError: the loss is no number. StoppedError: a signal came; the step in progress was finished.
    """
    folder = job.folder / "train"
    arguments = training_arguments(job, data, folder)
    rows = data.train.encoded.dataset()
    with job.progress.bar("train", total=total_steps(job, data), unit="steps") as bar, job.run.deferring_stop():
        callbacks = [JournalCallback(job, data.eval), WatchCallback(job, bar)]
        for more in job.plugins.hook.training_callbacks(job=job):
            callbacks.extend(more)
        trainer = LabelledTokensTrainer(
            model=model.module,
            args=arguments,
            train_dataset=rows,
            eval_dataset=data.eval.encoded.dataset(),
            held_out=data.eval.encoded,
            processing_class=data.tokenizer,
            callbacks=callbacks,
        )
        trainer.remove_callback(PrinterCallback)  # stdout belongs to machines
        result = trainer.train()
    return keep(data, model, folder, steps=result.global_step, loss=float(result.training_loss))


def keep(data: Data, model: Model, folder: Path, *, steps: int, loss: float) -> Trained:
    """Save the trained weights, the tokenizer and the reference logits of the model as it is in memory."""
    module = model.module.eval()
    adapter = hasattr(module, "peft_config")
    target = folder / ("adapter" if adapter else "model")
    module.config.use_cache = True
    with quiet_transformers():
        module.save_pretrained(target)
    data.tokenizer.save_pretrained(target)
    parity.keep_reference(module, data, folder / "reference.safetensors")
    metrics = {
        "train/steps": float(steps),
        "train/mean_loss": loss,
        "model/trainable_weights": float(model.trainable),
        "model/weights": float(model.total),
    }
    return Trained(folder=folder, base=model.base, metrics=metrics)


def training_arguments(job: Job, data: Data, folder: Path) -> SFTConfig:
    """The trainer's settings: the user's, and those that keep TRL from doing what is done already."""
    settings = job.config.training
    dtype = hardware.compute_dtype(job.config.model.dtype)
    return SFTConfig(
        output_dir=str(folder / "checkpoints"),
        num_train_epochs=settings.num_train_epochs,
        max_steps=settings.max_steps,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.lr_scheduler_type,
        warmup_steps=settings.warmup_steps,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        per_device_train_batch_size=settings.per_device_train_batch_size,
        per_device_eval_batch_size=job.config.evaluation.per_device_eval_batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        activation_checkpointing=hardware.checkpointing(job.config),
        activation_checkpointing_kwargs={"use_reentrant": False},
        optim=hardware.optimizer(job.config),
        bf16=dtype is torch.bfloat16,
        fp16=dtype is torch.float16,
        logging_steps=settings.logging_steps,
        logging_nan_inf_filter=False,
        eval_strategy="steps",
        eval_steps=settings.eval_steps,
        eval_on_start=True,
        save_strategy="no",
        seed=job.config.run.seed,
        data_seed=job.config.run.seed,
        report_to=[],
        disable_tqdm=True,
        max_length=None,
        packing=False,
        use_cpu=not torch.cuda.is_available(),  # transformers refuses bfloat16 on a CPU that was not asked for
        dataloader_pin_memory=torch.cuda.is_available(),
        dataset_kwargs={"skip_prepare_dataset": True},
    )


def total_steps(job: Job, data: Data) -> int:
    """Optimizer steps that the training will take on one device."""
    settings = job.config.training
    if settings.max_steps > 0:
        return settings.max_steps
    batches = -(-len(data.train.encoded) // settings.per_device_train_batch_size)
    return max(1, round(-(-batches // settings.gradient_accumulation_steps) * settings.num_train_epochs))

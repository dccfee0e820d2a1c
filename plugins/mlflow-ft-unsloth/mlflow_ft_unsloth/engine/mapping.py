"""Our settings as arguments of Unsloth and of TRL's SFTConfig, as a table; what they cannot do is refused.

`load.` are arguments of `FastLanguageModel.from_pretrained`, `train.` are fields of `SFTConfig`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from mlflow_ft import Config
from mlflow_ft.engine import options
from mlflow_ft.engine.tools.by_tool import Work
from mlflow_ft.engine.tools.tool_settings import carried, only, sent, translated, unsuited
from mlflow_ft_unsloth.options import UnslothOptions

NO_GPU = (
    "Unsloth needs a GPU, and torch finds none on this machine; train with the method lora or qlora, which need none"
)
OUR_START = "it moves a part of the base into the adapter, and Unsloth reads the base; train with the method lora"
INITIALISATIONS = (None, "gaussian", "orthogonal", "eva", "loftq", "true", "True")
"""Those that leave the base as it is."""

TABLE = (
    carried("adapter.kind", "the adapter is made here; Unsloth loads it and trains it further"),
    only("adapter.init_lora_weights", *INITIALISATIONS, because=OUR_START),
    only("adapter.target_parameters", None, because="Unsloth has its own code for experts; train with the method lora"),
    carried("adapter.*", "in the adapter's own files"),
    carried("model.name", "the folder that was found, in the adapter's config"),
    carried("model.revision", "the folder that was found"),
    carried("model.init_from", "the adapter is trained further"),
    only("model.add_tokens", None, because="Unsloth reads the base model without them; train with the method lora"),
    carried("model.pad_token", "in the tokenizer's files"),
    carried("model.quantize", "load_in_4bit, load_in_8bit, load_in_16bit"),
    only("model.double_quant", True, because="Unsloth always quantises the constants too; train with the method qlora"),
    only(
        "model.dtype", "auto", "bfloat16", "float16", because="Unsloth computes in 16 bits; train with the method lora"
    ),
    only("model.attn_implementation", None, because="Unsloth has its own attention; leave it out"),
    sent("model.trust_remote_code", "load.trust_remote_code"),
    sent("data.max_length", "load.max_seq_length"),
    sent("run.seed", "train.seed"),
    only("objective.packing", False, because="Unsloth packs rows in its own way, which is not proved; train with lora"),
    carried("objective.*", "options: further fields of SFTConfig"),
    sent("training.num_train_epochs", "train.num_train_epochs"),
    sent("training.max_steps", "train.max_steps"),
    sent("training.learning_rate", "train.learning_rate"),
    sent("training.lr_scheduler_type", "train.lr_scheduler_type"),
    sent("training.warmup_steps", "train.warmup_steps"),
    sent("training.weight_decay", "train.weight_decay"),
    sent("training.max_grad_norm", "train.max_grad_norm"),
    sent("training.per_device_train_batch_size", "train.per_device_train_batch_size"),
    only("training.batching", "auto", "padded", because="Unsloth makes its own batches; train with lora"),
    only("training.liger", "auto", False, because="Unsloth has kernels of its own; train with lora"),
    only("training.compile", False, because="Unsloth has kernels of its own; train with lora"),
    sent("training.gradient_accumulation_steps", "train.gradient_accumulation_steps"),
    sent(
        "training.gradient_checkpointing",
        "load.use_gradient_checkpointing",
        lambda on: "unsloth" if on is True else False,
    ),
    sent("training.optim", "train.optim"),
    sent("training.logging_steps", "train.logging_steps"),
    sent("training.eval_steps", "train.eval_steps"),
    sent("training.save_total_limit", "train.save_total_limit"),
    sent("evaluation.per_device_eval_batch_size", "train.per_device_eval_batch_size"),
)

LOAD: Mapping[str, Any] = {"use_exact_model_name": True}  # never another model of the same name from the Hub
TRAIN: Mapping[str, Any] = {
    "eval_strategy": "steps",
    "eval_on_start": True,
    "save_strategy": "no",  # the callback saves
    "report_to": "none",
    "max_length": None,
    "packing": False,
    "padding_free": False,
    "remove_unused_columns": False,
    "dataset_kwargs": {"skip_prepare_dataset": True},  # the rows are tokens and labels already
    "logging_nan_inf_filter": False,
}
TAKEN = {*TRAIN, "output_dir", "bf16", "fp16", "data_seed", "resume_from_checkpoint", "gradient_checkpointing"} | {
    entry.theirs.partition(".")[2] for entry in TABLE if entry.theirs
}
"""Names that are filled from our settings, or that would change what is trained."""


def refuses(config: Config) -> str | None:
    """Why Unsloth cannot do what these settings ask for, with a remedy, in a sentence; None where it can."""
    reasons = [] if torch.cuda.is_available() else [NO_GPU]
    reasons += unsuited(TABLE, config, python=config.options(UnslothOptions).python)
    if config.adapter.kind not in ("lora", "dora"):
        reasons.append(f"adapter.kind {config.adapter.kind}: only lora and dora are handed over to Unsloth")
    for name in sorted(TAKEN & set(config.objective.options or {})):
        reasons.append(f"objective.options {name}: it is filled from our own settings (`mlflow-ft show trainers`)")
    return "; ".join(reasons) or None


def settings(work: Work, more: Mapping[str, str] | None) -> dict[str, Any]:
    """What the script in Unsloth's environment gets; `more` are the user's own fields of SFTConfig, as text."""
    values = work.values
    theirs = translated(TABLE, values)
    sections: dict[str, dict[str, Any]] = {"load": dict(LOAD), "train": dict(TRAIN)}
    for name, value in theirs.items():
        section, _, argument = name.partition(".")
        sections[section][argument] = value
    quantised = values["model.quantize"]
    sections["load"] |= {
        "model_name": str(work.adapter),
        "dtype": values["model.dtype"],
        "load_in_4bit": quantised == "nf4",
        "load_in_8bit": quantised == "int8",
        "load_in_16bit": quantised == "none",
        "random_state": values["run.seed"],
    }
    sections["train"] |= {
        "output_dir": str(work.output),
        "bf16": values["model.dtype"] == "bfloat16",
        "fp16": values["model.dtype"] == "float16",
        "data_seed": values["run.seed"],
        **{name: options.value(text) for name, text in (more or {}).items()},
    }
    return {
        **sections,
        "rows": {"train": str(work.rows), "eval": str(work.held_out)},
        "tokenizer": str(work.tokenizer),
        "checkpoint": str(work.checkpoint) if work.checkpoint else None,
    }

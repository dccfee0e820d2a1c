"""Our settings in Axolotl's terms (0.21), as a table; what Axolotl cannot do is refused before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from mlflow_ft import Config
from mlflow_ft.engine import options
from mlflow_ft.engine.tools.by_tool import Work
from mlflow_ft.engine.tools.tool_settings import carried, only, sent, translated, unsuited
from mlflow_ft_axolotl.options import AxolotlOptions

NO_NEW_TOKENS = "Axolotl reads the base model itself, without them; train with the method lora"
OUR_START = "it moves a part of the base into the adapter, and Axolotl reads the base; train with the method lora"
INITIALISATIONS = (None, "gaussian", "orthogonal", "eva", "loftq", "true", "True")
"""Those that leave the base as it is."""

TABLE = (
    carried("adapter.kind", "the adapter is made here; Axolotl trains it further (lora_model_dir)"),
    only("adapter.init_lora_weights", *INITIALISATIONS, because=OUR_START),
    carried("adapter.*", "in the adapter's own files"),
    carried("model.name", "base_model is the folder that was found"),
    carried("model.revision", "base_model is the folder that was found"),
    carried("model.init_from", "the adapter is trained further"),
    only("model.add_tokens", None, because=NO_NEW_TOKENS),
    carried("model.pad_token", "in the tokenizer's files"),
    carried("model.quantize", "load_in_4bit, load_in_8bit"),
    carried("model.double_quant", "bnb_config_kwargs"),
    carried("model.dtype", "bf16, fp16"),
    sent("model.attn_implementation", "attn_implementation"),
    sent("model.trust_remote_code", "trust_remote_code"),
    sent("data.max_length", "sequence_len"),
    sent("run.seed", "seed"),
    only("objective.packing", False, because="Axolotl packs rows in its own way, which is not proved; train with lora"),
    carried("objective.*", "options: keys of Axolotl's own configuration"),
    sent("training.num_train_epochs", "num_epochs"),
    sent("training.max_steps", "max_steps"),
    sent("training.learning_rate", "learning_rate"),
    sent("training.lr_scheduler_type", "lr_scheduler"),
    sent("training.warmup_steps", "warmup_steps"),
    sent("training.weight_decay", "weight_decay"),
    sent("training.max_grad_norm", "max_grad_norm"),
    sent("training.per_device_train_batch_size", "micro_batch_size"),
    only("training.batching", "auto", "padded", because="Axolotl makes its own batches; train with lora"),
    only("training.liger", "auto", False, because="Axolotl has kernels of its own; train with lora"),
    only("training.compile", False, because="Axolotl has kernels of its own; train with lora"),
    sent("training.gradient_accumulation_steps", "gradient_accumulation_steps"),
    sent("training.gradient_checkpointing", "gradient_checkpointing", lambda on: on is True),
    sent("training.optim", "optimizer"),
    sent("training.logging_steps", "logging_steps"),
    sent("training.eval_steps", "eval_steps"),
    sent("training.save_total_limit", "save_total_limit"),
    sent("evaluation.per_device_eval_batch_size", "eval_batch_size"),
)

ALWAYS: Mapping[str, Any] = {
    "eval_on_start": True,
    "val_set_size": 0,
    "save_strategy": "no",  # the callback saves
    "shuffle_merged_datasets": False,  # the trainer draws its own order from the seed, as ours does
    "sample_packing": False,
    "eval_sample_packing": False,
    "pad_to_sequence_len": False,
    "dataset_num_proc": 1,  # nothing is left to tokenise, and each process would import torch
    "gradient_checkpointing_kwargs": {"use_reentrant": False},
}
WITHOUT_GPU = dict.fromkeys(("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel"), False)
"""Axolotl turns its Triton kernels on by itself, and they need a GPU."""
OF_THE_WORK = (
    *("base_model", "tokenizer_config", "datasets", "test_datasets", "dataset_prepared_path", "output_dir"),
    *("adapter", "lora_model_dir", "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules"),
    *("bf16", "fp16", "load_in_4bit", "load_in_8bit", "bnb_config_kwargs", "resume_from_checkpoint", "plugins"),
    *("rl", "save_steps", "save_safetensors", "train_on_inputs", "dataset_exact_deduplication", "streaming"),
)
TAKEN = {*ALWAYS, *OF_THE_WORK, *(entry.theirs for entry in TABLE if entry.theirs)}
"""Keys that are filled from our settings, or that would change what is trained."""


def refuses(config: Config) -> str | None:
    """Why Axolotl cannot do what these settings ask for, with a remedy, in a sentence; None where it can."""
    reasons = unsuited(TABLE, config, python=config.options(AxolotlOptions).python)
    if config.adapter.kind not in ("lora", "dora"):
        reasons.append(f"adapter.kind {config.adapter.kind}: only lora and dora are handed over to Axolotl")
    for name in sorted(TAKEN & set(config.objective.options or {})):
        reasons.append(f"objective.options {name}: it is filled from our own settings (`mlflow-ft show trainers`)")
    return "; ".join(reasons) or None


def settings(work: Work, more: Mapping[str, str] | None) -> dict[str, Any]:
    """Axolotl's configuration; `more` are the user's own keys, as text."""
    values = work.values
    quantised = values["model.quantize"]
    rows = {"ds_type": "parquet", "type": None, "split": "train"}  # no type: the columns are tokens and labels already
    own: dict[str, Any] = {
        "base_model": str(work.base),
        "tokenizer_config": str(work.tokenizer),
        "datasets": [{"path": str(work.rows), **rows}],
        "test_datasets": [{"path": str(work.held_out), **rows}],
        "dataset_prepared_path": str(work.folder / "prepared"),
        "output_dir": str(work.output),
        "adapter": "qlora" if quantised == "nf4" else "lora",
        "lora_model_dir": str(work.adapter),
        "lora_r": values["adapter.r"],
        "lora_alpha": values["adapter.lora_alpha"] or 2 * values["adapter.r"],
        "load_in_4bit": quantised == "nf4",
        "load_in_8bit": quantised == "int8",
        "bf16": values["model.dtype"] == "bfloat16",
        "fp16": values["model.dtype"] == "float16",
    }
    if quantised == "nf4":
        own["bnb_config_kwargs"] = {"bnb_4bit_use_double_quant": values["model.double_quant"]}
    if work.checkpoint:
        own["resume_from_checkpoint"] = str(work.checkpoint)
    kernels = {} if torch.cuda.is_available() else WITHOUT_GPU
    users = {name: options.value(text) for name, text in (more or {}).items()}
    return {**kernels, **ALWAYS, **translated(TABLE, values), **own, **users}

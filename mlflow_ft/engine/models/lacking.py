"""Weights that a model's files lack, or have in another shape than its config.json says.

transformers makes such weights random and only logs it. Before a model is loaded, `check` has transformers put the
names and shapes in the files' headers onto its meta device, so that its own rules decide what may be missing: tied
weights, buffers, fused experts. `check_loaded` judges what transformers reports of a model that it has loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.models.auto.auto_factory import _get_model_class

from mlflow_ft.engine import weight_files
from mlflow_ft.engine.adapters.fitting import FAILURES
from mlflow_ft.engine.hub import quiet_transformers
from mlflow_ft.engine.models import own_quantization
from mlflow_ft.errors import ModelError
from mlflow_ft.rows import Task

SHOWN = 3
REPORTED = {"output_loading_info": True, "ignore_mismatched_sizes": True}
"""Arguments of `from_pretrained` with which transformers returns a report for `check_loaded`."""
SCORES = "ForSequenceClassification"
COPY = "copy or download the model again"
REPACKED = ("mxfp4",)
"""Ways to quantise a base's own files in which they have other tensors than the model."""


def check(folder: Path, name: str, *, task: Task | None = None, trust_remote_code: bool = False) -> None:
    """Refuse a model's folder that lacks weights; only headers are read.

    `task` is what the model is to be trained for: the head that scores is then new. None: the folder has a whole model.
    What cannot be judged without loading it is accepted: files that are not all here, code of its repository.

    Raises:
        ModelError: weights are missing, or have other shapes than config.json says.
    """
    own = own_quantization.of(folder)
    if trust_remote_code or (own and own.make in REPACKED) or not weight_files.all_here(folder):
        return
    try:
        tensors = weight_files.tensors(folder)
        stored = {key: torch.empty(tensor.shape, device="meta") for key, tensor in tensors.items()}
        with quiet_transformers():
            model, report = _on_meta(folder, stored, task)
    except (*FAILURES, ImportError):
        return  # loading the model reports the error
    if own and own.held:
        report["mismatched_keys"] = set()  # they are packed
    check_loaded(model, report, name, new_head=task == "score")


def _on_meta(folder: Path, stored: dict[str, torch.Tensor], task: Task | None) -> Any:
    """The model without weights, and transformers' report about the stored ones."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    own_quantization.forget(config)
    scores = task == "score" or (task is None and (config.architectures or [""])[0].endswith(SCORES))
    auto: Any = AutoModelForSequenceClassification if scores else AutoModelForCausalLM
    kind = _get_model_class(config, auto._model_mapping)
    config = config if isinstance(config, kind.config_class) else config.get_text_config()
    return kind.from_pretrained(
        None, config=config, state_dict=stored, dtype=torch.float32, device_map={"": "meta"}, **REPORTED
    )


def check_loaded(model: Any, report: Mapping[str, Any], name: str, *, new_head: bool = False) -> None:
    """Refuse a loaded model if transformers reports weights that were not in its files, except a head that is new.

    Raises:
        ModelError: weights are missing, or have other shapes than config.json says.
    """
    missing = sorted(report["missing_keys"])
    if new_head:
        missing = [weight for weight in missing if weight.startswith(f"{model.base_model_prefix}.")]
    if missing:
        hint = COPY
        if any(module is model.get_output_embeddings() for module in _owners(model, missing)):
            hint += "; if the embeddings serve as the output layer, set tie_word_embeddings to true in config.json"
        raise ModelError(f"model {name!r}: its files lack {_counted(missing)}", hint=hint)
    other = sorted(report["mismatched_keys"])
    if other:
        weight, has, wanted = other[0]
        more = f" ({len(other)} weights differ)" if len(other) > 1 else ""
        raise ModelError(
            f"model {name!r}: {weight} is {tuple(has)} in its files, but {tuple(wanted)} by config.json{more}",
            hint=f"use the config.json that belongs to these weights, or {COPY}",
        )


def _owners(model: Any, weights: list[str]) -> list[Any]:
    return [model.get_submodule(weight.rpartition(".")[0]) for weight in weights]


def _counted(weights: list[str]) -> str:
    shown = ", ".join(weights[:SHOWN]) + (", ..." if len(weights) > SHOWN else "")
    return f"{len(weights)} weight{'s' if len(weights) > 1 else ''}: {shown}"

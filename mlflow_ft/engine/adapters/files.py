"""Read an adapter's folder in PEFT's format: its config and its tensors, or what is wrong with them."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mlflow_ft.errors import ModelError, brief

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"
LOST = ("pissa_niter", "corda", "lora_ga", "loftq")
"""Initialisations of PEFT that change the base so that it cannot be computed again: at random, or from rows."""
INCOMPLETE = "it was saved incompletely (as DeepSpeed ZeRO-3 and FSDP do unless the shards are gathered first)"


def settings(folder: Path) -> dict[str, Any]:
    """The values in an adapter's config file.

    Raises:
        ModelError: there is no such file, it is not a JSON object for a kind of adapter that PEFT supports, or the
        adapter fits only a changed base that cannot be computed again.
    """
    file = folder / CONFIG
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} cannot be read: {brief(error)}", hint="save the adapter again") from error
    kind = settings.get("peft_type") if isinstance(settings, dict) else None
    if kind not in PEFT_TYPE_TO_CONFIG_MAPPING:
        raise ModelError(
            f"{file} is not an adapter that this PEFT supports: its peft_type is {kind!r}",
            hint="a later version of PEFT may support it",
        )
    begin = str(settings.get("init_lora_weights"))
    if begin.lower().startswith(LOST):
        again = "save it again with PEFT's save_pretrained(folder, path_initial_model_for_weight_conversion=...), or "
        raise ModelError(
            f"the adapter in {folder} began as {begin}, which changed its base in a way that cannot be repeated",
            hint=("" if begin.lower() == "loftq" else again)
            + f"save the changed base, too, set init_lora_weights to true in {CONFIG}, and name that base",
        )
    return dict(settings)


def config(folder: Path) -> PeftConfig:
    """An adapter's config as PEFT reads it. Settings of a later PEFT are omitted; see `unknown`.

    Raises:
        ModelError: it is not an adapter's config, or has values that PEFT rejects.
    """
    settings(folder)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Unexpected keyword arguments")
            config: PeftConfig = PeftConfig.from_pretrained(str(folder))
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(f"{folder / CONFIG}: {brief(error)}", hint="save the adapter again") from error
    return config


def unknown(folder: Path) -> dict[str, Any]:
    """The settings in an adapter's config that this PEFT does not support, such as those of a later version."""
    values = settings(folder)
    known = {*PEFT_TYPE_TO_CONFIG_MAPPING[values["peft_type"]].__dataclass_fields__, "runtime_config"}
    return {name: value for name, value in values.items() if name not in known and value not in (None, False, {}, [])}


def tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of an adapter by its name in the file, in memory.

    Raises:
        ModelError: there is no such file, it is truncated or empty, or it contains NaN or infinite values.
    """
    file = folder / WEIGHTS
    if not file.is_file():
        pickle = f", but {PICKLE}" if (folder / PICKLE).is_file() else ""
        raise ModelError(
            f"the adapter in {folder} has no {WEIGHTS}{pickle}", hint="only safetensors files are read, not pickles"
        )
    try:
        tensors = load_file(file)
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(
            f"{file} is truncated, or is not a safetensors file: {brief(error)}", hint="copy or save the adapter again"
        ) from error
    if not tensors:
        raise ModelError(f"{file} contains no weights: {INCOMPLETE}", hint="save the adapter again")
    broken = [name for name, weight in tensors.items() if not is_finite(weight)]
    if broken:
        raise ModelError(
            f"{file} contains NaN or infinite values in {len(broken)} of {len(tensors)} tensors: "
            f"{', '.join(broken[:3])}",
            hint="training diverged, or the file is damaged; use an earlier checkpoint",
        )
    return tensors


def is_finite(weight: Tensor) -> bool:
    """Whether a tensor has no NaN or infinite value."""
    if not weight.is_floating_point() or not weight.numel():
        return True
    return bool(torch.stack(torch.aminmax(weight.float() if weight.itemsize == 1 else weight)).isfinite().all())

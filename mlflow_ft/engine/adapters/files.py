"""An adapter's folder as PEFT writes it: its config and its tensors, or what is wrong with them."""

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
INCOMPLETE = "it was saved incomplete (DeepSpeed ZeRO-3 and FSDP save so where the shards are not gathered first)"


def settings(folder: Path) -> dict[str, Any]:
    """The values of an adapter's config, as its file has them.

    Raises:
        ModelError: there is no such file, or it is not a JSON object of a kind of adapter that PEFT knows.
    """
    file = folder / CONFIG
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} cannot be read: {brief(error)}", hint="save the adapter again") from error
    kind = found.get("peft_type") if isinstance(found, dict) else None
    if kind not in PEFT_TYPE_TO_CONFIG_MAPPING:
        raise ModelError(
            f"{file} is not an adapter that this PEFT supports: its peft_type is {kind!r}",
            hint="a later version of PEFT may support it",
        )
    return dict(found)


def config(folder: Path) -> PeftConfig:
    """An adapter's config as PEFT reads it. What only a later PEFT knows is left out; see `unknown`.

    Raises:
        ModelError: it is not an adapter's config, or holds values that PEFT refuses.
    """
    settings(folder)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Unexpected keyword arguments")
            found: PeftConfig = PeftConfig.from_pretrained(str(folder))
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(f"{folder / CONFIG}: {brief(error)}", hint="save the adapter again") from error
    return found


def unknown(folder: Path) -> dict[str, Any]:
    """What an adapter's config sets that this PEFT does not know, as one of a later version does."""
    found = settings(folder)
    known = {*PEFT_TYPE_TO_CONFIG_MAPPING[found["peft_type"]].__dataclass_fields__, "runtime_config"}
    return {name: value for name, value in found.items() if name not in known and value not in (None, False, {}, [])}


def tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of an adapter by its name in the file, in memory.

    Raises:
        ModelError: there is no such file, it is cut off or empty, or a number in it is NaN or infinite.
    """
    file = folder / WEIGHTS
    if not file.is_file():
        there = f", but {PICKLE}" if (folder / PICKLE).is_file() else ""
        raise ModelError(
            f"the adapter in {folder} has no {WEIGHTS}{there}", hint="only safetensors files are read, not pickles"
        )
    try:
        found = load_file(file)
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(
            f"{file} is truncated, or is not a safetensors file: {brief(error)}", hint="copy or save the adapter again"
        ) from error
    if not found:
        raise ModelError(f"{file} contains no weights: {INCOMPLETE}", hint="save the adapter again")
    broken = [name for name, weight in found.items() if weight.is_floating_point() and not _is_finite(weight)]
    if broken:
        raise ModelError(
            f"{file} contains NaN or infinite values in {len(broken)} of {len(found)} tensors: {', '.join(broken[:3])}",
            hint="training diverged, or the file is damaged; use an earlier checkpoint",
        )
    return found


def _is_finite(weight: Tensor) -> bool:
    return not weight.numel() or bool(torch.stack(torch.aminmax(weight.float())).isfinite().all())

"""Tensors in a model's files under names that the model does not have: parts of fused weights, and buffers.

transformers fuses the experts of a layer into one tensor when it loads them, and splits it when it saves them. If no
adapter changes such a weight, a merge copies its parts from the files.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import torch
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from mlflow_ft.engine.merging.tensor_files import ModelFiles
from mlflow_ft.engine.models.skeleton import Skeleton


def untouched(files: ModelFiles, bones: Skeleton) -> dict[str, str]:
    """From the name of each such tensor to the weight that it is, or is a part of (by transformers' own table).

    Only weights that are complete in the files, and that the adapter does not change.
    """
    steps = get_model_conversion_mapping(bones.model)
    renamings = [step for step in steps if isinstance(step, WeightRenaming)]
    converters = [step for step in steps if isinstance(step, WeightConverter)]
    buffers = {name: buffer.shape for name, buffer in bones.model.named_buffers()}
    shapes = {**buffers, **bones.shapes}
    parts: dict[str, str] = {}
    sizes: Counter[str] = Counter()
    for stored in files.places:
        name, _ = rename_source_key(stored, renamings, converters)
        if (name != stored or name in buffers) and name in shapes and name not in bones.units | bones.replaced.keys():
            parts[stored] = name
            sizes[name] += math.prod(files.entries[stored].shape)
    return {stored: name for stored, name in parts.items() if sizes[name] == math.prod(shapes[name])}


def kept_exact(model: Any, dtype: torch.dtype) -> tuple[str, ...]:
    """Parts of the names of tensors that transformers keeps in float32, whatever the type of the others.

    If the correction of a router's scores were rounded, the router would choose other experts.
    """
    always, in_half = (getattr(model, name, None) or () for name in (f"{KEEP}_strict", KEEP))
    return (*always, *(in_half if dtype == torch.float16 else ()))


KEEP = "_keep_in_fp32_modules"

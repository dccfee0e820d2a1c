"""What a model's files hold under other names than the model has: fused weights in parts, and buffers.

transformers puts the experts of a layer into one tensor when it loads them, and takes them apart when it saves them.
Where no adapter touches such a weight, a merge leaves its parts as they lie in the files.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import torch
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from mlflow_ft.engine.skeleton import Skeleton
from mlflow_ft.engine.tensor_files import ModelFiles


def untouched(files: ModelFiles, bones: Skeleton) -> dict[str, str]:
    """From the name of each such tensor to that of the weight that it is, or is a part of, by transformers' own table.

    Only of weights whose parts are all there, and that the adapter leaves alone.
    """
    steps = get_model_conversion_mapping(bones.model)
    renamings = [step for step in steps if isinstance(step, WeightRenaming)]
    converters = [step for step in steps if isinstance(step, WeightConverter)]
    buffers = {name: one.shape for name, one in bones.model.named_buffers()}
    shapes = {**buffers, **bones.shapes}
    found: dict[str, str] = {}
    sizes: Counter[str] = Counter()
    for stored in files.places:
        name, _ = rename_source_key(stored, renamings, converters)
        if (name != stored or name in buffers) and name in shapes and name not in bones.units | bones.replaced.keys():
            found[stored] = name
            sizes[name] += math.prod(files.entries[stored].shape)
    return {stored: name for stored, name in found.items() if sizes[name] == math.prod(shapes[name])}


def kept_exact(model: Any, dtype: torch.dtype) -> tuple[str, ...]:
    """Parts of the names of tensors that transformers holds in float32 whatever the others are, and reads so.

    A rounded correction of a router's scores would choose other experts.
    """
    always, in_half = (getattr(model, name, None) or () for name in (f"{KEEP}_strict", KEEP))
    return (*always, *(in_half if dtype == torch.float16 else ()))


KEEP = "_keep_in_fp32_modules"

"""The linear layers of a model: their names and sizes, which determine the shapes of some adapters."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from peft import LoraConfig
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from torch import nn
from transformers.pytorch_utils import Conv1D

MAMBAS = ("mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h")
PAST_THE_ADAPTER = ("out_proj", "conv1d")
"""Layers on which PEFT refuses LoRA in these models (`_check_lora_target_modules_mamba`)."""


def layers(module: Any) -> Iterator[tuple[str, Any]]:
    """Every linear layer except the output layer, quantised or not, with its full name."""
    outside = module.get_output_embeddings() if hasattr(module, "get_output_embeddings") else None
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear) and layer is not outside and not _does_more(layer):
            yield name, layer


def _does_more(layer: nn.Linear) -> bool:
    """Whether the model has its own kind of linear layer, such as a router: an adapter would skip what else it does."""
    own = type(layer).forward is not nn.Linear.forward
    return own and type(layer).__module__.startswith("transformers.models.")


def all_plain(module: Any) -> bool:
    """Whether every linear layer is an ordinary one, so that PEFT's `all-linear` means those of `layers`."""
    return not any(isinstance(layer, nn.Linear) and _does_more(layer) for layer in module.modules())


def names(module: Any) -> list[str]:
    """The last parts of the linear layers' names, GPT-2's among them: `["down_proj", "gate_proj", ...]`."""
    return sorted({name.rpartition(".")[2] for name, _ in (*layers(module), *transposed(module))})


def transposed(module: Any) -> Iterator[tuple[str, Conv1D]]:
    """Every linear layer of transformers' own (GPT-2), whose weights are of shape (inputs, outputs), by full name."""
    for name, layer in module.named_modules():
        if isinstance(layer, Conv1D):
            yield name, layer


def narrowest(module: Any) -> int:
    """The fewest inputs of a linear layer; 0 without one."""
    inputs = [layer.in_features for _, layer in layers(module)]
    return min((*inputs, *(len(layer.weight) for _, layer in transposed(module))), default=0)


def for_lora(module: Any) -> list[str] | None:
    """The names that `all-linear` means for LoRA; None if PEFT's own reading is correct.

    In a mixture of experts PEFT maps the names of experts in transformers 4 (gate_proj, w1 ...), and that of the
    router, to the fused weights, and includes them in `all-linear`. This builds every expert's weights a second time in
    each forward pass, trains the router, and supports neither DoRA nor dropout; so experts are adapted only if they are
    named. For Mamba PEFT refuses the layers whose weights go to a kernel without their adapter.
    """
    config = LoraConfig(target_modules="all-linear")
    convert_peft_config_for_transformers(config, module, None)
    if config.target_parameters:
        return sorted(config.target_modules or ())
    if module.config.model_type in MAMBAS:
        return [name for name in names(module) if name not in PAST_THE_ADAPTER]
    return None if all_plain(module) else names(module)


def norms(module: Any) -> list[str]:
    """The last parts of the normalisation layers' names."""
    names = {name.rpartition(".")[2] for name, layer in module.named_modules() if type(layer).__name__.endswith("Norm")}
    return sorted(names)


def smallest(module: Any) -> int:
    """Number of weights of the smallest linear layer."""
    return min(int(layer.in_features * layer.out_features) for _, layer in layers(module))


def common_side(module: Any, most: int) -> int:
    """The largest number up to `most` that divides the sides of every linear layer."""
    divisor = math.gcd(*(side for _, layer in layers(module) for side in (layer.in_features, layer.out_features)))
    return max(part for part in range(1, min(divisor, most) + 1) if divisor % part == 0)

"""The linear layers of a model: their names and sizes, from which some adapters take their own shapes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from peft import LoraConfig
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from torch import nn

MAMBAS = ("mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h")
PAST_THE_ADAPTER = ("out_proj", "conv1d")
"""What PEFT refuses to put LoRA on in these models (`_check_lora_target_modules_mamba`)."""


def layers(module: Any) -> Iterator[tuple[str, Any]]:
    """Every linear layer but the output layer, quantised or not, with its full name."""
    outside = module.get_output_embeddings() if hasattr(module, "get_output_embeddings") else None
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear) and layer is not outside and not _does_more(layer):
            yield name, layer


def _does_more(layer: nn.Linear) -> bool:
    """Whether a model made its own of a linear layer, such as a router: an adapter would do the rest no more."""
    own = type(layer).forward is not nn.Linear.forward
    return own and type(layer).__module__.startswith("transformers.models.")


def all_plain(module: Any) -> bool:
    """Whether every linear layer is one in the usual sense, so that PEFT's `all-linear` means those of `layers`."""
    return not any(isinstance(layer, nn.Linear) and _does_more(layer) for layer in module.modules())


def names(module: Any) -> list[str]:
    """What the linear layers are called, without the place: `["down_proj", "gate_proj", ...]`."""
    return sorted({name.rpartition(".")[2] for name, _ in layers(module)})


def for_lora(module: Any) -> list[str] | None:
    """The names that `all-linear` stands for with LoRA; None where PEFT itself reads it so.

    Of a mixture of experts PEFT takes the names that experts had in transformers 4 (gate_proj, w1 ...), and that of the
    router, for the fused weights, and lets `all-linear` mean them too. That makes every expert's weights a second time
    in each forward pass, trains the router, and goes neither with DoRA nor with dropout; so experts are adapted only
    where they are named. Of Mamba it refuses the layers whose weights go to a kernel without their adapter.
    """
    asked = LoraConfig(target_modules="all-linear")
    convert_peft_config_for_transformers(asked, module, None)
    if asked.target_parameters:
        return sorted(asked.target_modules or ())
    if module.config.model_type in MAMBAS:
        return [name for name in names(module) if name not in PAST_THE_ADAPTER]
    return None if all_plain(module) else names(module)


def norms(module: Any) -> list[str]:
    """What the normalising layers are called, without the place."""
    found = {name.rpartition(".")[2] for name, layer in module.named_modules() if type(layer).__name__.endswith("Norm")}
    return sorted(found)


def smallest(module: Any) -> int:
    """Number of weights of the smallest linear layer."""
    return min(int(layer.in_features * layer.out_features) for _, layer in layers(module))


def common_side(module: Any, most: int) -> int:
    """The largest number up to `most` that divides the sides of every linear layer."""
    whole = math.gcd(*(side for _, layer in layers(module) for side in (layer.in_features, layer.out_features)))
    return max(part for part in range(1, min(whole, most) + 1) if whole % part == 0)

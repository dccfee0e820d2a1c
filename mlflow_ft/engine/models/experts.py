"""Mixtures of experts: which weights belong to the experts, which of them an adapter changes, and which stay.

transformers 5 holds the experts of a layer fused, in one tensor of shape (experts, ., .), which no linear layer owns.
So `all-linear` does not cover them; PEFT's LoRA reaches them by the names of the tensors (`target_parameters`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from torch import nn

from mlflow_ft.engine.loss import causal_model
from mlflow_ft.engine.models import linear

ALL = "experts"
"""`adapter.target_parameters` of this value means every fused weight of the experts."""


def fused(module: nn.Module) -> dict[str, nn.Parameter]:
    """The fused weights of the experts by full name; empty if the model has no experts, or a module for each."""
    causal = causal_model(module)
    counts = set(_counts(causal.config.to_dict()))
    return {
        f"{place}.{name}": weight
        for place, owner in causal.named_modules()
        for name, weight in owner.named_parameters(recurse=False)
        if _is_fused(owner, weight, counts)
    }


def _is_fused(owner: nn.Module, weight: nn.Parameter, counts: set[int]) -> bool:
    if isinstance(owner, nn.modules.conv._ConvNd | nn.Linear | nn.Embedding):
        return False
    if weight.dim() == 3:
        return weight.shape[0] in counts
    return weight.dim() == 2 and "Expert" in type(owner).__name__ and weight.shape[0] not in counts  # not a bias


def _counts(settings: Mapping[str, Any]) -> Iterator[int]:
    """Every number in a model's config that may be its number of experts."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _counts(value)
        elif "experts" in str(name) and "per_tok" not in name:
            numbers = value if isinstance(value, list) else [value]
            yield from (number for number in numbers if type(number) is int and number > 1)


def parameters(module: nn.Module, *, layers: Collection[int] | None = None) -> list[str]:
    """The fused weights as `target_parameters` names them: `["experts.down_proj", "experts.gate_up_proj"]`.

    With `layers` (numbers), the full names in those layers: the short names would match all layers.
    """
    if layers is None:
        return sorted({_short(name) for name in fused(module)})
    return [name for name in fused(module) if _number(name) in layers]


def _number(name: str) -> int | None:
    return int(match.group(1)) if (match := re.search(r"\.(\d+)\.", name)) else None


def _plain(name: str) -> str:
    """A weight's name without the parts that PEFT adds."""
    return re.sub(r"\.(base_layer|original_module)(?=\.|$)", "", name)


def _short(name: str) -> str:
    """The last two parts of a name."""
    return ".".join(_plain(name).split(".")[-2:])


def summary(module: nn.Module, *, by_name: bool, all_linear: bool, quantize: str) -> str:
    """Which parts of a mixture of experts train, in a sentence; "" for any other model.

    `by_name`: whether `adapter.target_parameters` can put this adapter on the experts. `all_linear`: whether all linear
    layers were asked for, so that those without an adapter are named.
    """
    experts = fused(module)
    if not experts:
        return ""
    changed = _changed(module)
    train, stay = [], []
    for label, weights in (("the experts", experts), ("the routers", _routers(module))):
        trained = [name for name, weight in weights.items() if id(weight) in changed]
        train.append(_named(label, weights, trained))
        stay.append(_named(label, weights, weights.keys() - set(trained)))
    adapted = _adapted(module)
    parts = [f"the adapter is on {', '.join(adapted)}"] if adapted else []
    parts += [f"{' and '.join(filter(None, train))} are trained"] if any(train) else []
    if adapted and all_linear and (without := _not_adapted(module)):
        stay.append(f"the linear layers {', '.join(without)} (not among `all-linear` here)")
    parts += [f"{' and '.join(filter(None, stay))} are not trained"] if any(stay) else []
    if by_name and stay[0]:
        parts[-1] += f" (--adapter.target_parameters {ALL} adapts the experts)"
    return "a mixture of experts: " + "; ".join(parts) + _memory(experts, quantize)


def _named(label: str, weights: Collection[str], names: Collection[str]) -> str:
    """Some of the weights, and in how many layers, if not in all of them."""
    total, count = Counter(map(_short, weights)), Counter(map(_short, names))
    some = {name: f" of {count[name]} of {total[name]} layers" if count[name] < total[name] else "" for name in count}
    return f"{label} ({', '.join(name + some[name] for name in sorted(some))})" if names else ""


def _adapted(module: nn.Module) -> list[str]:
    """The last names of the layers that have an adapter; not those with an adapter on single weights."""
    layers = ((name, layer) for name, layer in module.named_modules() if isinstance(layer, BaseTunerLayer))
    return sorted({name.rpartition(".")[2] for name, layer in layers if not _on_a_weight(layer)})


def _not_adapted(module: nn.Module) -> list[str]:
    """The last two parts of the names of linear layers that have no adapter, such as shared experts."""
    causal = causal_model(module)
    adapted = tuple(f"{name}." for name, layer in causal.named_modules() if isinstance(layer, BaseTunerLayer))
    return sorted({_short(name) for name, _ in linear.layers(causal) if not f"{name}.".startswith(adapted)})


def _on_a_weight(layer: Any) -> bool:
    """Whether an adapter is on a single weight (`target_parameters`), not on a layer."""
    return hasattr(layer, "parameter_name")


def _routers(module: nn.Module) -> dict[str, nn.Parameter]:
    """The weights that score the experts: of shape (experts, hidden size), in the same layers as the experts."""
    experts = fused(module)
    shapes = {(weight.shape[0], side) for weight in experts.values() for side in weight.shape[1:]}
    prefixes = tuple({f"{_plain(name).rsplit('.', 2)[0]}." for name in experts})
    return {
        name.removesuffix(".weight"): weight
        for name, weight in causal_model(module).named_parameters()
        if tuple(weight.shape) in shapes and name.startswith(prefixes) and not re.search(r"\.experts\.|\.lora_", name)
    }


def _changed(module: nn.Module) -> set[int]:
    """The ids of the base's weights that train, or have an adapter."""
    changed = {id(weight) for weight in module.parameters() if weight.requires_grad}
    for layer in module.modules():
        if isinstance(layer, BaseTunerLayer) and _on_a_weight(layer):
            changed.add(id(getattr(layer.get_base_layer(), str(layer.parameter_name))))
        elif isinstance(layer, BaseTunerLayer):
            changed |= {id(weight) for weight in layer.get_base_layer().parameters()}
        elif isinstance(layer, AuxiliaryTrainingWrapper):
            changed |= {id(weight) for weight in layer.original_module.parameters()}
    return changed


def _memory(experts: Mapping[str, nn.Parameter], quantize: str) -> str:
    """How much memory the experts of a quantised base take: bitsandbytes quantises linear layers only."""
    if quantize == "none":
        return ""
    size = sum(weight.numel() * weight.element_size() for weight in experts.values())
    types = {str(weight.dtype).removeprefix("torch.") for weight in experts.values()}
    return f"; {quantize} is for linear layers only: the experts are {' and '.join(types)}, {size / 2**30:.1f} GiB"

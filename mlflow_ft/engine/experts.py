"""Mixtures of experts: which weights are the experts', what an adapter changes of them, and what it leaves alone.

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

ALL = "experts"
"""`adapter.target_parameters` of this value means every fused weight of the experts."""


def fused(module: nn.Module) -> dict[str, nn.Parameter]:
    """The fused weights of the experts by full name; empty for a model without them, or with experts one by one."""
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
    """Every number in a model's config that may be that of its experts."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _counts(value)
        elif "experts" in str(name) and "per_tok" not in name:
            yield from (one for one in (value if isinstance(value, list) else [value]) if type(one) is int and one > 1)


def parameters(module: nn.Module, *, layers: Collection[int] | None = None) -> list[str]:
    """What PEFT calls the fused weights, without the place: `["experts.down_proj", "experts.gate_up_proj"]`.

    With `layers`, the numbers of layers, their full names in these: PEFT would take all others too.
    """
    if layers is None:
        return sorted({_short(name) for name in fused(module)})
    return [name for name in fused(module) if _number(name) in layers]


def _number(name: str) -> int | None:
    return int(match.group(1)) if (match := re.search(r"\.(\d+)\.", name)) else None


def _plain(name: str) -> str:
    """A weight's name without what PEFT puts into it."""
    return re.sub(r"\.(base_layer|original_module)(?=\.|$)", "", name)


def _short(name: str) -> str:
    """The last two parts of a name."""
    return ".".join(_plain(name).split(".")[-2:])


def told(module: nn.Module, *, by_name: bool, quantize: str) -> str:
    """What trains of a mixture of experts, in a sentence; "" for another model.

    `by_name` says whether the adapter can be put on the experts by `adapter.target_parameters`.
    """
    experts = fused(module)
    if not experts:
        return ""
    changed = _changed(module)
    sides = (("the experts", experts), ("the routers", _routers(module)))
    train, stay = (
        [
            _named(side, some, [name for name, one in some.items() if (id(one) in changed) is those])
            for side, some in sides
        ]
        for those in (True, False)
    )
    parts = [f"the adapter is on {', '.join(layers)}" for layers in [_adapted(module)] if layers]
    parts += [f"{' and '.join(filter(None, train))} train"] if any(train) else []
    parts += [f"{' and '.join(filter(None, stay))} stay as they are"] if any(stay) else []
    if by_name and stay[0]:
        parts[-1] += f" (--adapter.target_parameters {ALL} adapts the experts)"
    return "a mixture of experts: " + "; ".join(parts) + _memory(experts, quantize)


def _named(side: str, weights: Collection[str], names: Collection[str]) -> str:
    """Some of the weights of a side, and of how many layers where they are not all of that name."""
    every, some = (Counter(map(_short, several)) for several in (weights, names))
    told = [name if some[name] == every[name] else f"{name} of {some[name]} of {every[name]} layers" for name in some]
    return f"{side} ({', '.join(sorted(told))})" if names else ""


def _adapted(module: nn.Module) -> list[str]:
    """The last names of the layers that an adapter is on, weights that were named one by one apart."""
    layers = [name for name, one in module.named_modules() if isinstance(one, BaseTunerLayer) and not _wraps(one)]
    return sorted({name.rpartition(".")[2] for name in layers})


def _wraps(layer: Any) -> bool:
    """Whether an adapter's layer is over one weight of another layer."""
    return hasattr(layer, "parameter_name")


def _routers(module: nn.Module) -> dict[str, nn.Parameter]:
    """The weights that give every expert a score: of shape (experts, hidden size)."""
    experts = fused(module)
    shapes = {(weight.shape[0], side) for weight in experts.values() for side in weight.shape[1:]}
    beside = tuple({f"{_plain(name).rsplit('.', 2)[0]}." for name in experts})
    return {
        name.removesuffix(".weight"): weight
        for name, weight in causal_model(module).named_parameters()
        if tuple(weight.shape) in shapes and name.startswith(beside) and not re.search(r"\.experts\.|\.lora_", name)
    }


def _changed(module: nn.Module) -> set[int]:
    """The ids of the base's weights that train, whole or by what an adapter adds to them."""
    found = {id(weight) for weight in module.parameters() if weight.requires_grad}
    for layer in module.modules():
        if isinstance(layer, BaseTunerLayer) and _wraps(layer):
            found.add(id(getattr(layer.get_base_layer(), str(layer.parameter_name))))
        elif isinstance(layer, BaseTunerLayer):
            found |= {id(weight) for weight in layer.get_base_layer().parameters()}
        elif isinstance(layer, AuxiliaryTrainingWrapper):
            found |= {id(weight) for weight in layer.original_module.parameters()}
    return found


def _memory(experts: Mapping[str, nn.Parameter], quantize: str) -> str:
    """How much memory the experts of a quantised base take: bitsandbytes rounds the weights of linear layers alone."""
    if quantize == "none":
        return ""
    size = sum(weight.numel() * weight.element_size() for weight in experts.values())
    types = {str(weight.dtype).removeprefix("torch.") for weight in experts.values()}
    return f"; {quantize} holds linear layers alone, and the experts are {' and '.join(types)}, {size / 2**30:.1f} GiB"

"""Match the names of one weight under wrappers, versions of libraries and whole vision models.

    base_model.model._orig_mod.model.layers.0.mlp.up_proj.lora_A.weight       torch.compile
    base_model.model.model.language_model.layers.0.mlp.up_proj.lora_A.weight  the whole of a vision model
    model.layers.0.mlp.up_proj.lora_A.default.weight                          a state dict without PEFT's own saving

All of these become `layers.0.mlp.up_proj.lora_A.weight`, which is used only if every name then finds its partner.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

Shapes = Mapping[str, Sequence[int]]
WRAPPERS = frozenset({"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"})
"""What torch.compile, DDP, FSDP, activation checkpointing and Lightning insert into names."""
OUTER = frozenset({"base_model", "model", "transformer", "language_model", "text_model", "llm"})
"""What precedes the layers: PEFT's own part, the model around its body, the text part of a larger model."""
PICTURES = frozenset(
    {"visual", "vision_tower", "vision_model", "vision_encoder", "image_tower", "audio_tower", "audio_model", "merger"}
    | {"multi_modal_projector", "connector", "embed_vision", "embed_audio"}
)
"""Parts of the names of layers that read pictures and sound."""
ENDINGS = (
    (re.compile(r"\.default(?=\.(?:weight|bias)$|$)"), ""),
    (re.compile(r"\.modules_to_save(?=\.(?:weight|bias)$)"), ""),
    (re.compile(r"\.base_layer(?=\.(?:weight|bias)$)"), ""),
    (re.compile(r"(?<=\.lora_magnitude_vector)\.weight$"), ""),
)
"""The adapter's name inside the model, and what PEFT adds to a name or omits, depending on its version."""


def short(name: str) -> str:
    """A weight's name without the parts that do not identify it.

    >>> short("base_model.model._orig_mod.model.layers.0.mlp.up_proj.lora_A.default.weight")
    'layers.0.mlp.up_proj.lora_A.weight'
    """
    parts = [part for part in name.split(".") if part not in WRAPPERS]
    while len(parts) > 1 and parts[0] in OUTER:
        parts.pop(0)
    result = ".".join(parts)
    for pattern, instead in ENDINGS:
        result = pattern.sub(instead, result)
    return result


def unwrapped(name: str) -> str:
    """A weight's name as PEFT would have saved it from a model without wrappers.

    >>> unwrapped("module.base_model.model._orig_mod.model.layers.0.mlp.up_proj.lora_A.weight")
    'base_model.model.model.layers.0.mlp.up_proj.lora_A.weight'
    """
    result = ".".join(part for part in name.split(".") if part not in WRAPPERS)
    result = re.sub(r"^(?:base_model\.model\.)+", "base_model.model.", result)
    return result if result.startswith("base_model.") or "." not in result else f"base_model.model.{result}"


def counted(names: Iterable[str]) -> bool:
    """Whether the experts of each layer, if they have separate weights, are numbered from 0 without a gap.

    transformers 5 fuses them into one weight in the order of their numbers, and would not notice a missing one.
    """
    numbers_of: dict[tuple[str, str], set[int]] = {}
    for name in names:
        if parts := re.match(r"(.*\.experts)\.(\d+)\.(.*)", name):
            numbers_of.setdefault((parts[1], parts[3]), set()).add(int(parts[2]))
    return all(numbers == set(range(len(numbers))) for numbers in numbers_of.values())


def matched(there: Shapes, wanted: Shapes, *, more: Shapes) -> dict[str, str] | None:
    """From the names in `there` to the wanted ones, if all match; None if any does not.

    `there` and `wanted` are the shapes of weights by their names. Each wanted weight must be in `there`, and each in
    `there` must be wanted or one of `more`, with the same shape. Names are matched unchanged, or all by `short`.
    """
    forms: tuple[Callable[[str], str], ...] = (str, short)
    for key in forms:
        names, others = _by(key, wanted), _by(key, more)
        partner_of = {name: names.get(key(name)) or others.get(key(name)) for name in there}
        partners = [partner for partner in partner_of.values() if partner]
        shapes = {**more, **wanted}
        if (
            len(set(partners)) == len(there)
            and set(wanted) <= set(partners)
            and all(tuple(there[name]) == tuple(shapes[str(partner)]) for name, partner in partner_of.items())
        ):
            return {name: str(partner) for name, partner in partner_of.items()}
    return None


def _by(key: Callable[[str], str], names: Iterable[str]) -> dict[str, str]:
    """The names by their form, except those that share one."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(key(name), []).append(name)
    return {form: several[0] for form, several in groups.items() if len(several) == 1}

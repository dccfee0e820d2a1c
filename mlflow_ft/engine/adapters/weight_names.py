"""One weight under several names: what wrappers, versions of libraries and the whole of a picture model make of it.

    base_model.model._orig_mod.model.layers.0.mlp.up_proj.lora_A.weight       torch.compile
    base_model.model.model.language_model.layers.0.mlp.up_proj.lora_A.weight  the whole of a picture model
    model.layers.0.mlp.up_proj.lora_A.default.weight                          a state dict without PEFT's own saving

All are `layers.0.mlp.up_proj.lora_A.weight` here. Names are matched by it only where every one finds its partner.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

Shapes = Mapping[str, Sequence[int]]
WRAPPERS = frozenset({"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"})
"""What torch.compile, DDP, FSDP, activation checkpointing and Lightning put between two parts of a name."""
OUTER = frozenset({"base_model", "model", "transformer", "language_model", "text_model", "llm"})
"""What stands before the layers: PEFT's own part, the model around its body, the text part of a model with others."""
PICTURES = frozenset(
    {"visual", "vision_tower", "vision_model", "vision_encoder", "image_tower", "audio_tower", "audio_model", "merger"}
    | {"multi_modal_projector", "connector", "embed_vision", "embed_audio"}
)
"""Parts of names of what reads pictures and sound."""
ENDINGS = (
    (re.compile(r"\.default(?=\.(?:weight|bias)$|$)"), ""),
    (re.compile(r"\.modules_to_save(?=\.(?:weight|bias)$)"), ""),
    (re.compile(r"\.base_layer(?=\.(?:weight|bias)$)"), ""),
    (re.compile(r"(?<=\.lora_magnitude_vector)\.weight$"), ""),
)
"""The adapter's name inside the model, and what PEFT adds to a name or leaves out, by its version."""


def short(name: str) -> str:
    """A weight's name without what does not tell it from others.

    >>> short("base_model.model._orig_mod.model.layers.0.mlp.up_proj.lora_A.default.weight")
    'layers.0.mlp.up_proj.lora_A.weight'
    """
    parts = [part for part in name.split(".") if part not in WRAPPERS]
    while len(parts) > 1 and parts[0] in OUTER:
        parts.pop(0)
    found = ".".join(parts)
    for pattern, instead in ENDINGS:
        found = pattern.sub(instead, found)
    return found


def unwrapped(name: str) -> str:
    """A weight's name as PEFT would have saved it of a model that was not wrapped.

    >>> unwrapped("module.base_model.model._orig_mod.model.layers.0.mlp.up_proj.lora_A.weight")
    'base_model.model.model.layers.0.mlp.up_proj.lora_A.weight'
    """
    found = ".".join(part for part in name.split(".") if part not in WRAPPERS)
    found = re.sub(r"^(?:base_model\.model\.)+", "base_model.model.", found)
    return found if found.startswith("base_model.") or "." not in found else f"base_model.model.{found}"


def counted(names: Iterable[str]) -> bool:
    """Whether the experts of each layer, where they have weights of their own, are numbered from 0 without a gap.

    transformers 5 holds them in one weight, in the order of their numbers, and would not see that one is missing.
    """
    found: dict[tuple[str, str], set[int]] = {}
    for name in names:
        if parts := re.match(r"(.*\.experts)\.(\d+)\.(.*)", name):
            found.setdefault((parts[1], parts[3]), set()).add(int(parts[2]))
    return all(numbers == set(range(len(numbers))) for numbers in found.values())


def matched(there: Shapes, wanted: Shapes, *, more: Shapes) -> dict[str, str] | None:
    """From the names that are there to the wanted ones, if all fit; None if any does not.

    `there` and `wanted` are the shapes of weights by their names. Each wanted weight must be there, and each that is
    there must be wanted or one of `more`, all of the same shape. Names are matched as they are, or all by `short`.
    """
    forms: tuple[Callable[[str], str], ...] = (str, short)
    for key in forms:
        names, others = _by(key, wanted), _by(key, more)
        found = {name: names.get(key(name)) or others.get(key(name)) for name in there}
        partners = [partner for partner in found.values() if partner]
        shapes = {**more, **wanted}
        if (
            len(set(partners)) == len(there)
            and set(wanted) <= set(partners)
            and all(tuple(there[name]) == tuple(shapes[str(partner)]) for name, partner in found.items())
        ):
            return {name: str(partner) for name, partner in found.items()}
    return None


def _by(key: Callable[[str], str], names: Iterable[str]) -> dict[str, str]:
    """The names by their form; those that share one are left out."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(key(name), []).append(name)
    return {form: several[0] for form, several in found.items() if len(several) == 1}

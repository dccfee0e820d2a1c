"""Rewrite the names of layers in an adapter's config to the base's: wrappers and whole models use other names."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from mlflow_ft.engine.adapters.weight_names import short

LISTS = ("_modules", "modules_to_save")
"""Ends of the names of settings that list layers by the end of their names."""
PATTERNS = "_pattern"
"""The end of the names of settings with a value for each layer whose name ends in a pattern."""
RANKS = ".lora_E"
"""What AdaLoRA appends to the name of a layer."""
BEGINNINGS = ("model.language_model.", "language_model.model.", "language_model.", "model.text_model.", "model.llm.")
"""What may precede the name of a layer in a whole model of which the base is the text part."""


def as_named_here(config: Any, names: Collection[str]) -> None:
    """Replace the names of layers in a PEFT config by the base's, in place.

    `names` are those of the base's modules. A name that no module's name ends with, and that is `short` for exactly
    one, is replaced by that module's. So a setting for a layer is not lost because the layer had another name.
    """
    known: dict[str, list[str]] = {}
    for name in names:
        known.setdefault(short(name), []).append(name)
    here = {form: several[0] for form, several in known.items() if len(several) == 1}
    for field, value in list(vars(config).items()):
        if field.endswith(LISTS) and isinstance(value, (list, set, tuple)):
            setattr(config, field, type(value)(_ending(item, names, here) for item in value))
        elif field.endswith(PATTERNS) and isinstance(value, Mapping):
            setattr(config, field, {_pattern(key, names, here): item for key, item in value.items()})
        elif field == "trainable_token_indices" and isinstance(value, Mapping):
            config.trainable_token_indices = {_ending(key, names, here): ids for key, ids in value.items()}
        elif field == "target_modules" and isinstance(value, str) and value != "all-linear":
            config.target_modules = _expression(value, names)


def _ending(name: str, names: Iterable[str], here: Mapping[str, str]) -> str:
    return name if any(other == name or other.endswith(f".{name}") for other in names) else here.get(short(name), name)


def _pattern(key: str, names: Iterable[str], here: Mapping[str, str]) -> str:
    if key.endswith(RANKS):
        return _ending(key.removesuffix(RANKS), names, here) + RANKS
    if any(re.match(rf"(.*\.)?({key})$", name) for name in names):
        return key
    return re.escape(here[short(key)]) if short(key) in here else key


def _expression(target: str, names: Iterable[str]) -> str | list[str]:
    """A pattern of whole names; if it matches none of the base's, the names that match it after a beginning."""
    if any(re.fullmatch(target, name) for name in names):
        return target
    for beginning in BEGINNINGS:
        if matching := [name for name in names if re.fullmatch(target, beginning + short(name))]:
            return matching
    return target

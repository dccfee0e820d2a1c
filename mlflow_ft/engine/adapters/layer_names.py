"""The names of layers in an adapter's config, as the base has them: wrappers and whole models have other names."""

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
"""What AdaLoRA puts behind the name of a layer."""
BEGINNINGS = ("model.language_model.", "language_model.model.", "language_model.", "model.text_model.", "model.llm.")
"""What may stand before the name of a layer in the whole of a model of which the base is the text part."""


def as_named_here(config: Any, names: Collection[str]) -> None:
    """Write the names of layers in a PEFT config as the base has them, where they are known and are not its own.

    `names` are those of the base's modules. A name that ends in no module's, and is `short` for one alone, becomes that
    one's. So a value is not lost for a layer only because it was called otherwise in training.
    """
    known: dict[str, list[str]] = {}
    for name in names:
        known.setdefault(short(name), []).append(name)
    here = {form: several[0] for form, several in known.items() if len(several) == 1}
    for field, value in list(vars(config).items()):
        if field.endswith(LISTS) and isinstance(value, (list, set, tuple)):
            setattr(config, field, type(value)(_ending(one, names, here) for one in value))
        elif field.endswith(PATTERNS) and isinstance(value, Mapping):
            setattr(config, field, {_pattern(key, names, here): one for key, one in value.items()})
        elif field == "trainable_token_indices" and isinstance(value, Mapping):
            config.trainable_token_indices = {_ending(key, names, here): ids for key, ids in value.items()}
        elif field == "target_modules" and isinstance(value, str) and value != "all-linear":
            config.target_modules = _expression(value, names)


def _ending(name: str, names: Iterable[str], here: Mapping[str, str]) -> str:
    return name if any(one == name or one.endswith(f".{name}") for one in names) else here.get(short(name), name)


def _pattern(key: str, names: Iterable[str], here: Mapping[str, str]) -> str:
    if key.endswith(RANKS):
        return _ending(key.removesuffix(RANKS), names, here) + RANKS
    if any(re.match(rf"(.*\.)?({key})$", name) for name in names):
        return key
    return re.escape(here[short(key)]) if short(key) in here else key


def _expression(target: str, names: Iterable[str]) -> str | list[str]:
    """A pattern of whole names; where it holds for none of the base's, those for which it holds with a beginning."""
    if any(re.fullmatch(target, name) for name in names):
        return target
    for beginning in BEGINNINGS:
        if found := [name for name in names if re.fullmatch(target, beginning + short(name))]:
            return found
    return target

"""Refuse names and numbers of layers, in an adapter's settings, that match nothing: PEFT ignores them beside others."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from mlflow_ft.engine.models import experts
from mlflow_ft.errors import ModelError

PATTERNS = ("rank_pattern", "alpha_pattern", "target_parameters")
"""Fields of PEFT's configs with names, or regular expressions of them, as keys or in a list."""


class Names:
    """The names that an adapter's config has before PEFT changes it, and those of the model that it is for.

    Raises:
        ModelError: `adapter.layers_to_transform` has a number that is not a layer's, or `adapter.modules_to_save` or
        `exclude_modules` a name.
    """

    def __init__(self, module: Any, peft_config: Any) -> None:
        weights = ((name, getattr(layer, "weight", None)) for name, layer in module.named_modules())
        self._matrices = sorted({_last(name) for name, weight in weights if weight is not None and weight.dim() > 1})
        self._patterns = {field: list(getattr(peft_config, field, None) or ()) for field in PATTERNS}
        _check_numbers(module, peft_config)
        places = [name for name, _ in module.named_modules()]
        excluded = getattr(peft_config, "exclude_modules", None) or ()
        for name in () if isinstance(excluded, str) else excluded:
            if not _among(name, places):
                raise ModelError(f"adapter.options exclude_modules: {name!r} matches no layer", hint=self._has)
        for name in getattr(peft_config, "modules_to_save", None) or ():
            if not any(place.endswith(name) for place in places):  # as PEFT compares these
                raise ModelError(f"adapter.modules_to_save: {name!r} matches no module", hint=self._has)

    @property
    def _has(self) -> str:
        return f"the model has: {', '.join(self._matrices)}"

    def check(self, wrapped: Any, targets: str | Sequence[str]) -> None:
        """Compare them with the layers and weights that PEFT adapted; `targets` is `adapter.target_modules`.

        Raises:
            ModelError: a pattern or a name matches no adapted layer or weight, or a named weight does not exist.
        """
        tuner = wrapped.base_model
        layers, weights = (list(getattr(tuner, f"targeted_{kind}_names", ())) for kind in ("module", "parameter"))
        self._check_targets(wrapped.peft_config["default"], targets, layers)
        for field, names in self._patterns.items():
            on_weights = field == "target_parameters"
            places = weights if on_weights else [*layers, *weights]
            for name in names:
                pattern = re.escape(name) if on_weights else name
                if any(re.match(rf"(.*\.)?({pattern})$", place) for place in places):
                    continue
                fused = ", ".join(experts.parameters(wrapped)) or "none"
                raise ModelError(
                    f"adapter.{field}: {name!r} matches {'no weight' if on_weights else 'no adapted layer'}",
                    hint=f"the fused weights of experts are: {fused}"
                    if on_weights
                    else f"adapted are: {', '.join(sorted(set(map(_last, places))))}",
                )

    def _check_targets(self, peft_config: Any, targets: str | Sequence[str], adapted: Sequence[str]) -> None:
        """Names that PEFT took for fused experts have left its config; modules trained in full have no adapter."""
        left = getattr(peft_config, "target_modules", None) or ()
        full = getattr(peft_config, "modules_to_save", None) or ()
        for name in () if isinstance(targets, str) else targets:
            if name in left and name not in full and not _among(name, adapted):
                raise ModelError(
                    f"adapter.target_modules: {name!r} matches no layer that can have the adapter", hint=self._has
                )


def _check_numbers(module: Any, peft_config: Any) -> None:
    numbers = getattr(peft_config, "layers_to_transform", None) or ()
    count = getattr(module.config.get_text_config(), "num_hidden_layers", 0)
    beyond = [number for number in numbers if count and not 0 <= number < count]
    if beyond and not getattr(peft_config, "layers_pattern", None):
        raise ModelError(
            f"adapter.layers_to_transform: the model has no layer {beyond[0]}",
            hint=f"its layers have the numbers 0 to {count - 1}",
        )


def _among(name: str, places: Sequence[str]) -> bool:
    """Whether a name is that of a layer, or the end of it, as PEFT compares names."""
    return any(f".{place}".endswith(f".{name}") for place in places)


def _last(name: str) -> str:
    return name.rpartition(".")[2]

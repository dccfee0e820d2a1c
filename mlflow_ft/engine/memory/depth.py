"""Passes of a deep model from those of a shallow one, where all of its layers are alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from mlflow_ft.engine.loss import causal_model
from mlflow_ft.engine.memory.fake import Fake
from mlflow_ft.engine.memory.passes import Pass
from mlflow_ft.engine.memory.values import Setting
from mlflow_ft.engine.models import skeleton

SHALLOW, LESS_SHALLOW = 2, 4
"""Two depths from which a deeper model follows: each further layer takes the same."""


class Depth:
    """The model of a setting, and what its passes take.

    A model whose layers are all alike is run with two and with four of them: a pass of 80 layers takes seconds too.
    """

    def __init__(self, setting: Setting) -> None:
        self.whole = Fake(setting)
        self._count = _alike(self.whole.model)
        shallow = (SHALLOW, LESS_SHALLOW) if self._count > LESS_SHALLOW else ()
        self._shallow = [Fake(setting, layers=layers) for layers in shallow]

    def taken(self, run: Callable[[Any], Pass]) -> Pass:
        """What a pass takes at the model's own depth.

        Raises:
            UnsuitedError: the model cannot be run without weights.
        """
        if not self._shallow:
            return _run(self.whole, run)
        fewer, more = (_run(fake, run) for fake in self._shallow)
        return Pass(at_peak=self._continued(fewer.at_peak, more.at_peak), kept=self._continued(fewer.kept, more.kept))

    def _continued(self, fewer: Mapping[str, int], more: Mapping[str, int]) -> dict[str, int]:
        steps = (self._count - LESS_SHALLOW) / (LESS_SHALLOW - SHALLOW)
        return {name: int(size + steps * (size - fewer.get(name, 0))) for name, size in more.items()}


def _run(fake: Fake, run: Callable[[Any], Pass]) -> Pass:
    try:
        with fake.mode:
            return run(fake.model)
    except skeleton.FAILURES as error:
        raise skeleton.UnsuitedError(f"the model cannot be run without weights: {error}") from error


def _alike(model: Any) -> int:
    """The number of repeated layers if all have the same kind and the same weights, else 0."""
    config = causal_model(model).config.get_text_config()
    depth = getattr(config, "num_hidden_layers", 0)
    lists = [layers for layers in model.modules() if isinstance(layers, nn.ModuleList) and len(layers) == depth]
    if len(lists) != 1:
        return 0
    kinds = {
        str(
            [
                (name, tuple(weight.shape), weight.dtype, weight.requires_grad)
                for name, weight in layer.named_parameters()
            ]
        )
        for layer in lists[0]
    }
    types = getattr(config, "layer_types", None) or ["same"]
    return depth if len(kinds) == 1 and len(set(types)) == 1 else 0

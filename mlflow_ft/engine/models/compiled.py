"""The layers of a model compiled by torch (`training.compile`), each by itself, for any length of rows."""

from __future__ import annotations

from typing import Any

import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from mlflow_ft.config.schema import Config
from mlflow_ft.engine.loss import causal_model
from mlflow_ft.errors import ConfigError, brief


def check(config: Config) -> str:
    """Compile a small function, and say what with.

    Raises:
        ConfigError: it is not possible here, for example because there is no C++ compiler; or weights are in shares.
    """
    if config.launch.sharded or config.launch.own_engine:
        raise ConfigError(
            f"training.compile does not go with launch.strategy {config.launch.strategy}",
            hint="set one of them to its default",
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.compile(_small, dynamic=True)(torch.ones(3, device=device))
    except Exception as error:  # compilers below it raise errors without a common class
        raise ConfigError(
            f"training.compile: torch cannot compile here: {brief(error)}",
            hint="install a C++ compiler (g++) and Python's headers, or leave training.compile out",
        ) from error
    return f"torch {torch.__version__} compiles for {device}"


def _small(x: Any) -> Any:
    return torch.sin(x) * 2


class Compiled:
    """Compiles the layers of a model, between `on` and `off`."""

    def __init__(self, model: Any) -> None:
        whole = causal_model(model)
        self._layers = [layer for layer in whole.modules() if isinstance(layer, GradientCheckpointingLayer)]

    def on(self) -> None:
        """Begin; each layer is compiled when it is first called."""
        for layer in self._layers:
            layer.compile(dynamic=True)

    def off(self) -> None:
        """End; the model is as it was."""
        for layer in self._layers:
            layer._compiled_call_impl = None

"""The files of a model that bitsandbytes quantised, read weight by weight and dequantised.

Beside a weight in 4 bits lie its constants (`NAME.absmax`, `NAME.quant_map`, `NAME.quant_state.bitsandbytes__nf4` ...),
beside one in 8 bits the scales of its rows (`SCB`). A weight alone gives the same bits as the whole model's
`dequantize()`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from bitsandbytes import functional
from bitsandbytes.nn.modules import Params4bit
from bitsandbytes.utils import unpack_tensor_to_dict
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from mlflow_ft.engine import hardware
from mlflow_ft.engine.merging.tensor_files import Entry, ModelFiles
from mlflow_ft.engine.models import own_quantization
from mlflow_ft.engine.models.own_quantization import EIGHT, FOUR
from mlflow_ft.errors import ModelError

unpack: Any = unpack_tensor_to_dict  # it has no types
FORMAT = "weight_format"
"""The order of the rows of an 8-bit weight, stored beside it; 0 means unchanged."""


@dataclass(frozen=True)
class Dequantised(ModelFiles):
    """The weights by name, each as what it stands for. Nothing of them stays in memory."""

    turned: frozenset[str] = field(default=frozenset())
    """Names of weights that the model keeps as (in, out), and bitsandbytes as (out, in)."""

    @cached_property
    def stored(self) -> ModelFiles:
        """The tensors as they are stored in the files."""
        return ModelFiles(self.folder)

    @cached_property
    def states(self) -> Mapping[str, str]:
        """From the name of a quantised weight to the tensor that says how it was quantised."""
        four = {name.partition(FOUR)[0]: name for name in self.stored.places if FOUR in name}
        eight = {f"{name.removesuffix(EIGHT)}.weight": name for name in self.stored.places if name.endswith(EIGHT)}
        return four | eight

    @cached_property
    def places(self) -> Mapping[str, Path]:
        """Which file each weight is in, without what is stored beside the quantised ones."""
        return {name: file for name, file in self.stored.places.items() if not self._beside(name)}

    def _beside(self, name: str) -> bool:
        owner, _, last = name.rpartition(".")
        if last in ("SCB", FORMAT):
            return f"{owner}.weight" in self.states
        return any(weight in self.states for weight in (owner, owner.rpartition(".")[0]))

    @cached_property
    def entries(self) -> Mapping[str, Entry]:
        """Shape and type of every weight as what it stands for."""
        return {name: self._entry(name) for name in self.places}

    def _entry(self, name: str) -> Entry:
        stored, state = self.stored.entries[name], self.states.get(name)
        if state is None:
            return stored
        shape, dtype = stored.shape, torch.float32
        if FOUR in state:
            known: dict[str, Any] = unpack(self.stored.read(state))
            shape, dtype = tuple(known["shape"]), getattr(torch, known["dtype"])
        return Entry(name=name, shape=shape[::-1] if name in self.turned else shape, dtype=dtype)

    def read(self, name: str) -> Tensor:
        """One weight as what it stands for.

        Raises:
            ModelError: its rows are in an order that is not known here.
        """
        state = self.states.get(name)
        if state is None:
            return self.stored.read(name)
        weight = self._four(name) if FOUR in state else self._eight(name, state)
        return (weight.T.contiguous() if name in self.turned else weight).cpu()

    def _four(self, name: str) -> Tensor:
        keys = [key for key in self.stored.places if key.startswith(f"{name}.")]
        constants = {key.removeprefix(f"{name}."): self.stored.read(key) for key in keys}
        packed: Any = Params4bit.from_prequantized(self.stored.read(name), constants, device=hardware.device())
        weight: Tensor = functional.dequantize_4bit(packed.data, packed.quant_state)
        return weight

    def _eight(self, name: str, state: str) -> Tensor:
        order = f"{name.rpartition('.')[0]}.{FORMAT}"
        if order in self.stored.places and int(self.stored.read(order)) != 0:
            raise ModelError(
                f"{self.folder}: the rows of {name} are in the order of an earlier bitsandbytes",
                hint="load the model with the bitsandbytes that saved it, and save it again with a current one",
            )
        device = hardware.device()
        weight: Tensor = functional.int8_vectorwise_dequant(
            self.stored.read(name).to(device), self.stored.read(state).to(device)
        )
        return weight


def of(folder: Path, model: Any = None) -> ModelFiles:
    """The weights of a base's folder, each as what it stands for.

    `model` is the transformers model, which may be without weights and under an adapter; where it is given, weights
    are read as it keeps them.
    """
    own = own_quantization.of(folder)
    if own is None or own.held is None:
        return ModelFiles(folder)
    if model is None:
        return Dequantised(folder)
    prefix = f"{model.base_model_prefix}."
    names = {_plain(name) for name, module in model.named_modules() if isinstance(module, Conv1D)}
    return Dequantised(folder, frozenset(names | {name.removeprefix(prefix) for name in names}))


def _plain(name: str) -> str:
    """The name of a module's weight, without the adapter that it is under."""
    return f"{name.removesuffix('.base_layer')}.weight"

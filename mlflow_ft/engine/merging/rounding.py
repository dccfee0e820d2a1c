"""The weights of a quantised base as in training, one at a time: quantised by bitsandbytes, and dequantised.

Quantisation works on blocks of a weight, so a single tensor gives the same bits as the whole model:
`AutoModelForCausalLM.from_pretrained(base, quantization_config=...).dequantize()`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from bitsandbytes import functional
from bitsandbytes.nn.modules import Int8Params, Linear4bit, Linear8bitLt, Params4bit
from torch import Tensor
from transformers import BitsAndBytesConfig
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.auto import AutoHfQuantizer

from mlflow_ft.engine import hardware
from mlflow_ft.engine.hub import quiet_transformers
from mlflow_ft.engine.models.skeleton import bare_model


class Rounding:
    """Which weights of a model bitsandbytes quantises, and their dequantised values."""

    def __init__(self, base: Path, quantiser: BitsAndBytesConfig, *, held: torch.dtype, task: str = "generate") -> None:
        """`held` is the type of the base in training."""
        self._held = held
        model = bare_model(base, task=task)
        with quiet_transformers():
            rule: Any = AutoHfQuantizer.from_config(quantiser, pre_quantized=False)
            rule.preprocess_model(model=model, device_map={"": hardware.device()}, dtype=held)
        kinds = (Linear4bit, Linear8bitLt)
        self._layers: dict[str, Any] = {
            f"{name}.weight": layer for name, layer in model.named_modules() if isinstance(layer, kinds)
        }

    def __contains__(self, name: str) -> bool:
        return name in self._layers

    def __call__(self, name: str, weight: Tensor) -> Tensor:
        """The weight as in training, in float32."""
        if not weight.is_floating_point():
            return weight
        weight = weight.to(self._held)
        if name not in self._layers:
            return weight.float()
        turned = issubclass(self._layers[name].source_cls, Conv1D)  # transformers quantises their transpose
        rounded = self._rounded(self._layers[name], weight.T.contiguous() if turned else weight)
        return rounded.T.contiguous() if turned else rounded

    def _rounded(self, layer: Any, weight: Tensor) -> Tensor:
        settings = dict(layer.weight.__dict__)
        device = hardware.device()
        if isinstance(layer, Linear4bit):
            four: Any = Params4bit(weight, requires_grad=False, **settings)
            four = four.to(device)
            rounded: Tensor = functional.dequantize_4bit(four.data, four.quant_state)
        else:
            settings.pop("SCB", None)
            eight: Any = Int8Params(weight, requires_grad=False, **settings)
            eight = eight.to(device)
            rounded = functional.int8_vectorwise_dequant(eight.data, eight.SCB)
        return rounded.float().cpu()

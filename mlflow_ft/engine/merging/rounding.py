"""The weights that a quantised base stood for in training, one at a time: rounded by bitsandbytes, and read back.

Rounding works in blocks of a weight, so that a tensor alone gives the same bits as the whole model: those of
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
    """Which weights of a model bitsandbytes quantises, and what it makes of them."""

    def __init__(self, base: Path, quantiser: BitsAndBytesConfig, *, held: torch.dtype, task: str = "generate") -> None:
        """`held` is the type in which the base was loaded for training."""
        self._held = held
        model = bare_model(base, task=task)
        with quiet_transformers():
            rule: Any = AutoHfQuantizer.from_config(quantiser, pre_quantized=False)
            rule.preprocess_model(model=model, device_map={"": hardware.device()}, dtype=held)
        kinds = (Linear4bit, Linear8bitLt)
        self._layers: dict[str, Any] = {
            f"{name}.weight": one for name, one in model.named_modules() if isinstance(one, kinds)
        }

    def __contains__(self, name: str) -> bool:
        return name in self._layers

    def __call__(self, name: str, weight: Tensor) -> Tensor:
        """The weight that was trained on, in float32."""
        if not weight.is_floating_point():
            return weight
        weight = weight.to(self._held)
        if name not in self._layers:
            return weight.float()
        turned = issubclass(self._layers[name].source_cls, Conv1D)  # transformers rounds those the other way round
        rounded = self._rounded(self._layers[name], weight.T.contiguous() if turned else weight)
        return rounded.T.contiguous() if turned else rounded

    def _rounded(self, layer: Any, weight: Tensor) -> Tensor:
        settings = dict(layer.weight.__dict__)
        device = hardware.device()
        if isinstance(layer, Linear4bit):
            four: Any = Params4bit(weight, requires_grad=False, **settings)
            four = four.to(device)
            found: Tensor = functional.dequantize_4bit(four.data, four.quant_state)
        else:
            settings.pop("SCB", None)
            eight: Any = Int8Params(weight, requires_grad=False, **settings)
            eight = eight.to(device)
            found = functional.int8_vectorwise_dequant(eight.data, eight.SCB)
        return found.float().cpu()

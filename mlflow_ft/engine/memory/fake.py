"""The model of a setting, with its adapter, on tensors that have a type, a size and a device but no memory."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt
from peft import TaskType, get_peft_model
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import BitsAndBytesConfig
from transformers.integrations.bitsandbytes import replace_with_bnb_linear
from transformers.quantizers.base import get_keys_to_not_convert

from mlflow_ft.engine.hub import quiet_transformers
from mlflow_ft.engine.memory.values import Setting
from mlflow_ft.engine.models import architecture, skeleton
from mlflow_ft.engine.models.loading import quiet_peft

BLOCK, OF_BLOCKS = 64, 256
"""Weights that share a 4-bit constant, and constants that share a constant of their own (bitsandbytes)."""
CPU = torch.device("cpu")


class Fake:
    """A model on fake tensors.

    >>> fake = Fake(Setting(model=folder))  # doctest: +SKIP
    >>> with fake.mode:  # doctest: +SKIP
    ...     fake.model(input_ids=torch.zeros(1, 8, dtype=torch.long))

    `layers` is how many of the repeated layers it gets, if not all.
    """

    def __init__(self, setting: Setting, *, layers: int | None = None) -> None:
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        try:
            self.model = self._with_tensors(_on_meta(setting, layers))
        except skeleton.FAILURES as error:
            raise skeleton.UnsuitedError(f"the model cannot be built without weights: {error}") from error

    def _with_tensors(self, model: Any) -> Any:
        """Replace tensors on the meta device by fake ones on a CPU; tied ones stay tied."""
        made: dict[int, tuple[Tensor, Tensor]] = {}  # with the original, so that no other tensor gets its id
        for layer in model.modules():
            if isinstance(layer, Linear4bit | Linear8bitLt):
                _stand_in(layer)
            for tensors in (layer._parameters, layer._buffers):
                for name, tensor in tensors.items():
                    if tensor is not None:
                        if id(tensor) not in made:
                            made[id(tensor)] = (tensor, self._fake(tensor))
                        tensors[name] = made[id(tensor)][1]
        return model

    def _fake(self, tensor: Tensor) -> Tensor:
        meta = tensor.detach().to("meta")
        fake: Tensor = self.mode.fake_tensor_converter.from_meta_and_device(self.mode, meta, CPU)
        return nn.Parameter(fake, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fake


def _on_meta(setting: Setting, layers: int | None) -> Any:
    options = {"attn_implementation": setting.attention} if setting.attention else {}
    held = torch.float32 if setting.adapter is None else getattr(torch, setting.dtype)
    model = architecture.build(setting.model, task=setting.task, dtype=held, layers=layers, **options)
    model.config.use_cache = False
    if setting.quantize != "none":
        _quantise(model, setting)
    if setting.adapter is None:
        return model.requires_grad_(requires_grad=True)
    adapter = copy.deepcopy(setting.adapter)  # PEFT writes into it
    adapter.task_type = TaskType.SEQ_CLS if setting.task == "score" else adapter.task_type
    with quiet_peft(), quiet_transformers(), torch.device("meta"):
        wrapped: Any = get_peft_model(model, adapter, low_cpu_mem_usage=True)
    for weight in wrapped.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()
    return wrapped


def _quantise(model: Any, setting: Setting) -> None:
    """As transformers and `trainable.freeze` do: every linear layer but the output layer; the rest is float32."""
    if setting.quantize == "nf4":
        how = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=setting.double_quant
        )
    else:
        how = BitsAndBytesConfig(load_in_8bit=True)
    replace_with_bnb_linear(model, modules_to_not_convert=get_keys_to_not_convert(model), quantization_config=how)
    inside = {id(layer.weight) for layer in model.modules() if isinstance(layer, Linear4bit | Linear8bitLt)}
    for weight in model.parameters():
        weight.requires_grad = False
        if id(weight) not in inside and weight.is_floating_point():
            weight.data = weight.data.float()


def _stand_in(layer: Any) -> None:
    """Give a quantised layer a weight of the size that bitsandbytes packs it into, and a pass that unpacks it."""
    rows, columns = layer.out_features, layer.in_features
    size = rows * columns
    if isinstance(layer, Linear4bit):
        constants = size / BLOCK
        nested = getattr(layer.weight, "compress_statistics", True)
        held = size / 2 + (constants + 4 * constants / OF_BLOCKS if nested else 4 * constants)
    else:
        held = size + 4 * rows
    layer.weight = nn.Parameter(torch.empty(int(held), dtype=torch.uint8, device="meta"), requires_grad=False)
    layer.forward = partial(_pass, layer, (rows, columns))


def _pass(layer: Any, shape: tuple[int, int], inputs: Tensor) -> Any:
    apply: Any = _Unpacked.apply
    outputs = apply(inputs, layer.weight, shape)
    return outputs if layer.bias is None else outputs + layer.bias.to(outputs.dtype)


class _Unpacked(torch.autograd.Function):
    """A linear layer whose weight is unpacked for each pass and not kept, as in bitsandbytes."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, packed: Tensor, shape: tuple[int, int]) -> Tensor:
        ctx.shape = shape
        return inputs @ inputs.new_empty(shape).t()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return gradient @ gradient.new_empty(ctx.shape), None, None

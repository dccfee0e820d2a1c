"""A GGUF file in fewer bits: the mixtures of types that llama.cpp calls Q4_K_M, Q5_K_M and Q6_K.

The number of bits of each tensor follows llama.cpp's `llama_tensor_get_type`: the output layer and the more sensitive
half of `attn_v` and `ffn_down` get more bits. Rows whose length is not a multiple of 256 stay in Q8_0.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import libgguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import LlamaFileType

BASE: Mapping[str, Type] = {"q4_k_m": Type.Q4_K, "q5_k_m": Type.Q5_K, "q6_k": Type.Q6_K}
FILE_TYPES: Mapping[str, LlamaFileType] = {
    "q4_k_m": LlamaFileType.MOSTLY_Q4_K_M,
    "q5_k_m": LlamaFileType.MOSTLY_Q5_K_M,
    "q6_k": LlamaFileType.MOSTLY_Q6_K,
}
BLOCK = 256
"""Weights of a row in one block of a k-quant."""
ROWS = 4096
"""Rows rounded at a time."""
LAYER = re.compile(r"blk\.(\d+)\.(\w+)\.weight")
FINER = ("attn_v", "ffn_down")
KEPT = ("ffn_gate_inp", "ssm_conv1d", "position_embd", "token_types")
"""Small tensors, for which rounding costs more than it saves."""


def quantise(source: Path, file: Path, *, kind: str) -> None:
    """Write a copy of a GGUF file of 32 or 16 bits, tensor by tensor, in the mixture `kind`."""
    reader = gguf.GGUFReader(source)
    architecture = reader.get_field(gguf.Keys.General.ARCHITECTURE).contents()
    layers = int(reader.get_field(f"{architecture}.block_count").contents())
    tied = not any(tensor.name == "output.weight" for tensor in reader.tensors)
    types = {tensor.name: chosen(tensor, kind=kind, layers=layers, tied=tied) for tensor in reader.tensors}
    writer = gguf.GGUFWriter(file, architecture)
    _copy_fields(reader, writer, FILE_TYPES[kind])
    for tensor in reader.tensors:
        wanted = types[tensor.name]
        shape = tuple(int(side) for side in reversed(tensor.shape))
        if _rounds(wanted):
            stored = gguf.quant_shape_to_byte_shape(shape, wanted)
            writer.add_tensor_info(tensor.name, stored, np.dtype(np.uint8), int(np.prod(stored)), wanted)
        else:
            data = tensor.data
            writer.add_tensor_info(tensor.name, data.shape, data.dtype, data.nbytes, tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in reader.tensors:
        wanted = types[tensor.name]
        writer.write_tensor_data(_rounded(tensor.data, wanted) if _rounds(wanted) else tensor.data)
    writer.close()


def chosen(tensor: Any, *, kind: str, layers: int, tied: bool) -> Type:
    """The type of one tensor; its present type if it is left unchanged."""
    present: Type = tensor.tensor_type
    match = LAYER.fullmatch(tensor.name)
    if len(tensor.shape) < 2 or not tensor.name.endswith(".weight") or any(name in tensor.name for name in KEPT):
        return present
    wanted = BASE[kind]
    output = tensor.name == ("token_embd.weight" if tied else "output.weight")
    finer = match is not None and match[2] in FINER and more_bits(int(match[1]), layers)
    if output or finer:
        wanted = Type.Q6_K
    return wanted if int(tensor.shape[0]) % BLOCK == 0 else Type.Q8_0


def more_bits(layer: int, layers: int) -> bool:
    """Whether the layer is one of the more sensitive ones: the first and last eighth, and every third in between."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def _rounds(wanted: Type) -> bool:
    return wanted in (*BASE.values(), Type.Q8_0)


def _rounded(data: Any, wanted: Type) -> Any:
    flat = data.reshape(-1, data.shape[-1])
    parts = [
        libgguf.quantize_rows(np.ascontiguousarray(flat[start : start + ROWS], dtype=np.float32), int(wanted))
        for start in range(0, len(flat), ROWS)
    ]
    return np.concatenate([np.asarray(part, dtype=np.uint8).reshape(-1) for part in parts]).reshape(
        *gguf.quant_shape_to_byte_shape(data.shape, wanted)
    )


def _copy_fields(reader: Any, writer: Any, file_type: LlamaFileType) -> None:
    for field in reader.fields.values():
        if field.name == gguf.Keys.General.ARCHITECTURE or field.name.startswith("GGUF."):
            continue  # the writer adds them itself
        if field.name in (gguf.Keys.General.FILE_TYPE, gguf.Keys.General.QUANTIZATION_VERSION):
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, sub_type=inner)
    writer.add_file_type(int(file_type))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)

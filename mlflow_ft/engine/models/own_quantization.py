"""Bases whose own files are quantised: which make they are of, read before any weight, and how they are then held.

4 or 8 bits by bitsandbytes     held as they are, beside an adapter (`model.quantize` nf4 or int8); a merge goes
                                into what their weights stand for
FP8 in blocks, MXFP4 (gpt-oss)  read as the plain weights that they stand for
any other make                  refused by its name
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow_ft.config.schema import Config
from mlflow_ft.errors import ConfigError, ModelError

FIELDS = ("quantization_config", "compression_config")
PARTS = ("text_config", "llm_config")
"""What config.json calls the text part of a model of several."""
FOUR = ".quant_state.bitsandbytes__"
EIGHT = ".SCB"
MARKS: Mapping[str, tuple[str, ...]] = {
    "nf4": (FOUR,),
    "fp4": (FOUR,),
    "int8": (EIGHT,),
    "fp8": ("_scale_inv", "_scale"),
    "mxfp4": ("_blocks",),
}
"""What the names of tensors hold, or end in, where files are of a make that can be used here."""
HELD = {"nf4": "nf4", "fp4": "nf4", "int8": "int8"}
"""The `model.quantize` that a base is held by as it is."""
WHOLE = {"nf4": 4, "fp4": 4, "int8": 2, "fp8": 2, "mxfp4": 4}
"""How many times larger the weights are in 16 bits."""
LONGEST_HEADER = 100_000_000
"""Bytes of a file's header, at most, as in safetensors itself."""
READ = ("fp8", "mxfp4")
"""Makes that transformers reads as plain weights."""


@dataclass(frozen=True, kw_only=True)
class Own:
    """How the files of a base are quantised."""

    make: str
    """nf4, fp4, int8 (bitsandbytes), fp8, mxfp4, or the name that config.json gives (gptq, awq ...)."""
    settings: Mapping[str, Any]
    """What config.json says of it."""
    folder: Path

    @property
    def held(self) -> str | None:
        """The `model.quantize` by which it is held as it is; None for one that is read as plain weights."""
        return HELD.get(self.make)

    @property
    def double(self) -> bool:
        """Whether the constants of 4-bit weights are quantised, too."""
        return bool(self.settings.get("bnb_4bit_use_double_quant"))

    @property
    def description(self) -> str:
        """The make in words."""
        if self.make in ("nf4", "fp4"):
            return f"4 bits by bitsandbytes ({self.make}{', double quantisation' if self.double else ''})"
        words = {"int8": "8 bits by bitsandbytes (int8)", "fp8": "FP8", "mxfp4": "MXFP4"}
        bits = f", {self.settings['bits']} bits" if "bits" in self.settings else ""
        return words.get(self.make, f"{self.make}{bits}")

    def options(self) -> dict[str, Any]:
        """What `from_pretrained` is given for it; a make of bitsandbytes is read by what its own config.json says."""
        if self.make not in READ:
            return {}
        from transformers.quantizers.auto import AutoQuantizationConfig

        return {"quantization_config": AutoQuantizationConfig.from_dict(self.plain())}

    def plain(self) -> dict[str, Any]:
        """The settings by which transformers reads it as plain weights."""
        return {**self.settings, "dequantize": True}

    def computed_in(self, dtype: str) -> dict[str, Any]:
        """The settings of a base of bitsandbytes's make that computes in `dtype`, as an adapter's record keeps them."""
        return {**self.settings, **({"bnb_4bit_compute_dtype": dtype} if self.held == "nf4" else {})}


def of(folder: Path) -> Own | None:
    """How the files of a base are quantised; None where they are not.

    Raises:
        ModelError: config.json says one thing, and the weight files another.
    """
    settings = _settings(folder)
    make = _make(settings) if settings else ""
    names = _names(folder)
    packed = next((name for name in names if FOUR in name), "")
    if not make:
        if packed:
            raise ModelError(
                f"the weights in {folder} are in 4 bits by bitsandbytes ({packed}), and config.json does not say so",
                hint="restore the `quantization_config` that the model was saved with, or use another copy",
            )
        return None
    marks = MARKS.get(make, ())
    if names and marks and not any(mark in name for name in names for mark in marks):
        raise ModelError(
            f"{folder / 'config.json'} says that the weights are quantised ({make}), and the weight files are not",
            hint="remove `quantization_config` from config.json if the weights are full precision, or use another copy",
        )
    return Own(make=make, settings=settings, folder=folder)


def _settings(folder: Path) -> dict[str, Any]:
    """What config.json says, of the model or of its text part."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    parts = [config, *(value for name, value in config.items() if name in PARTS)]
    for part in parts:
        for name in FIELDS:
            if isinstance(part, Mapping) and isinstance(part.get(name), Mapping) and part[name]:
                return dict(part[name])
    return {}


def _make(settings: Mapping[str, Any]) -> str:
    if settings.get("load_in_4bit"):
        return str(settings.get("bnb_4bit_quant_type") or "fp4")
    if settings.get("load_in_8bit"):
        return "int8"
    make = str(settings.get("quant_method") or "")
    return "" if make == "bitsandbytes" else make or "an unnamed method"


def _names(folder: Path) -> list[str]:
    """The names of all tensors, from the files' headers; none where the weights are not here.

    https://github.com/huggingface/safetensors#format
    """
    names: list[str] = []
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            try:
                names += json.loads(stream.read(min(length, LONGEST_HEADER)))
            except ValueError:
                return []  # reported when the weights are loaded
    return names


def forget(config: Any) -> None:
    """Remove what a transformers configuration says of quantisation, of the model and of its text part."""
    for part in (config, *(getattr(config, name, None) for name in PARTS)):
        for name in FIELDS:
            if hasattr(part, name):
                delattr(part, name)


def whole_size(folder: Path) -> int:
    """Bytes that the base's weights take where they are not quantised, about."""
    own = of(folder)
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return size * WHOLE.get(own.make, 1) if own else size


def check(own: Own) -> None:
    """Raise ModelError where a base is of a make that is neither held nor read here."""
    if own.make not in (*HELD, *READ):
        raise ModelError(
            f"the weights in {own.folder} are quantised ({own.description}), which neither "
            "training nor a merge can read",
            hint="name the model in full precision, or its copy in 4 bits by bitsandbytes (NAME-bnb-4bit)",
        )


def check_training(config: Config, own: Own | None) -> None:
    """Refuse what cannot be trained on a base of such files, before they are loaded.

    Raises:
        ModelError: the make cannot be used here. ConfigError: another `model.quantize`, or settings that want the
        weights as they were before they were quantised.
    """
    if own is None:
        return
    check(own)
    asked = config.model.quantize
    if own.held is None and asked != "none":
        raise ConfigError(
            f"the base's own files are in {own.description}: they are read as plain weights, and not quantised again",
            hint="do not quantise it again (--model.quantize none, the method lora)",
        )
    if own.held is not None:
        for reason, hint in _against(config, own, asked):
            raise ConfigError(f"the base's own files are in {own.description}{reason}", hint=hint)


def _against(config: Config, own: Own, asked: str) -> Iterator[tuple[str, str]]:
    way = "qlora, or another method with --adapter.kind lora --model.quantize nf4"
    if own.held == "int8":
        way = "lora, or another method with --adapter.kind lora, and --model.quantize int8"
    if config.adapter.kind == "none":
        yield (
            ", so the weights cannot be trained",
            f"train an adapter: {way}; or name the model in full precision",
        )
    if asked != own.held:
        yield f", and model.quantize is {asked}", f"use {way}; or name the model in full precision"
    origin = config.origins.get("model.double_quant", "method")
    if own.held == "nf4" and not origin.startswith("method") and config.model.double_quant != own.double:
        yield (
            f", and model.double_quant {str(config.model.double_quant).lower()} asks for another format",
            "omit model.double_quant: the files determine it",
        )
    if config.adapter.init_lora_weights == "loftq":
        yield (
            ", but loftq needs the original weights",
            "omit adapter.init_lora_weights, or name the model in full precision with --model.quantize nf4",
        )

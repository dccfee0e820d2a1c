"""Write a whole model in 4 or 8 bits by bitsandbytes, which transformers can read without further settings.

QLoRA's NF4: arXiv 2305.14314; LLM.int8(): arXiv 2208.07339.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BitsAndBytesConfig

from mlflow_ft.engine import hardware
from mlflow_ft.engine.hub import quiet_transformers
from mlflow_ft.engine.judging.reference import Loaded
from mlflow_ft.engine.merging import companions
from mlflow_ft.engine.models import generation, lacking, loading, older_names
from mlflow_ft.errors import ModelError, brief

HEADS = ["lm_head", "embed_out", "output", "score"]
"""Output layers are not quantised: their rounding would affect answers directly."""


def write(source: Path, folder: Path, *, quantize: Literal["int8", "nf4"]) -> None:
    """Quantise the linear layers of the model in `source`, and write it with its tokenizer and end tokens to `folder`.

    Raises:
        ModelError: transformers cannot read `source`, or cannot quantise such a model.
    """
    dtype = hardware.compute_dtype("auto")
    settings: dict[str, Any] = {"load_in_8bit": True, "llm_int8_skip_modules": HEADS}
    if quantize == "nf4":
        settings = {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
            "bnb_4bit_compute_dtype": dtype,
            "llm_int8_skip_modules": HEADS,
        }
    model = _load(source, quantization_config=BitsAndBytesConfig(**settings), dtype=dtype)
    folder.mkdir(parents=True, exist_ok=True)
    with quiet_transformers():
        model.save_pretrained(folder)
    older_names.add(model.config, folder)
    companions.copy_files(source, folder)
    (folder / generation.FILE).unlink(missing_ok=True)  # transformers writes its own reading of it
    generation.copy(source, folder)


@contextmanager
def opened(folder: Path) -> Iterator[Loaded]:
    """The model in a folder, as `from_pretrained` reads it, in evaluation mode; released at the end.

    Raises:
        ModelError: transformers cannot read it.
    """
    held = [Loaded(_load(folder, dtype=hardware.compute_dtype("auto")))]
    try:
        yield held[0]
    finally:
        held.clear()
        gc.collect()
        torch.cuda.empty_cache()


def _load(folder: Path, **options: Any) -> Any:
    names = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures") or [""]
    kind: Any = AutoModelForCausalLM
    if names[0].endswith("ForSequenceClassification"):
        kind = AutoModelForSequenceClassification
    try:
        with quiet_transformers():
            options |= {**generation.for_loading(folder), **lacking.REPORTED, "trust_remote_code": False}
            model, report = kind.from_pretrained(folder, device_map={"": hardware.device()}, **options)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise ModelError(f"{folder} cannot be read in this format: {brief(error)}") from error
    lacking.check_loaded(model, report, str(folder))
    loading.keep_exact(model)
    return model.eval()

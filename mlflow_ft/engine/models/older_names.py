"""Names that programs older than transformers 5 read: without them, they take defaults in silence, or load nothing.

transformers 5 writes the rotary embeddings as `rope_parameters` and the type of the weights as `dtype`. Transformers 4,
and servers and converters built on it, read `rope_theta`, `rope_scaling`, `partial_rotary_factor` and `torch_dtype`.
In a tokenizer's settings they know neither a list of `extra_special_tokens` nor the class `TokenizersBackend`.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mlflow_ft.engine.hub import quiet_transformers

CONFIG = "config.json"
TOKENIZER = "tokenizer_config.json"
TEXT = "text_config"
"""The part of a model of several kinds of data that is a language model."""
APART = ("rope_theta", "partial_rotary_factor")
"""What stands beside `rope_scaling`, not in it."""
NEOX = {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}
"""The names of GPT-NeoX (Pythia) for them."""
LONGROPE = ("short_factor", "long_factor")
"""All that Phi's `rope_scaling` may have besides its type."""


def add(config: Any, folder: Path) -> None:
    """Write the older names beside the new ones in the config.json of a folder, from which `config` was saved.

    Nothing is written if transformers would then read another configuration.
    """
    file = folder / CONFIG
    written = json.loads(file.read_text(encoding="utf-8"))
    both = _with_older(written)
    if both != written and _read(config, both) == _read(config, written):
        file.write_text(json.dumps(both, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def in_tokenizer(folder: Path) -> None:
    """Write the settings of a saved tokenizer with the older names, which transformers 5 reads as its own."""
    file = folder / TOKENIZER
    written = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    older = dict(written)
    if isinstance(older.get("extra_special_tokens"), list) and "additional_special_tokens" not in older:
        older["additional_special_tokens"] = older.pop("extra_special_tokens")
    if older.get("tokenizer_class") == "TokenizersBackend":
        older["tokenizer_class"] = "PreTrainedTokenizerFast"
    if older != written:
        file.write_text(json.dumps(older, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def _read(config: Any, values: Mapping[str, Any]) -> dict[str, Any] | None:
    """What transformers makes of a config.json; None if it refuses it."""
    try:
        with quiet_transformers(), warnings.catch_warnings(action="ignore"):
            return dict(type(config).from_dict(json.loads(json.dumps(values))).to_dict())
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def _with_older(values: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration, and that of its text part, with the older names."""
    older = dict(_rope(values))
    if values.get("dtype"):
        older["torch_dtype"] = values["dtype"]
    part = values.get(TEXT)
    return {**older, **values, **({TEXT: _with_older(part)} if isinstance(part, dict) else {})}


def _rope(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    rope, kind = values.get("rope_parameters") or {}, values.get("model_type")
    if "full_attention" in rope:  # each kind of layer has its own; the older names have room for another base only
        local = (rope.get("sliding_attention") or {}).get("rope_theta")
        rope = rope["full_attention"]
        if local not in (None, rope.get("rope_theta")):
            yield "rope_local_base_freq", local
    for name in APART:
        if rope.get(name, 1.0) != 1.0:  # the whole of each head is turned: as where it is not named
            yield (NEOX[name] if kind == "gpt_neox" else name), rope[name]
    scaling = {name: value for name, value in rope.items() if name not in APART}
    if kind == "phi3" and scaling.get("rope_type") == "longrope":  # it allows no more
        scaling = {"type": "longrope"} | {name: rope.get(name) for name in LONGROPE}
    if scaling and scaling != {"rope_type": "default"}:
        yield "rope_scaling", scaling

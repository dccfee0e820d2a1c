"""Refuse models that do not read from left to right: a token that is to be learned would be seen, or has no place."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from mlflow_ft.errors import ModelError


def check(folder: Path, name: str, *, trust_remote_code: bool = False) -> str:
    """The type of the model in a folder, by its config.json.

    Raises:
        ModelError: it is an encoder with a decoder (T5), or an encoder (BERT), whose positions see those after them.
    """
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError):  # which loading the model reports
        return "unknown"
    kind = str(config.model_type)
    reason = ""
    if getattr(config, "is_encoder_decoder", False):
        reason = "is an encoder with a decoder"
    elif kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False):
        reason = "is an encoder: each position sees the tokens that it is to learn"
    if reason:
        raise ModelError(
            f"model {name!r} ({kind}) {reason}; a language model that continues a text is needed",
            hint="choose a decoder, such as Llama, Qwen, Gemma, Mistral or GPT-2",
        )
    return kind

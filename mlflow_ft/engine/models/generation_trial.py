"""Try generation settings on a one-layer model, to find those with which `generate` fails at the first token.

transformers checks many settings only when it generates, which in a run is after training.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from mlflow_ft.engine.hub import quiet_transformers

LARGEST = 2**20
"""Largest vocabulary of the model."""
TYPES_ONLY = {"bos_token_id", "eos_token_id", "pad_token_id", "max_length", "max_new_tokens", "transformers_version"}
OVERRIDDEN = {"do_sample", "temperature", "top_k", "top_p", "num_beams", "use_cache"}
PLAIN = TYPES_ONLY | OVERRIDDEN | {"_from_model_config"}
"""Settings that need no trial: their types are checked elsewhere, or our calls override them."""
SKIPPED = ("_from_model_config", "cache_implementation", "cache_config", "compile_config")
"""Settings that depend on the real model and its device, or that `generate` does not use."""


def failures(settings: Mapping[str, Any], *calls: Mapping[str, Any]) -> Iterator[tuple[str, Exception]]:
    """The settings with which `generate` fails, one by one, each with its error.

    settings: those of a generation_config.json. calls: further arguments of `generate`; it must work with each of them.
    """
    if not set(settings) - PLAIN:
        return
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(), quiet_transformers():
        warnings.simplefilter("ignore")
        model = _model(settings)
        if _failure(model, settings, calls) is None:
            return
        kept: dict[str, Any] = {}
        for name, value in settings.items():
            if error := _failure(model, {**kept, name: value}, calls):
                yield name, error
            else:
                kept[name] = value


def _model(settings: Mapping[str, Any]) -> Any:
    vocabulary = min(max(_numbers(settings), default=0) + 512, LARGEST)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval()


def _numbers(value: Any) -> Iterator[int]:
    """Every whole number in it, any of which may be the id of a token."""
    if isinstance(value, Mapping):
        yield from _numbers(list(value.values()))
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _numbers(part)
    elif isinstance(value, int):
        yield value


def _failure(model: Any, settings: Mapping[str, Any], calls: tuple[Mapping[str, Any], ...]) -> Exception | None:
    values = {"eos_token_id": 2, "pad_token_id": 0, **settings}
    values = {name: value for name, value in values.items() if name not in SKIPPED}
    ids = torch.tensor([[5, 6, 7]])
    try:
        for call in calls:
            config = GenerationConfig(**values)
            model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config, max_new_tokens=1, **call)
    except Exception as error:  # each setting is read by a different class, which may raise anything
        return error
    return None

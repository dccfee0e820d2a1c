"""Embeddings for tokens that are new to a base model, initialised to the mean of all others.

The rule is deterministic, so the base has the same rows wherever it is loaded (training, evaluation, merge). An adapter
that trains them stores the complete rows and replaces these.
"""

from __future__ import annotations

from typing import Any

import torch

from mlflow_ft.config.schema import Config
from mlflow_ft.engine.tokens import room, tokenizers
from mlflow_ft.values import BaseModel


def grown(config: Config, base: BaseModel) -> Any | None:
    """The tokenizer, if it may have more tokens than the base model was made for; else None."""
    return tokenizers.load(config, base) if config.model.add_tokens or base.start else None


def grow(module: Any, tokenizer: Any) -> None:
    """Give the embeddings (and a separate output layer) a row for every token.

    Many models have spare rows; then nothing is resized. The rows of `model.add_tokens` become the mean of all known
    ones: random rows might be the likeliest answer everywhere (John Hewitt, "Initializing New Word Embeddings for
    Pretrained Language Models", 2021).
    """
    rows = len(module.get_input_embeddings().weight)
    if room.size(tokenizer) > rows:
        module.resize_token_embeddings(room.size(tokenizer), mean_resizing=False)
    new = getattr(tokenizer, "new_tokens", ())
    known = min([rows, *new])
    layers = {id(layer): layer for layer in (module.get_input_embeddings(), module.get_output_embeddings()) if layer}
    with torch.no_grad():
        for layer in layers.values():
            mean = layer.weight[:known].float().mean(dim=0).to(layer.weight.dtype)
            for row in {*new, *range(rows, len(layer.weight))}:
                layer.weight[row] = mean


def token_layers(module: Any, ids: list[int]) -> dict[str, list[int]]:
    """The layers with rows for tokens, by name: the embedding layer, and a separate output layer."""
    names = {id(layer): name for name, layer in module.named_modules()}
    inside, outside = module.get_input_embeddings(), module.get_output_embeddings()
    layers = [inside] if outside is None or outside.weight is inside.weight else [inside, outside]
    return {names[id(layer)].rpartition(".")[2]: ids for layer in layers}


def tied(module: Any) -> bool:
    """Whether the output layer is the embedding layer."""
    outside = module.get_output_embeddings() if module.can_generate() else None
    return outside is not None and outside.weight is module.get_input_embeddings().weight

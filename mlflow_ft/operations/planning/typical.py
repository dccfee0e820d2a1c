"""The config of a typical model of a given size, where no model is named."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from mlflow_ft.values import BaseModel


class Shape(NamedTuple):
    """The sizes of a Llama-like model."""

    hidden: int
    layers: int
    heads: int
    key_value_heads: int
    intermediate: int
    vocabulary: int
    tied: bool = False

    @property
    def layer_weights(self) -> int:
        attention = 2 * self.hidden**2 * (1 + self.key_value_heads / self.heads)
        return round(attention + 3 * self.hidden * self.intermediate + 2 * self.hidden)

    @property
    def embedding_weights(self) -> int:
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def weights(self) -> int:
        return self.layers * self.layer_weights + self.embedding_weights


SHAPES = (
    Shape(576, 30, 9, 3, 1536, 49_152, tied=True),  # SmolLM2-135M
    Shape(896, 24, 14, 2, 4864, 151_936, tied=True),  # Qwen2.5-0.5B
    Shape(2048, 16, 32, 8, 8192, 128_256, tied=True),  # Llama-3.2-1B
    Shape(3072, 28, 24, 8, 8192, 128_256, tied=True),  # Llama-3.2-3B
    Shape(4096, 32, 32, 8, 14_336, 32_768),  # Mistral-7B
    Shape(4096, 32, 32, 8, 14_336, 128_256),  # Llama-3.1-8B
    Shape(5120, 48, 40, 8, 13_824, 152_064),  # Qwen2.5-14B
    Shape(5120, 64, 40, 8, 27_648, 152_064),  # Qwen2.5-32B
    Shape(8192, 80, 64, 8, 28_672, 128_256),  # Llama-3.1-70B
    Shape(16_384, 126, 128, 8, 53_248, 128_256),  # Llama-3.1-405B
)
POSITIONS = 32_768


def shape(weights: float) -> Shape:
    """The known shape that is nearest in size, with as many layers as it takes to have that many weights."""
    nearest = min(SHAPES, key=lambda known: abs(known.weights - weights) / min(known.weights, weights))
    layers = max(1, round((weights - nearest.embedding_weights) / nearest.layer_weights))
    return nearest._replace(layers=layers)


@contextmanager
def model(weights: float, name: str) -> Iterator[BaseModel]:
    """A folder with the config.json of a typical model with so many weights, and nothing else."""
    sizes = shape(weights)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": sizes.hidden,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.key_value_heads,
        "intermediate_size": sizes.intermediate,
        "vocab_size": sizes.vocabulary,
        "tie_word_embeddings": sizes.tied,
        "max_position_embeddings": POSITIONS,
        "pad_token_id": 0,
    }
    with TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config), encoding="utf-8")
        yield BaseModel(name=name, path=Path(folder), name_or_path=name, revision="", origin="a typical model")

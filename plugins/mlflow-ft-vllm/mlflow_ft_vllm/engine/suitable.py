"""What vLLM can serve: which models and adapters, and how large the ranks are."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open

from mlflow_ft import ConfigError, ModelError, ServedModel

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The values that vLLM 0.32 takes as --max-lora-rank."""
UNSUPPORTED = {
    "use_dora": "it is a DoRA",
    "lora_bias": "its LoRA has biases",
    "alora_invocation_tokens": "it is an activated LoRA",
    "layer_replication": "it repeats layers",
    "use_qalora": "it is a QALoRA",
    "use_bdlora": "it is block-diagonal",
    "trainable_token_indices": "it has trained tokens (trainable_token_indices)",
}
"""Settings of PEFT that change what an adapter computes, which vLLM refuses or does not read."""
PLAIN_STARTS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")
"""Values of init_lora_weights that leave the base as it is."""


def check(model: ServedModel) -> None:
    """Raise ModelError if vLLM cannot serve a model; what can be served instead is named."""
    if model.base is None:
        names = _json(model.folder / "config.json").get("architectures") or [""]
        if names[0].endswith("ForSequenceClassification"):
            raise _scores(model)
        return
    if model.note.get("task") == "score":
        raise _scores(model)
    if reasons := list(_reasons(model)):
        raise ModelError(
            f"vLLM cannot serve {model.uri} as an adapter: {'; '.join(reasons)}",
            hint=f"serve the merged form: {merged_form(model)}",
        )


def _scores(model: ServedModel) -> ModelError:
    return ModelError(
        f"{model.uri} is a reward model: it scores answers and generates none", hint="--engine transformers serves it"
    )


def merged_form(model: ServedModel) -> str:
    """How to serve the whole model that an adapter was merged into."""
    version = re.fullmatch(r"models:/(.+)-adapter/\d+", model.uri)
    if version:
        return f"mlflow-ft serve {version[1]}@ALIAS --engine vllm"
    return f"mlflow-ft merge --adapter {model.uri} --out merged; mlflow-ft serve ./merged --engine vllm"


def _reasons(model: ServedModel) -> Iterator[str]:
    settings = _json(model.folder / "adapter_config.json")
    kind = str(settings.get("peft_type", ""))
    if kind != "LORA":
        yield f"it is no LoRA ({model.note.get('kind') or kind.lower().replace('_', '-')})"
        return
    if whole := settings.get("modules_to_save"):
        yield f"it has whole modules (modules_to_save: {', '.join(whole)})"
    yield from (what for name, what in UNSUPPORTED.items() if settings.get(name))
    if settings.get("bias") not in (None, "none"):
        yield "it has trained biases"
    start = settings.get("init_lora_weights")
    if isinstance(start, str) and start.lower() not in PLAIN_STARTS:
        yield f"it changes its base (init_lora_weights: {start})"
    if model.note.get("tokens"):
        yield "it adds tokens that its base does not have"
    if quantization := model.note.get("quantization"):
        bits = "8" if quantization.get("load_in_8bit") else "4"
        yield f"it was trained on its base in {bits} bits, which vLLM would hold in another way"
    others = [name for name in tensors(model.folder) if not re.search(r"\.lora_(embedding_)?[AB](\.weight)?$", name)]
    if others and not settings.get("modules_to_save"):
        yield f"it has weights besides the LoRA's, such as {others[0]}"
    if (rank := rank_of(model.folder)) > RANKS[-1]:
        yield f"its rank is {rank}, and {RANKS[-1]} is the largest that vLLM takes"


def tensors(folder: Path) -> list[str]:
    """The names of an adapter's weights."""
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        return sorted(file.keys())


def rank_of(folder: Path) -> int:
    """The largest rank in a LoRA, as vLLM counts it: of its settings and patterns."""
    settings = _json(folder / "adapter_config.json")
    return max([int(settings.get("r") or 0), *(settings.get("rank_pattern") or {}).values()])


def rank_limit(models: Sequence[ServedModel], asked: int | None) -> int:
    """The --max-lora-rank for these adapters.

    Raises:
        ConfigError: a smaller one was asked for.
    """
    ranks = {model.name: rank_of(model.folder) for model in models}
    largest = max(ranks, key=ranks.__getitem__)
    if asked is not None and asked < ranks[largest]:
        raise ConfigError(
            f"plugins.vllm.max_lora_rank is {asked}, but the adapter {largest!r} has rank {ranks[largest]}",
            hint="leave it out: it is found from the adapters",
        )
    return next((limit for limit in RANKS if limit >= max(ranks[largest], asked or 0)), RANKS[-1])


def _json(file: Path) -> dict[str, Any]:
    content: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return dict(content)

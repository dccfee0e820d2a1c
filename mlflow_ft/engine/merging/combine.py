"""Combine several LoRA adapters of one base: the weighted sum of their updates, or TIES or DARE.

An update of a layer is s B A. `cat` concatenates the factors, which gives the exact sum:

    w1 s1 B1 A1 + w2 s2 B2 A2 = [w1 s1 B1  w2 s2 B2] [A1; A2]

`svd` is the same at a lower rank; `ties_svd` (arXiv 2306.01708), `dare_linear_svd`, `dare_ties_svd` (arXiv 2311.03099)
and `magnitude_prune_svd` combine the full updates, as in PEFT, and keep the best approximation of the requested rank.
PEFT's `add_weighted_adapter` gets the scale of rsLoRA wrong by the root of the rank, and silently accepts DoRA, whose
magnitudes do not add up; its `linear` methods add factors, not updates.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft.utils import merge_utils
from peft.utils.other import get_pattern_key
from safetensors.torch import save_file
from torch import Tensor

from mlflow_ft.engine.adapters import files
from mlflow_ft.engine.adapters.files import CONFIG, WEIGHTS
from mlflow_ft.engine.models.skeleton import CHANGE_THE_BASE, WITHOUT
from mlflow_ft.errors import ConfigError

METHODS = ("cat", "svd", "ties_svd", "dare_linear_svd", "dare_ties_svd", "magnitude_prune_svd")
PREFIX = "base_model.model."
LINEAR, EMBEDDING = ".lora_A.weight", ".lora_embedding_A"
INNER = ".base_layer.weight"
"""With a LoRA on the embeddings, PEFT also saves the base's embeddings."""
ALONE = (
    "use_dora",
    "modules_to_save",
    "trainable_token_indices",
    "lora_bias",
    "use_bdlora",
    "target_parameters",
    "layer_replication",
    *WITHOUT,
)
"""Settings that rule out combining: the updates do not add up, or a model can have only one."""


@dataclass(frozen=True, kw_only=True)
class How:
    """How to combine adapters."""

    method: str
    weights: Sequence[float]
    rank: int | None = None
    """Rank of the result; None: the sum of a layer's ranks."""
    density: float = 0.5
    """Share of an update that TIES, DARE and pruning keep."""
    seed: int = 42
    """For DARE's random choice."""


@dataclass(frozen=True)
class Factors:
    """One layer's update in one adapter: `up @ down`, of shape (out, in), with the scale in `up`."""

    up: Tensor
    down: Tensor


def combine(adapters: Sequence[Path], how: How, folder: Path) -> float:
    """Write the combined adapter to `folder`.

    Returns:
        The largest share of a layer's update (Frobenius norm) that was lost by limiting the rank; 0 for `cat`.

    Raises:
        ConfigError: an adapter cannot be combined, or the settings do not fit.
    """
    check(adapters, how)
    settings = [files.settings(adapter) for adapter in adapters]
    states = [files.tensors(adapter) for adapter in adapters]
    parts = [_factors(state, config) for state, config in zip(states, settings, strict=True)]
    embeddings = {name.removesuffix(EMBEDDING) for state in states for name in state if name.endswith(EMBEDDING)}
    state = _inner(states)
    ranks: dict[str, int] = {}
    lost = 0.0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(how.seed)
        for layer in dict.fromkeys(name for part in parts for name in part):
            there = [(part[layer], weight) for part, weight in zip(parts, how.weights, strict=True) if layer in part]
            combined, cut = _layer(there, how)
            lost = max(lost, cut)
            ranks[layer.removeprefix(PREFIX)] = len(combined.down)
            state |= _named(layer, combined, embedding=layer in embeddings)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    text = json.dumps(_settings(settings[0], ranks), indent=2, sort_keys=True)
    (folder / CONFIG).write_text(text, encoding="utf-8")
    return lost


def check(adapters: Sequence[Path], how: How) -> None:
    """Raise ConfigError if an adapter cannot be combined, or the settings do not fit; reads only the configs."""
    _check_settings(how, count=len(adapters))
    for adapter in adapters:
        _check_adapter(adapter)


def _check_settings(how: How, *, count: int) -> None:
    if how.method not in METHODS:
        raise ConfigError(f"--combination {how.method!r} is not one of {', '.join(METHODS)}")
    if len(how.weights) != count:
        raise ConfigError(f"{count} adapters, but {len(how.weights)} weights", hint="--weights 0.7,0.3")
    if odd := [weight for weight in how.weights if not math.isfinite(weight)]:
        raise ConfigError(f"the weight {odd[0]} of an adapter is not a finite number", hint="--weights 0.7,0.3")
    if not any(how.weights):
        raise ConfigError("all adapters have the weight 0: nothing would be merged", hint="--weights 0.7,0.3")
    if how.rank is not None and how.method == "cat":
        raise ConfigError("cat always has the sum of the ranks", hint="use --combination svd for another rank")
    if not 0 < how.density <= 1:
        raise ConfigError(f"--density {how.density:g} must be above 0 and at most 1")


def _check_adapter(adapter: Path) -> None:
    config = files.settings(adapter)
    if config.get("peft_type") != "LORA":
        raise ConfigError(
            f"{adapter} is not a LoRA adapter; only these can be combined", hint="merge one after the other"
        )
    if str(config.get("init_lora_weights")).lower().startswith(CHANGE_THE_BASE):
        raise ConfigError(f"{adapter} began as {config['init_lora_weights']}: it only fits a modified base")
    if alone := [name for name in ALONE if config.get(name)]:
        raise ConfigError(f"{adapter} has {alone[0]}, which cannot be combined", hint="merge one after the other")
    if config.get("bias", "none") != "none":
        raise ConfigError(f"{adapter} trains biases, which cannot be combined", hint="merge one after the other")


def _factors(state: Mapping[str, Tensor], settings: Mapping[str, Any]) -> dict[str, Factors]:
    """Every layer's update, with the adapter's scale."""
    factors: dict[str, Factors] = {}
    for name, down in state.items():
        for kind in (LINEAR, EMBEDDING):
            layer = name.removesuffix(kind)
            if layer != name:
                up = state[layer + kind.replace("_A", "_B")].float()
                scale = _scale(layer.removeprefix(PREFIX), len(down), settings)
                factors[layer] = Factors(up * scale, down.float())
    left = [name for name in state if ".lora_" not in name and name.removesuffix(INNER) not in factors]
    if left:
        raise ConfigError(f"an adapter stores the full weight {left[0]}", hint="merge one after the other")
    return factors


def _inner(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The base's embeddings that were saved with the adapters, which must be equal in all of them."""
    embeddings: dict[str, Tensor] = {}
    for state in states:
        for name in (key for key in state if key.endswith(INNER)):
            if not torch.equal(embeddings.setdefault(name, state[name]), state[name]):
                raise ConfigError("the adapters contain different embeddings", hint="merge one after the other")
    return embeddings


def _scale(layer: str, rank: int, settings: Mapping[str, Any]) -> float:
    patterns = settings.get("alpha_pattern") or {}
    alpha = float(patterns.get(get_pattern_key(list(patterns), layer), settings["lora_alpha"]))
    return alpha / rank**0.5 if settings.get("use_rslora") else alpha / rank


def _layer(there: Sequence[tuple[Factors, float]], how: How) -> tuple[Factors, float]:
    up = torch.cat([part.up * weight for part, weight in there], dim=1)
    down = torch.cat([part.down for part, _ in there])
    if how.method == "cat":
        return Factors(up, down), 0.0
    rank = how.rank or len(down)
    if how.method == "svd":
        return _best_of_product(up, down, rank)
    updates = [part.up @ part.down for part, _ in there]
    combined = _combined(updates, torch.tensor([weight for _, weight in there]), how)
    left, sizes, right = torch.linalg.svd(combined, full_matrices=False)
    return _cut(left, sizes, right, rank)


def _combined(updates: list[Tensor], weights: Tensor, how: How) -> Tensor:
    function = getattr(merge_utils, how.method.removesuffix("_svd"))
    combined: Tensor = function(updates, weights, how.density)
    return combined


def _best_of_product(up: Tensor, down: Tensor, rank: int) -> tuple[Factors, float]:
    """The best approximation of `up @ down`, from the singular values of a matrix no larger than their rank."""
    first, first_triangle = torch.linalg.qr(up)
    second, second_triangle = torch.linalg.qr(down.T)
    left, sizes, right = torch.linalg.svd(first_triangle @ second_triangle.T)
    return _cut(first @ left, sizes, right @ second.T, rank)


def _cut(left: Tensor, sizes: Tensor, right: Tensor, rank: int) -> tuple[Factors, float]:
    total = float(sizes.norm())
    lost = float(sizes[rank:].norm()) / total if total else 0.0
    root = sizes[:rank].sqrt()
    return Factors(left[:, :rank] * root, root[:, None] * right[:rank]), lost


def _named(layer: str, factors: Factors, *, embedding: bool) -> dict[str, Tensor]:
    kind = EMBEDDING if embedding else LINEAR
    return {layer + kind: factors.down.contiguous(), layer + kind.replace("_A", "_B"): factors.up.contiguous()}


def _settings(first: Mapping[str, Any], ranks: Mapping[str, int]) -> dict[str, Any]:
    """A config that lists the layers by name, with a scale of 1 for each."""
    usual = max(ranks.values(), key=list(ranks.values()).count)
    patterns = {name: rank for name, rank in ranks.items() if rank != usual}
    return dict(first) | {
        "target_modules": sorted(ranks),
        "r": usual,
        "lora_alpha": usual,
        "rank_pattern": patterns,
        "alpha_pattern": patterns,
        "use_rslora": False,
        "init_lora_weights": True,
        "layers_to_transform": None,
        "layers_pattern": None,
        "exclude_modules": None,
        "inference_mode": True,
    }

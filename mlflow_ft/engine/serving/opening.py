"""Models that were found, opened with transformers: one alone, or adapters together on one base."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow_ft.engine import hub
from mlflow_ft.engine.models import generation, loading
from mlflow_ft.errors import ConfigError, ModelError
from mlflow_ft.progress import Progress
from mlflow_ft.values import ServedModel

with warnings.catch_warnings(record=True):  # MLflow warns of the type in `predict`, whatever filters are set
    from mlflow_ft.engine.serving import chat_model, loaded_models
    from mlflow_ft.engine.serving.loaded_models import AdapterFolder, Served

SAME = ("quantization", "dtype")
"""The fields, besides the weights, in which the records of two adapters of one base must agree."""


def alone(model: ServedModel, progress: Progress) -> Any:
    """One model, ready to answer.

    Raises:
        ModelError: it does not fit its base, or has no chat template.
    """
    chat = chat_model.ChatModel()
    with progress.bar(f"load {model.uri}"), hub.quiet_transformers():
        if model.base is None:
            chat.adopt(chat_model.load_whole(model.folder, **generation.for_loading(model.folder)), model.folder)
        else:
            base = model.base.path
            loaded = chat_model.load_base(str(base), dict(model.note), **generation.for_loading(base))
            module = loading.with_adapter(loaded, model.folder, say=progress.say)
            chat.adopt(module, with_tokenizer(model).tokenizer)
    if not chat.tokenizer.chat_template:
        raise ModelError(
            f"{model.uri} has no chat template, so it cannot answer messages",
            hint="serve the trained model, which has one",
        )
    return chat


def together(models: Sequence[ServedModel], progress: Progress) -> Served:
    """Adapters of one base, by their names, and the base.

    Raises:
        ConfigError: they cannot share one base. ModelError: an adapter does not fit it.
        RefusedError: together they give different outputs than alone.
    """
    check_sharable(models)
    base = models[0].base
    assert base is not None
    folders = {model.name: with_tokenizer(model) for model in models}
    with progress.bar(f"load {base.name} with {', '.join(folders)}"):
        return loaded_models.share(base.path, models[0].note, folders, say=progress.say)


def check_sharable(models: Sequence[ServedModel]) -> None:
    """Raise ConfigError if a model is no adapter, scores, adds tokens, or belongs to another base than the first."""
    for model in models:
        if model.base is None:
            raise ConfigError(f"{model.name}={model.uri} is a whole model, not an adapter", hint="serve it alone")
        if model.note.get("task") == "score":
            raise ConfigError(f"{model.name}={model.uri} scores answers and generates none", hint="serve it alone")
        if model.note.get("tokens"):
            raise ConfigError(
                f"{model.name}={model.uri} adds tokens that its base does not have", hint="serve it alone"
            )
    for model in models:
        _check_same(models[0], model)


def _check_same(first: ServedModel, other: ServedModel) -> None:
    """Raise ConfigError if two adapters belong to different weights, or to one base quantised differently."""
    assert first.base is not None
    assert other.base is not None
    if first.base.revision != other.base.revision:
        names = f"{first.base.name} and {other.base.name}"
        raise ConfigError(f"adapters {first.name!r} and {other.name!r} belong to different base models: {names}")
    for key in SAME:
        if first.note.get(key) != other.note.get(key):
            raise ConfigError(
                f"adapters {first.name!r} and {other.name!r} were trained on the base loaded differently: {key} is "
                f"{short(first.note.get(key))} and {short(other.note.get(key))}",
                hint="serve each alone, or merged",
            )


def short(value: Any) -> str:
    """A quantisation, or another field of base.json, in a word."""
    if isinstance(value, Mapping):
        return "int8" if value.get("load_in_8bit") else str(value.get("bnb_4bit_quant_type") or value["quant_method"])
    return str(value or "none")


def with_tokenizer(model: ServedModel) -> AdapterFolder:
    """The adapter's folder, and the folder of its tokenizer: its own, or its base's."""
    own = any((model.folder / name).is_file() for name in ("tokenizer_config.json", "tokenizer.json"))
    base: Path = model.folder if model.base is None else model.base.path
    return AdapterFolder(weights=model.folder, tokenizer=model.folder if own else base)


def compute_dtype() -> str:
    """The type in which a whole model computes here."""
    return str(chat_model.compute_dtype()).removeprefix("torch.")

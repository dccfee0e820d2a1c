"""The checks of the base model before a run: its files, its tokenizer, the device. No weight is read."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_ft.config.schema import Config
from mlflow_ft.errors import ModelError
from mlflow_ft.progress import Progress
from mlflow_ft.rows import Task
from mlflow_ft.stages import init_from
from mlflow_ft.stages.preflight.examination import Examination
from mlflow_ft.stages.start import PREPARE
from mlflow_ft.values import MLFLOW_URIS
from mlflow_ft.values.inspected import Caution

if TYPE_CHECKING:
    from mlflow_ft.values import BaseModel

EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "embed_in", "embeddings", "embedding", "tok_embeddings")
"""Names of embedding layers in the files of models."""


def find(examination: Examination, later: Collection[str] = (), *, reachable: bool = True) -> BaseModel | None:
    """Check everything that names a model, and find the base model if it is a folder, or on the Hub, or kept here.

    `later` are names of models that do not exist yet; `reachable` is whether MLflow can be asked.
    """
    config = examination.config
    name, base = config.model.name, None
    if ("model.name" in config.origins or not config.model.init_from) and name not in later:
        if name.startswith(MLFLOW_URIS):
            _in_mlflow(examination, "model.name", name, reachable=reachable)
        else:
            base = _found(examination)
    starts = {"model.init_from": config.model.init_from, "rollout.reward_model": config.rollout.reward_model}
    for setting, uri in starts.items():
        if not uri or uri in later:
            continue
        if uri.startswith(MLFLOW_URIS):
            _in_mlflow(examination, setting, uri, reachable=reachable)
        elif Path(uri).expanduser().exists() or uri.startswith((".", "/", "~")):
            examination.check(setting, partial(_start, uri, setting), setting=setting)
    return base


def _in_mlflow(examination: Examination, setting: str, uri: str, *, reachable: bool) -> None:
    def check() -> str:
        from mlflow_ft import tracking

        tracking.check_uri(uri, error=ModelError, what=setting)
        return uri

    if reachable:
        examination.check(setting, check, setting=setting)


def _start(uri: str, setting: str) -> str:
    """Check weights that were trained before, in a folder."""
    from mlflow_ft.engine import weight_files
    from mlflow_ft.engine.models import lacking

    start = init_from.read(uri, setting=setting)
    if start.base is None:
        weight_files.check(start.folder, uri)
        lacking.check(start.folder, uri)
    return f"{uri} ({'a model' if start.base is None else 'an adapter'})"


def _found(examination: Examination) -> BaseModel | None:
    """The base model that `model.name` names; None if something is wrong with it, or it must be fetched as a whole."""
    config, bases = examination.config, []

    def check() -> str:
        from mlflow_ft.engine import hub, own_code, weight_files
        from mlflow_ft.engine.models import own_quantization

        if not hub.at_hand(config.model):
            return f"{config.model.name}, which the run fetches"
        base = hub.find(config.model, Progress(quiet=True), weights=False)
        if config.method == PREPARE:
            bases.append(base)
            return f"{base.name} ({base.origin})"
        if not hub.fetches(config.model):
            weight_files.check(base.path, base.name)
        own_code.check_training(config, base)
        own_quantization.check_training(config, own_quantization.of(base.path))
        bases.append(base)
        return f"{base.name}: {weight_files.size(base.path) / 2**20:,.0f} MiB of weights"

    examination.check("base model", check, setting="model.name")
    return bases[0] if bases else None


def check_contents(examination: Examination, base: BaseModel, task: Task | None) -> None:
    """Compare the weights with config.json, and the tokenizer with the rows of the embeddings.

    `task` is what the model is trained for; None if it is not trained, or its method is unknown.
    """
    config = examination.config
    checks: list[tuple[str, Callable[[], str | Caution]]] = []
    if config.method != PREPARE:
        checks.append(("embeddings", partial(_embeddings, config, base)))
    if task and task != "score":
        checks.append(("architecture", partial(_architecture, config, base)))
    if task:
        checks.append(("weights", partial(_weights, config, base, task)))
    if not config.model.init_from:  # else the tokenizer is that of the weights to start from
        checks.append(("tokenizer", partial(_tokenizer, config, base)))
    for name, check in checks:
        if not examination.check(name, check, setting="model.name"):
            return


def _embeddings(config: Config, base: BaseModel) -> str:
    from mlflow_ft.engine import weight_files
    from mlflow_ft.engine.tokens import room

    rows = room.tokens(base.path, trust_remote_code=config.model.trust_remote_code)
    layers = {
        name: tensor.shape[0]
        for name, tensor in weight_files.tensors(base.path).items()
        if name.endswith(".weight") and len(tensor.shape) == 2 and name.split(".")[-2] in EMBEDDINGS
    }
    if rows is None or not layers:
        return "not compared with config.json"
    if rows not in layers.values():
        name, stored = next(iter(layers.items()))
        raise ModelError(
            f"model {base.name!r}: {name} has {stored:,} rows, but config.json says vocab_size {rows:,}",
            hint="use the config.json that belongs to these weights, or copy or download the model again",
        )
    return f"{rows:,} rows"


def _architecture(config: Config, base: BaseModel) -> str:
    from mlflow_ft.engine.models import one_direction

    return one_direction.check(base.path, base.name, trust_remote_code=config.model.trust_remote_code)


def _weights(config: Config, base: BaseModel, task: Task) -> str:
    from mlflow_ft.engine.models import lacking

    lacking.check(base.path, base.name, task=task, trust_remote_code=config.model.trust_remote_code)
    return "those of config.json"


def _tokenizer(config: Config, base: BaseModel) -> str | Caution:
    from mlflow_ft.engine.tokens import room, tokenizers

    tokenizer = tokenizers.load(config, base)
    beyond = room.beyond(tokenizer, tokenizer.rows)
    if not beyond:
        return f"{room.size(tokenizer):,} tokens"
    few = [beyond[number] for number in sorted(beyond)[: room.SHOWN]]
    return Caution(
        message=f"tokens without an embedding: {room.listed(beyond)}; rows that contain one are refused",
        remedy=f"give those that you need embeddings, which are trained: {room.add_tokens(few)}",
    )

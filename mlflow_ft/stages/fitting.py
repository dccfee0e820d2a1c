"""Fit the configuration to the base: rows are no longer than the positions that it has."""

from __future__ import annotations

from mlflow_ft.config.schema import Config
from mlflow_ft.errors import ConfigError
from mlflow_ft.progress import Progress
from mlflow_ft.registry import Registry
from mlflow_ft.values import BaseModel

NOT_GIVEN = ("method ", "demo ")
"""Prefixes of the origin of a setting that the user did not give: a method's default, or one of the built-in data."""
SHORTEST = 8
"""The minimum of `data.max_length`, in tokens."""


def fitted(config: Config, base: BaseModel, registry: Registry, progress: Progress) -> Config:
    """The configuration with `data.max_length` within the positions of a base that cannot read beyond them.

    A default is lowered and reported; a value that the user gave is refused. A base with rotary positions, ALiBi or
    states can read beyond the positions that it was trained with, and its `data.max_length` stays.

    Raises:
        ConfigError: a given `data.max_length` exceeds the positions, or a learned prompt takes all of them.
    """
    from mlflow_ft.engine.tokens import room

    length = config.data.max_length
    limit = room.made_for(base.path, trust_remote_code=config.model.trust_remote_code)
    prompt = _prompt(config, base, registry)
    if limit is None or length + prompt <= limit - room.SPARE:
        return config
    positions = _positions(base)
    if positions is None or length + prompt <= positions:
        return config
    left = positions - prompt
    taken = f", of which the learned prompt takes {prompt:,}" if prompt else ""
    if left < SHORTEST:
        raise ConfigError(
            f"the model has {positions:,} positions{taken}: there is no room for a row",
            hint="lower adapter.num_virtual_tokens, or use another adapter (--adapter.kind lora)",
        )
    origin = config.origins.get("data.max_length", "method default")
    if not origin.startswith(NOT_GIVEN):
        raise ConfigError(
            f"data.max_length is {length:,}, but the model has {positions:,} positions{taken}",
            hint=f"--data.max_length {left}, or leave it out; or use a model with more positions",
        )
    progress.say(f"data.max_length: {left:,} instead of {length:,}: the model has {positions:,} positions{taken}")
    origins = {**config.origins, "data.max_length": f"the positions of {base.name}"}
    data = config.data.model_copy(update={"max_length": left})
    return config.model_copy(update={"data": data, "origins": origins})


def _prompt(config: Config, base: BaseModel, registry: Registry) -> int:
    """Positions that a learned prompt takes."""
    adapter = registry.adapters[config.adapter.kind]
    if not adapter.learned_prompt:
        return 0
    if adapter.name != "cpt":
        return config.adapter.num_virtual_tokens
    from mlflow_ft.engine.tokens import tokenizers  # its prompt is a text

    text = config.adapter.init_text or ""
    return len(tokenizers.load(config, base)(text, add_special_tokens=False)["input_ids"])


def _positions(base: BaseModel) -> int | None:
    """The base's positions; None if it has no table of them, or cannot be built without weights."""
    from mlflow_ft.engine.models import skeleton
    from mlflow_ft.engine.tokens import room

    try:
        return room.positions(skeleton.bare_model(base.path, task=base.task))
    except (skeleton.UnsuitedError, *skeleton.FAILURES):
        return None

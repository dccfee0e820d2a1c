"""The space that is searched when none is given: the usual values in the records of the method and its adapter."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from mlflow_ft.config.schema import Config
from mlflow_ft.config.space import Dimension, Space
from mlflow_ft.config.space_file import usual_range
from mlflow_ft.errors import ConfigError
from mlflow_ft.registry import Registry

EPOCHS, USUAL_EPOCHS = "training.num_train_epochs", "1 to 5"
RATE = "training.learning_rate"
SEARCHED = ("adapter.", RATE, EPOCHS)
"""Not the loss itself (`objective`): trials are pruned by comparing their losses."""


def user_settings(config: Config) -> dict[str, str]:
    """The settings that the user gave, and where: not those of the method or of the built-in data."""
    return {
        path: origin for path, origin in config.origins.items() if not origin.startswith(("method ", "demo ", "asked "))
    }


def default_space(config: Config, registry: Registry) -> Space:
    """The usual ranges of every setting that the user did not fix.

    Raises:
        ConfigError: nothing is left to search.
    """
    fixed = user_settings(config)
    texts = dict(_texts(config, registry))
    if config.training.max_steps < 0:
        texts.setdefault(EPOCHS, USUAL_EPOCHS)
    else:
        texts.pop(EPOCHS, None)
    space = tuple(
        dimension
        for path, text in texts.items()
        if path.startswith(SEARCHED) and path not in fixed and (dimension := _dimension(config, path, text))
    )
    if not space:
        raise ConfigError(
            f"there is nothing to search: the settings with usual ranges for {config.method} are all fixed",
            hint="leave one of them out, or give a space: --sweep space.yaml",
        )
    return space


def _texts(config: Config, registry: Registry) -> Iterator[tuple[str, str]]:
    """Usual values by path: the adapter's, then the method's own, as far as they are about this adapter."""
    trainer, adapter = registry.trainers[config.method], registry.adapters[config.adapter.kind]
    yield from adapter.ranges.items()
    usual = adapter.name == trainer.defaults.get("adapter.kind", "none")
    for path, text in trainer.ranges.items():
        of_adapter = path.startswith("adapter.") or (path == RATE and "with an adapter" not in text)
        if usual or not of_adapter:
            yield path, text


def _dimension(config: Config, path: str, text: str) -> Dimension | None:
    place = f"usual values of {config.method}"
    dimension = usual_range(path, text, adapter=config.adapter.kind != "none", place=place)
    return replace(dimension, step=1.0) if dimension and path == EPOCHS else dimension

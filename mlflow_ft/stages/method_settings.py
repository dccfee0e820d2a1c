"""The settings of `objective` and `rollout`: whether the method uses them; checked before anything is loaded."""

from __future__ import annotations

from mlflow_ft.config.schema import Config
from mlflow_ft.config.training import TrainingSection
from mlflow_ft.engine import options
from mlflow_ft.errors import ConfigError, Problem
from mlflow_ft.records import Trainer


def check(config: Config, trainer: Trainer) -> None:
    """Refuse settings that the method does not use, and options that it does not have: the user expects them to matter.

    Raises:
        ConfigError: a setting is another method's, or an option has no such name, a setting of its own, or a value of
        another type.
    """
    _check_unused(config, trainer)
    if config.objective.options and trainer.options:
        used = trainer.settings or ()
        filled = {name for name in used for section in (config.objective, config.rollout) if _given(section, name)}
        ours = {*filled, *TrainingSection.model_fields} - {"options"}
        options.typed(config.objective.options, trainer.options(), section="objective", ours=ours)


def _check_unused(config: Config, trainer: Trainer) -> None:
    unused = [
        Problem(place=f"{origin}  {path}", message=f"is not used by method {trainer.name}")
        for path, origin in config.origins.items()
        if trainer.settings is not None
        and path.startswith(("objective.", "rollout."))
        and not origin.startswith("method ")
        and path.partition(".")[2] not in trainer.settings
    ]
    if unused:
        used = ", ".join(trainer.settings or ()) or "none"
        raise ConfigError(
            f"settings of other methods: {len(unused)}",
            problems=unused,
            hint=f"remove them; the settings of objective and rollout that {trainer.name} uses: {used}",
        )


def _given(section: object, name: str) -> bool:
    return getattr(section, name, None) is not None

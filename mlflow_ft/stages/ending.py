"""Whether a training can end, and choose its weights, by the held-out loss; checked before anything is loaded."""

from __future__ import annotations

import math

from mlflow_ft.config.schema import Config
from mlflow_ft.errors import ConfigError
from mlflow_ft.records import Trainer
from mlflow_ft.values.inspected import Caution


def check(config: Config, trainer: Trainer) -> None:
    """Refuse what goes by the held-out loss for a method that has none.

    Raises:
        ConfigError: the method does not measure one.
    """
    settings = config.training
    asked = {"training.early_stopping": settings.early_stopping, "training.load_best": settings.load_best}
    names = [name for name, value in asked.items() if value]
    if names and not trainer.held_out_loss:
        raise ConfigError(
            f"{' and '.join(names)}: not available for method {trainer.name}, which measures no held-out loss during "
            "training",
            hint=f"remove {'it' if len(names) == 1 else 'them'}, and choose when the training ends with "
            "--training.max_steps",
        )


def patience(config: Config) -> str | Caution:
    """A caution if so few held-out losses are measured that the patience cannot run out before the last step."""
    settings = config.training
    asked, every, steps = settings.early_stopping, settings.eval_steps, settings.max_steps
    if asked is None or (every >= 1 and steps < 1):  # then the number of steps is not known yet
        return ""
    before_last = math.ceil(1 / every if every < 1 else steps / every) - 1
    if before_last > asked:
        return ""
    often = f"{1 / (4 * asked):.1g}" if every < 1 else f"{max(1, steps // (4 * asked))}"
    return Caution(
        message=f"training.early_stopping {asked} cannot end this training early: {asked + 1} held-out losses must be "
        f"measured before the last step, and with training.eval_steps {every:g} there are {before_last}",
        remedy=f"measure them more often (--training.eval_steps {often})",
    )

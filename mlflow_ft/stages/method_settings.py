"""The settings of `objective` and `rollout`: whether the method uses them; checked before anything is loaded."""

from __future__ import annotations

import dataclasses
import difflib

from mlflow_ft.config.given import headline
from mlflow_ft.config.schema import Config
from mlflow_ft.config.training import TrainingSection
from mlflow_ft.engine import hardware, options
from mlflow_ft.engine.training.elsewhere import ELSEWHERE
from mlflow_ft.errors import ConfigError, Problem
from mlflow_ft.records import Trainer

USUAL_SCHEDULES = ("cosine", "linear", "constant", "constant_with_warmup")
USUAL_OPTIMIZERS = ("auto", "adamw_torch", "adamw_torch_fused", "paged_adamw_8bit")
"""Known to be in transformers without importing it."""
SCHEDULES_WITH_SETTINGS = {
    "warmup_stable_decay": ("num_decay_steps",),
    "cosine_with_min_lr": ("min_lr", "min_lr_rate"),
    "cosine_warmup_with_min_lr": ("min_lr", "min_lr_rate"),
}
"""What at least one of must be given."""
EXAMPLES = {"num_decay_steps": 100, "min_lr_rate": 0.1}


def check(config: Config, trainer: Trainer) -> None:
    """Refuse settings that the method does not use, and options that it does not have: the user expects them to matter.

    Raises:
        ConfigError: a setting is another method's, or an option has no such name, a setting of its own, or a value of
        another type.
    """
    _check_unused(config, trainer)
    if trainer.options:
        if config.objective.options:
            _check_options(config, trainer, trainer.options())
        if config.objective.loss_type is not None:
            _check_loss(config, trainer.options())
        _check_optimisation(config)


def _check_options(config: Config, trainer: Trainer, kind: type) -> None:
    used = trainer.settings or ()
    filled = {name for name in used for section in (config.objective, config.rollout) if _given(section, name)}
    ours = {*filled, *TrainingSection.model_fields} - {"options"}
    values = options.typed(config.objective.options, kind, section="objective", ours=ours, elsewhere=ELSEWHERE)
    if values.get("activation_offloading") and not hardware.gpus():
        raise ConfigError(
            "objective.options: activation_offloading moves activations from a GPU, and there is none",
            hint="remove it; training.gradient_checkpointing=true saves memory on a CPU",
        )


def _check_loss(config: Config, kind: type) -> None:
    """Refuse a form of the loss that is not among those that the method's class lists."""
    for field in dataclasses.fields(kind):
        if field.name == "loss_type":
            options.check_choice(field, config.objective.loss_type, name="objective.loss_type")


def _check_unused(config: Config, trainer: Trainer) -> None:
    unused = [
        Problem(
            place=origin if path in origin else f"{origin}  {path}", message=f"is not used by method {trainer.name}"
        )
        for path, origin in config.origins.items()
        if trainer.settings is not None
        and path.startswith(("objective.", "rollout."))
        and not origin.startswith("method ")
        and path.partition(".")[2] not in trainer.settings
    ]
    if unused:
        used = ", ".join(trainer.settings or ()) or "none"
        raise ConfigError(
            headline(unused, "in the settings of objective and rollout"),
            problems=unused,
            hint=f"leave out what {trainer.name} does not use; of objective and rollout it uses: {used}",
        )


def _check_optimisation(config: Config) -> None:
    """Refuse schedules and optimizers that transformers does not have, or cannot make from these settings."""
    shape, name = config.training.lr_scheduler_type, config.training.optim
    if shape not in USUAL_SCHEDULES:
        from transformers import SchedulerType

        _check_name("lr_scheduler_type", shape, [kind.value for kind in SchedulerType])
        given = options.value((config.objective.options or {}).get("lr_scheduler_kwargs", "{}"))
        needed = SCHEDULES_WITH_SETTINGS.get(shape, ())
        if needed and not set(needed) & set(given if isinstance(given, dict) else {}):
            raise ConfigError(
                f"training.lr_scheduler_type {shape} needs {' or '.join(needed)}",
                hint=f'--objective.options "lr_scheduler_kwargs={{{needed[-1]}: {EXAMPLES[needed[-1]]}}}"',
            )
    if name not in USUAL_OPTIMIZERS:
        from transformers.training_args import OptimizerNames

        _check_name("optim", name, ["auto", *(kind.value for kind in OptimizerNames)])


def _check_name(setting: str, name: str, known: list[str]) -> None:
    if name not in known:
        longer = [one for one in known if one.startswith(name)]
        near = longer or difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(known)}"
        raise ConfigError(f"training.{setting}: transformers has no {name!r}", hint=hint)


def _given(section: object, name: str) -> bool:
    return getattr(section, name, None) is not None

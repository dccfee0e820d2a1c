"""The checkpoint with the lowest held-out loss: found on the disk, and its weights put back into the trained model."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow_ft.engine.checkpoints import folder, of_trainer
from mlflow_ft.errors import FineTuneError
from mlflow_ft.manifest import verify_manifest


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A checkpoint that was written at an evaluation."""

    step: int
    loss: float
    """The held-out loss of its weights."""
    folder: Path


def measured(parent: Path, *, until: float = math.inf) -> list[Measured]:
    """The checkpoints up to a step whose weights were evaluated, the lowest loss first and of equals the earlier one.

    They are not verified; one whose facts cannot be read does not count.
    """
    found = []
    for place in folder.complete(parent):
        try:
            loss = folder.facts(place).get("eval_loss")
        except (OSError, ValueError):
            continue
        step = folder.step_of(place)
        if loss is not None and math.isfinite(loss) and step <= until:
            found.append(Measured(step=step, loss=loss, folder=place))
    return sorted(found, key=lambda one: (one.loss, one.step))


def sound(parent: Path, *, until: float, say: Callable[[str], None]) -> Measured | None:
    """The first of `measured` that matches its manifest; `say` gets a sentence about each that does not."""
    for one in measured(parent, until=until):
        try:
            verify_manifest(one.folder)
        except FineTuneError as error:
            say(f"{one.folder.name}: the checkpoint is corrupt and is skipped: {error.message}")
        else:
            return one
    return None


def put_back(trainer: Any, parts: dict[str, Any]) -> None:
    """Put back a checkpoint's weights, and what callbacks keep of these weights (`of_weights`), after the training.

    Raises:
        ModelError: the checkpoint belongs to another model.
    """
    of_trainer.restore_weights(of_trainer.weights(trainer), parts["weights"])
    for name, keeper in of_trainer.keepers(trainer):
        if getattr(keeper, "of_weights", False) and name in parts["callbacks"]:
            keeper.load_state_dict(parts["callbacks"][name])

"""Do work during training, such as sampling answers, without any effect on the training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mlflow_ft.engine import generators


@contextmanager
def aside(model: Any | None = None) -> Iterator[None]:
    """Restore every random generator afterwards.

    Inside, `model` is in evaluation mode; afterwards each of its modules is in the mode that it had.
    """
    modes = [(module, module.training) for module in model.modules()] if model is not None else []
    states = generators.collect()
    try:
        if model is not None:
            model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training
        generators.restore(states)

"""Do work during training, such as sampling answers, without any effect on the training."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


@contextmanager
def aside(model: Any | None = None) -> Iterator[None]:
    """Restore every random generator afterwards.

    Inside, `model` is in evaluation mode; afterwards each of its modules is in the mode that it had.
    """
    modes = [(module, module.training) for module in model.modules()] if model is not None else []
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            if model is not None:
                model.eval()
            yield
        finally:
            for module, training in modes:
                module.training = training
            random.setstate(python)
            np.random.set_state(numpy)

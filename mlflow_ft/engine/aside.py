"""What is done beside a training leaves no trace in it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


@contextmanager
def aside(model: Any | None = None) -> Iterator[None]:
    """Do something beside the training that leaves no trace in it: every random generator is put back afterwards.

    `model` is in evaluation mode inside, and each of its modules in its own mode again behind it.
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

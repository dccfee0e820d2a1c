"""The number of processes that a launcher started: `torchrun`, `accelerate launch`, `srun`, `mpirun`."""

from __future__ import annotations

import os
from collections.abc import Mapping

from mlflow_ft.errors import ConfigError

SIZES = {
    "WORLD_SIZE": "torchrun or accelerate launch",
    "SLURM_STEP_NUM_TASKS": "srun",
    "OMPI_COMM_WORLD_SIZE": "mpirun",
    "PMI_SIZE": "mpirun",
}
"""Environment variables with the number of processes, and who sets them."""


def check_single(environ: Mapping[str, str] = os.environ) -> None:
    """Raise ConfigError where a launcher started several processes: each would open its own run."""
    for name, launcher in SIZES.items():
        if (size := environ.get(name, "")).isdecimal() and int(size) > 1:
            raise ConfigError(
                f"{launcher} started {size} processes ({name}), but mlflow-ft runs in one: start it without the "
                "launcher; it uses one GPU, the first in CUDA_VISIBLE_DEVICES"
            )

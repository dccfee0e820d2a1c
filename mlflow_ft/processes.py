"""How many processes a launcher has started this command in: `torchrun`, `accelerate launch`, `srun`, `mpirun`."""

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
"""By variable that holds the number of processes, who sets it."""


def check_single(environ: Mapping[str, str] = os.environ) -> None:
    """Raise ConfigError where a launcher has started several processes: each would open a run of its own."""
    for name, launcher in SIZES.items():
        if (size := environ.get(name, "")).isdecimal() and int(size) > 1:
            raise ConfigError(
                f"{launcher} started this in {size} processes ({name}), and mlflow-ft runs in one: start it without "
                "the launcher; it uses one GPU, the first that CUDA_VISIBLE_DEVICES shows"
            )

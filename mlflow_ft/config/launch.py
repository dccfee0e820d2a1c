"""The settings of the processes that train together."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from mlflow_ft.config.section import Section

Strategy = Literal["ddp", "fsdp", "deepspeed-zero2", "deepspeed-zero3"]


class LaunchSection(Section):
    """How many processes train, on which machines, and how they share the work; names are those of accelerate."""

    launcher: str = "local"
    """Name of a registered launcher (`mlflow-ft show launchers`): local is this process alone."""
    strategy: Strategy = "ddp"
    """What each process holds: ddp all weights, fsdp and deepspeed-zero3 a share of them, deepspeed-zero2 all weights
    and a share of gradients and optimizer."""
    num_processes: int | None = Field(default=None, ge=1)
    """Processes on all machines together; one for each GPU when not given."""
    num_machines: int = Field(default=1, ge=1)
    """Machines; the same command is started on each, with its own `machine_rank`."""
    machine_rank: int = Field(default=0, ge=0)
    """This machine among them; machine 0 has the MLflow run."""
    main_process_ip: str | None = None
    """Address of machine 0 for the others."""
    main_process_port: int | None = Field(default=None, ge=0, le=65535)
    """Port on machine 0; when not given, 29500, or on one machine a free one."""
    deepspeed_config: Path | None = None
    """A DeepSpeed configuration (JSON) in place of the shipped one for the strategy."""
    cpu_offload: bool = False
    """Hold shares of weights and optimizer in the machines' memory (fsdp, deepspeed): slower, with less GPU memory."""
    max_restarts: int = Field(default=3, ge=0)
    """How often the processes are started again, from the last checkpoint, when one is lost; only launcher ray does."""
    join_minutes: float = Field(default=10.0, gt=0)
    """How long the processes wait at the start until all are there."""
    timeout_minutes: float = Field(default=60.0, gt=0)
    """How long a process waits for the others later: they wait while the first prepares data and packages."""

    @property
    def sharded(self) -> bool:
        """Whether each process holds a share of the weights only."""
        return self.strategy in ("fsdp", "deepspeed-zero3")

    @property
    def own_engine(self) -> bool:
        """Whether gradients and optimizer are those of DeepSpeed's engine, whose backward pass is a step."""
        return self.strategy.startswith("deepspeed")

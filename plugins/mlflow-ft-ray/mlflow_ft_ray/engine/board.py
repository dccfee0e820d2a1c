"""An actor beside the process that starts a training or a sweep: what its workers ask for while they work."""

from __future__ import annotations

from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


class Board:
    """Counts the attempts, and holds the signals that the user has sent: to a training, or to trials by name."""

    def __init__(self) -> None:
        self._attempts = 0
        self._signals: dict[str, int] = {}

    def begin(self) -> int:
        """Begin an attempt; returns its number, from 0."""
        self._attempts += 1
        return self._attempts - 1

    def stop(self, signal_number: int, name: str = "") -> None:
        """Note a signal."""
        self._signals[name] = signal_number

    def stopping(self, name: str = "") -> int:
        """The signal that was noted; 0 without one."""
        return self._signals.get(name, 0)


def put_up() -> Any:
    """Start the board on this machine, so that it is not lost with one of the workers' machines."""
    here = NodeAffinitySchedulingStrategy(node_id=ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(Board).options(num_cpus=0, scheduling_strategy=here).remote()

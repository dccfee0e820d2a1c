"""The memory that a training takes, measured: of the GPU by torch's allocator, of the machine by the kernel."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

import psutil
import torch

from mlflow_ft.engine import hardware

CLEAR = Path("/proc/self/clear_refs")
RESET_PEAK = "5"
"""Written to `clear_refs`, it makes the kernel forget the process's highest resident set (proc(5))."""

GROUP = Path("/sys/fs/cgroup")
"""The container's control group, version 2."""
NO_LIMIT = 2**62


class Meter:
    """The most memory in use since it was made, beyond what was in use then."""

    def __init__(self) -> None:
        self._before = hardware.in_use()
        _forget_peak()

    def peak(self) -> int:
        """Bytes."""
        return max(0, hardware.most_in_use() - self._before)


def available(*, sharing: int = 1) -> int:
    """Bytes that a process could take now: of its GPU; else of the machine or its container, which `sharing` share."""
    if torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info()
        return int(free)
    return min(int(psutil.virtual_memory().available), _left_in_container()) // sharing


def device_kind() -> str:
    """What measurements are comparable on: the GPU's name, or `CPU`."""
    return str(torch.cuda.get_device_name(0)) if torch.cuda.is_available() else "CPU"


def _forget_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return
    with suppress(OSError):
        CLEAR.write_text(RESET_PEAK)


def _left_in_container() -> int:
    """The container's limit less what it uses, without files in the cache, which make room."""
    try:
        limit, used = int((GROUP / "memory.max").read_text()), int((GROUP / "memory.current").read_text())
        cached = re.search(r"^inactive_file (\d+)$", (GROUP / "memory.stat").read_text(), re.MULTILINE)
    except (OSError, ValueError):  # no such group, or "max"
        return NO_LIMIT
    return limit - used + (int(cached[1]) if cached else 0)

"""The memory that a training takes, measured: of the GPU by torch's allocator, of the machine by the kernel."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

import psutil
import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"
"""Written to `clear_refs`, it makes the kernel forget the process's highest resident set (proc(5))."""
CONTEXT = 2**29
"""What CUDA itself takes of a GPU, which torch's allocator does not see."""


class Meter:
    """The most memory in use since it was made, beyond what was in use then."""

    def __init__(self) -> None:
        self._before = _in_use()
        _forget_peak()

    def peak(self) -> int:
        """Bytes."""
        return max(0, _highest() - self._before)


def available() -> int:
    """Bytes that a training could take now: of the GPU, or of the machine or its container."""
    if torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info()
        return int(free)
    return min(int(psutil.virtual_memory().available), _left_in_container())


def capacity() -> int:
    """Bytes of the GPU's memory, or of the machine's or its container's."""
    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(0).total_memory)
    return min(int(psutil.virtual_memory().total), _container())


def device_kind() -> str:
    """What measurements are comparable on: the GPU's name, or `CPU`."""
    return str(torch.cuda.get_device_name(0)) if torch.cuda.is_available() else "CPU"


def _in_use() -> int:
    if torch.cuda.is_available():
        return int(torch.cuda.memory_allocated())
    return int(psutil.Process().memory_info().rss)


def _forget_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return
    with suppress(OSError):
        CLEAR.write_text(RESET_PEAK)


def _highest() -> int:
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    with suppress(OSError):
        if peak := re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text()):
            return int(peak[1]) * 1024
    return _in_use()


LIMITS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)
"""The container's limit and use, with version 2 of control groups and with version 1."""
NO_LIMIT = 2**62


def _container() -> int:
    return min((_number(limit) for limit, _ in LIMITS), default=NO_LIMIT)


def _left_in_container() -> int:
    limits = [(_number(limit), _number(used)) for limit, used in LIMITS]
    return min((limit - used for limit, used in limits if limit < NO_LIMIT and used < NO_LIMIT), default=NO_LIMIT)


def _number(file: Path) -> int:
    try:
        return min(NO_LIMIT, int(file.read_text()))
    except (OSError, ValueError):  # no such group, or "max"
        return NO_LIMIT

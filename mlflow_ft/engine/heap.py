"""How the C library keeps memory that is free."""

from __future__ import annotations

import ctypes
from contextlib import suppress

import torch

M_MMAP_THRESHOLD = -3
"""The option of glibc's `mallopt`: from how many bytes on a block gets memory of its own from the system."""
OWN_MEMORY = 2**20


def keep_compact() -> None:
    """Make glibc give the memory of every large tensor back when it is freed; elsewhere, nothing.

    Left alone, glibc raises its threshold to 32 MiB. Freed tensors then stay in the heap, scattered, and the next step,
    whose tensors have other sizes, takes new memory beside them: in three steps a training grew by a quarter, and its
    peak could not be predicted. A GPU has its own allocator.
    """
    if not torch.cuda.is_available():
        with suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").mallopt(M_MMAP_THRESHOLD, OWN_MEMORY)

"""The process of a worker: `mlflow_ft.launched`, which the kernel kills when the worker ends.

    python -m mlflow_ft_ray.child WORKER_PID FILE [--again]

A worker whose machine leaves the cluster, or that Ray stops, must not leave a training behind that goes on alone.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def die_with(parent: int) -> None:
    """Ask the kernel for SIGKILL when the parent ends; exit if it has ended already."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)


def main() -> None:
    """Run the request in the file."""
    die_with(int(sys.argv[1]))
    from mlflow_ft import launched

    sys.argv = [sys.argv[0], *sys.argv[2:]]
    launched.main()


if __name__ == "__main__":
    main()

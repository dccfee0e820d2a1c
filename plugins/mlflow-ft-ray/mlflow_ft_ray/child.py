"""The process of a worker: a module of mlflow-ft, which the kernel kills when the worker ends.

    python -m mlflow_ft_ray.child WORKER_PID mlflow_ft.launched FILE [--again]
    python -m mlflow_ft_ray.child WORKER_PID mlflow_ft trial STUDY SWEEP NUMBER

A worker whose machine leaves the cluster, or that Ray stops, must not leave a training behind that goes on alone.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys
from collections.abc import Sequence

PR_SET_PDEATHSIG = 1


def command(module: str, arguments: Sequence[str]) -> list[str]:
    """The command line with which the calling process, a worker, starts a module."""
    return [sys.executable, "-m", "mlflow_ft_ray.child", str(os.getpid()), module, *arguments]


def die_with(parent: int) -> None:
    """Ask the kernel for SIGKILL when the parent ends; exit if it has ended already."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)


def main() -> None:
    """Run the module with the rest of the command line."""
    die_with(int(sys.argv[1]))
    module = sys.argv[2]
    sys.argv = [module, *sys.argv[3:]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()

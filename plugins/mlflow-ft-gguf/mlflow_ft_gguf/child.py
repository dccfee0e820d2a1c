"""llama.cpp in a separate process: `python -m mlflow_ft_gguf.child FILE CONTEXT` prints its address and runs until its
input ends.
"""

from __future__ import annotations

import os
import sys


def main(file: str, context: int) -> None:
    """Load the file, print the address, and serve until the parent closes the pipe."""
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path = file
    settings.n_ctx = context
    settings.n_parallel = 1
    settings.warmup = False
    settings.verbosity = -1
    settings.cpuparams.n_threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    server = xllamacpp.Server(settings)
    sys.stdout.write(f"\nlistening {server.listening_address}\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))

"""Runs accelerate's launcher in a process of its own, and ends when the process that asked for it is gone.

    python -m mlflow_ft.engine.launching.agent FILE PARENT ARGUMENT...

FILE has the request, PARENT is the id of the process that asked, and the arguments are those of `accelerate launch`.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

FAILED = ".failed"
"""Ending of the file with the error and its remedy, if there is one."""
LINES_ABOVE = "the last lines above say more; a run that was interrupted is listed by `mlflow-ft runs`"


def main() -> None:
    """Start the processes and wait until they have ended."""
    own = {"TORCH_CPP_LOG_LEVEL": "FATAL"} if "TORCH_CPP_LOG_LEVEL" not in os.environ else {}
    os.environ.update(own)  # else a stack of C++ comes before our own error
    from accelerate.commands import launch
    from torch import distributed
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    from mlflow_ft import processes
    from mlflow_ft.engine.launching import strategy
    from mlflow_ft.errors import brief

    for name in own:  # torch has read it; the processes say all
        del os.environ[name]
    file, parent, *arguments = sys.argv[1:]
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # the job reports its own errors
    processes.when_orphaned(int(parent), partial(os.kill, os.getpid(), signal.SIGTERM))
    namespace = strategy.parsed([*arguments, "-m", "mlflow_ft.launched", file])
    # accelerate sets it for its other launchers only
    os.environ.setdefault("OMP_NUM_THREADS", str(namespace.num_cpu_threads_per_process))
    starting = launch.deepspeed_launcher if namespace.use_deepspeed else launch.multi_gpu_launcher
    try:
        starting(namespace)
    except ChildFailedError as error:
        failures = [describe(rank, failure) for rank, failure in sorted(error.failures.items())]
        report(file, f"the processes ended without a result: {'; '.join(failures)}", LINES_ABOVE)
    except (distributed.DistStoreError, distributed.DistNetworkError) as error:
        if namespace.num_machines == 1:
            raise
        minutes = float(namespace.rdzv_conf.rpartition("=")[2]) / 60
        place = f"{namespace.main_process_ip}:{namespace.main_process_port}"
        report(
            file,
            f"not all {namespace.num_machines} machines came to {place} within {minutes:g} minutes: {brief(error)}",
            "check that the command was started on each machine, with its own --launch.machine_rank, and that each "
            "reaches this address; or wait longer (--launch.join_minutes)",
        )
    except SignalException as stopped:
        sys.exit(128 + int(stopped.sigval))


def report(file: str, message: str, hint: str) -> NoReturn:
    """Leave an error for the process that asked, and end."""
    Path(file + FAILED).write_text(json.dumps([message, hint]), encoding="utf-8")
    sys.exit(1)


def describe(rank: int, failure: Any) -> str:
    """How a process ended, in words."""
    if failure.exitcode < 0:
        return f"rank {rank} was killed by {signal.Signals(-failure.exitcode).name}"
    return f"rank {rank} ended with exit code {failure.exitcode}"


if __name__ == "__main__":
    main()

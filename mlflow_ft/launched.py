"""What a launcher runs in every process: rank 0 does the job that was asked for, the others follow it.

    python -m mlflow_ft.launched FILE [--again]     the request is in FILE, and rank 0 writes its result to FILE.result

A launcher that starts functions instead of programs calls `work`. The variables of torchrun say which process this is.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_ft import disk
from mlflow_ft.values.launch import result_file

if TYPE_CHECKING:
    from mlflow_ft.operations.launching import Request
    from mlflow_ft.operations.reproducing.verdict import Reproduction
    from mlflow_ft.pipeline import Outcome
    from mlflow_ft.plugins import Plugins
    from mlflow_ft.progress import Progress

AGAIN = "--again"


def work(request: str, *, again: bool = False) -> str:
    """Do the job as rank 0 and return its result, an outcome or an error, as JSON; as another rank return "".

    `again` continues the run that earlier processes with the same request have left.
    """
    from mlflow_ft import plugins, processes
    from mlflow_ft.errors import FineTuneError
    from mlflow_ft.operations import launching
    from mlflow_ft.progress import Progress
    from mlflow_ft.stages import following

    place = processes.settle()
    loaded = plugins.load()
    if not place.leads:
        following.follow(place, loaded)
        return ""
    asked = launching.Request.read(request)
    asked = launching.again(asked) if again else asked
    try:
        with processes.launched():
            outcome: Any = requested(asked, loaded, progress=Progress(quiet=asked.quiet))
    except FineTuneError as error:
        return launching.error_as_json(error)
    following.release()
    return launching.as_json(outcome)


def requested(request: Request, plugins: Plugins, *, progress: Progress) -> Outcome | Reproduction:
    """Do what a launcher was asked for, as rank 0 of the processes that it started; raises as that function."""
    from mlflow_ft import pipeline

    if request.verb == "run":
        return pipeline.run(request.config, plugins, progress=progress, now=request.now)
    if request.verb == "reproduce":
        return pipeline.reproduce(
            request.run_id, plugins, tolerance=request.tolerance, output_dir=request.output_dir, progress=progress
        )
    return pipeline.resume(
        request.run_id,
        plugins,
        settings=request.changes,
        accept_changes=request.accept_changes,
        only_package=request.only_package,
        progress=progress,
    )


def main() -> None:
    """Run the request in the file that is named on the command line."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    file = Path(sys.argv[1])
    result = work(file.read_text(encoding="utf-8"), again=AGAIN in sys.argv[2:])
    if not result:
        return
    answer = json.loads(result)
    disk.write_json(result_file(file), answer)
    sys.exit(answer.get("exit_code", 0))


if __name__ == "__main__":
    main()

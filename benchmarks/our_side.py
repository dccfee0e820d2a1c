"""This project's side of `benchmarks/train.py`: a whole run, whose steps are measured by a plugin."""

from __future__ import annotations

import sys

from benchmarks import steps
from mlflow_ft import pipeline, plugins
from mlflow_ft.cli.asked import asked
from mlflow_ft.progress import Progress


def main(arguments: list[str]) -> None:
    """Train."""
    loaded = plugins.load({"MLFLOW_FT_PLUGINS": ""})
    loaded.add(steps, name="steps")
    pipeline.run(asked(arguments, loaded), loaded, progress=Progress(quiet=True))


if __name__ == "__main__":
    main(sys.argv[1:])

"""The trained weights of both runs: their hashes, and the largest difference where the original's files are found."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_ft.errors import FineTuneError, ModelError
from mlflow_ft.hashes import file_hash
from mlflow_ft.operations.reproducing.original import Original
from mlflow_ft.stages.train import weight_hashes

if TYPE_CHECKING:
    from mlflow_ft.values import Trained

ADAPTER = "adapter"
"""The name of a logged adapter, and the folder of a trained one."""


@dataclass(frozen=True, kw_only=True)
class ComparedWeights:
    """The weight files of both runs."""

    count: int
    recorded: bool
    """Whether the original recorded the hashes of its weights."""
    differing: tuple[str, ...] = ()
    """Files that differ, or that only one of the runs has."""
    tensor: str = ""
    """The tensor with the largest difference."""
    largest: float | None = None
    """The largest absolute difference; None if nothing differs, or the original's files were not found."""

    @property
    def identical(self) -> bool:
        """Whether all are known to be the same bit for bit."""
        return self.recorded and not self.differing

    @property
    def result(self) -> str:
        """The result in a word or two."""
        if not self.recorded:
            return "not recorded by the original"
        return "differs" if self.differing else "identical"


def compare(original: Original, trained: Trained) -> ComparedWeights:
    """Compare the hashes; for files that differ, find the largest difference between their tensors."""
    then, now = original.weights, weight_hashes(trained)
    if then is None:
        return ComparedWeights(count=len(now), recorded=False)
    differing = tuple(sorted(name for name in {*then, *now} if then.get(name) != now.get(name)))
    tensor, largest = _largest(original, trained, [name for name in differing if name in then and name in now])
    return ComparedWeights(count=len(now), recorded=True, differing=differing, tensor=tensor, largest=largest)


def _largest(original: Original, trained: Trained, names: list[str]) -> tuple[str, float | None]:
    from mlflow_ft.engine.judging import weight_distance

    largest: tuple[str, float | None] = ("", None)
    with tempfile.TemporaryDirectory(prefix="mlflow-ft-original-") as scratch:
        for name in names:
            before = _file(original, name, Path(scratch))
            farthest = weight_distance.largest_difference(before, trained.folder / name) if before else None
            if farthest and (largest[1] is None or farthest[1] > largest[1]):
                largest = farthest
    return largest


def _file(original: Original, name: str, scratch: Path) -> Path | None:
    """A weight file of the original: in its folder, if it is here and unchanged, else in its logged adapter."""
    from mlflow_ft.tracking.unfinished import FOLDER

    local = Path(original.run.data.tags.get(FOLDER, "")) / "train" / name
    if original.weights and local.is_file() and file_hash(local) == original.weights[name]:
        return local
    return _logged(original, name, scratch) if name.startswith(f"{ADAPTER}/") else None


def _logged(original: Original, name: str, scratch: Path) -> Path | None:
    from mlflow_ft import tracking

    try:
        uri = tracking.Store.connect().logged_model(original.run, ADAPTER)
        folder = tracking.fetch(uri, error=ModelError, what="model", into=scratch) if uri else scratch
    except FineTuneError:  # the comparison is complete without it
        return None
    return next(iter(folder.rglob(Path(name).name)), None)

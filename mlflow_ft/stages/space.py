"""The disk space that a run needs for checkpoints, models and artifacts, and whether it is free."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mlflow_ft.config.schema import Config
from mlflow_ft.errors import ResourceError
from mlflow_ft.registry import Registry

TRAINED = 12
"""Bytes in a checkpoint for each weight that is trained: its value and Adam's two, in float32."""
SHARE = 0.05
"""The share of the weights that an adapter trains, at most, unless it is unusually large."""
GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Need:
    """Bytes that will be written at one place."""

    what: str
    place: Path
    size: int


def needs(config: Config, registry: Registry, base: Path, *, folder: Path, artifacts: Path | None) -> Iterator[Need]:
    """What a run will write: in or below `folder`, and to `artifacts` if these are on this machine."""
    from mlflow_ft.engine import weight_files
    from mlflow_ft.engine.models import own_quantization

    whole = own_quantization.whole_size(base)
    full = config.adapter.kind == "none"
    weights = _weights(base)
    checkpoint = int(TRAINED * weights * (1 if full else SHARE))
    if (folder / "train").is_dir():  # a resumed run
        yield Need(what="already there", place=folder, size=-_size(folder))
    yield Need(what="checkpoints", place=folder, size=checkpoint * (config.training.save_total_limit + 1))
    if full:
        yield Need(what="trained model", place=folder, size=4 * weights)  # in float32
    merges = registry.adapters[config.adapter.kind].merges and "merged" in (config.package.packagers or ["merged"])
    if full or merges:
        yield Need(what="packaged model", place=folder, size=whole)
        yield Need(what="its copy loaded again", place=Path(tempfile.gettempdir()), size=whole)
        if artifacts:
            yield Need(what="artifacts", place=artifacts, size=whole)
    if not weight_files.all_here(base):
        yield Need(what="the base model", place=base, size=weight_files.size(base))


def _weights(base: Path) -> int:
    """The number of weights in the base's files; estimated from their size where the files are not here or packed."""
    from mlflow_ft.engine import weight_files
    from mlflow_ft.engine.models import own_quantization

    if own_quantization.of(base) is None and weight_files.all_here(base):
        return sum(math.prod(tensor.shape) for tensor in weight_files.tensors(base).values())
    return max(own_quantization.whole_size(base), weight_files.size(base)) // 2


def check(needed: Iterable[Need]) -> str:
    """Check that every disk has room for what will be written to it, and describe the tightest one.

    Raises:
        ResourceError: one has not.
    """
    by_disk: dict[int, list[Need]] = defaultdict(list)
    for need in needed:
        by_disk[_existing(need.place).stat().st_dev].append(need)
    described = []
    for several in by_disk.values():
        place, size = several[0].place, sum(need.size for need in several)
        free = shutil.disk_usage(_existing(place)).free
        described.append((free - size, f"about {_gib(size)} of {_gib(free)} free under {place}"))
        if free < size:
            parts = ", ".join(f"{need.what} {_gib(need.size)}" for need in several if need.size > 0)
            raise ResourceError(
                f"the run needs about {_gib(size)} under {place}, and {_gib(free)} are free ({parts})",
                hint="free some space, set another --run.output_dir, or keep fewer checkpoints "
                "(--training.save_total_limit)",
            )
    return min(described)[1] if described else "nothing large"


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _existing(place: Path) -> Path:
    place = place.expanduser().absolute()
    while not place.exists():
        place = place.parent
    return place


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"

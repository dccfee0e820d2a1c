"""What a merge is asked for, and the adapter that it is about: one, or several of one base made one."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mlflow_ft.errors import ConfigError, ModelError
from mlflow_ft.progress import Progress
from mlflow_ft.stages import init_from

Into = Literal["dequantised", "original"]
Quantize = Literal["none", "nf4", "int8"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
FILES = ("adapter_config.json", "adapter_model.safetensors")
OF_ONE = ("manifest.json", "README.md")
"""What an adapter's folder says of that adapter alone."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is to be merged, and where to."""

    adapter: str
    """A folder, `runs:/RUN_ID`, `models:/NAME@alias`, `models:/m-...`; several with commas between them."""
    out: Path
    base: str | None = None
    """The base; the one that the adapter names when not given."""
    dtype: Dtype = "auto"
    """Type of the merged weights; auto is that of the base's files."""
    into: Into = "dequantised"
    """Of an adapter that was trained beside a quantised base: what that base stood for, or its original weights."""
    quantize: Quantize | None = None
    """How the base was held in training, where the adapter's own record does not say it."""
    data: str | None = None
    """Rows to tell the loss on, of the model as it was trained and of each merged form; it takes the whole model."""
    shard: int = 5 * 10**9
    """Bytes of a file, at most."""
    weights: tuple[float, ...] = ()
    """Of several adapters, one for each."""
    combination: str = "cat"
    """How several are made one: `engine.combine.METHODS`."""
    rank: int | None = None
    """Of the adapter that they become; the sum of theirs when not given."""
    density: float = 0.5
    """Share of each that TIES, DARE and pruning keep."""


def find(asked: Asked, scratch: Path, progress: Progress) -> init_from.Start:
    """The adapter's folder and what it says of its base; several are made one in `scratch`.

    Raises:
        ModelError: there is no adapter, or they belong to several bases. ConfigError: they cannot be made one.
    """
    found = [_read(one) for one in asked.adapter.split(",")]
    return found[0] if len(found) == 1 else _combined(asked, found, scratch, progress)


def _read(asked: str) -> init_from.Start:
    """The adapter's folder and what it says of its base. A run alone means the adapter that it logged.

    Raises:
        ModelError: there is none, or a whole model.
    """
    uri = f"{asked.rstrip('/')}/adapter" if re.fullmatch(r"runs:/[^/]+/?", asked) else asked
    start = init_from.read(uri, setting="--adapter")
    if start.base is None:
        raise ModelError(f"{asked} is a whole model; there is nothing to merge", hint="name the adapter")
    missing = [name for name in FILES if not (start.folder / name).is_file()]
    if missing:
        raise ModelError(
            f"the adapter in {start.folder} has no {', '.join(missing)}", hint="only safetensors are read, no pickles"
        )
    return start


def _combined(asked: Asked, found: Sequence[init_from.Start], folder: Path, progress: Progress) -> init_from.Start:
    """Several adapters of one base as one.

    Raises:
        ConfigError: one of them cannot be combined, or the settings do not fit. ModelError: they are of several bases.
    """
    from mlflow_ft.engine import combine

    bases = {_same_base(one.base or {}) for one in found}
    if len(bases) > 1:
        told = "; ".join(f"{one.uri}: {(one.base or {}).get('name_or_path')}" for one in found)
        raise ModelError(f"the adapters belong to different bases: {told}")
    if not asked.weights:
        raise ConfigError(f"{len(found)} adapters and no weights", hint="--weights 0.5,0.5; 1,1 adds them up")
    how = combine.How(method=asked.combination, weights=asked.weights, rank=asked.rank, density=asked.density)
    lost = combine.combine([one.folder for one in found], how, folder)
    if lost:
        progress.say(
            f"of a layer's combined update at most {lost:.1%} (Frobenius norm) is beyond the rank, and is lost"
        )
    for file in found[0].folder.iterdir():
        if file.is_file() and file.name not in (*FILES, *OF_ONE):
            shutil.copyfile(file, folder / file.name)
    return init_from.Start(uri=" + ".join(one.uri for one in found), folder=folder, base=found[0].base)


def _same_base(base: Mapping[str, Any]) -> str:
    return json.dumps([base.get(name) for name in ("name_or_path", "revision", "quantization", "task", "tokens")])

"""A merge request, and its adapter: one, or several of one base combined into one."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from mlflow_ft.config.methods import AdapterSection
from mlflow_ft.config.schema import Config, ModelSection, PackageSection
from mlflow_ft.errors import ConfigError, ModelError
from mlflow_ft.progress import Progress
from mlflow_ft.rows import Task
from mlflow_ft.stages import init_from
from mlflow_ft.values import BaseModel

Into = Literal["dequantised", "original"]
Quantize = Literal["none", "nf4", "int8"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
FILES = ("adapter_config.json", "adapter_model.safetensors")
OF_ONE = ("manifest.json", "README.md")
"""Files of an adapter's folder that describe only that adapter."""


@dataclass(frozen=True, kw_only=True)
class MergeRequest:
    """What to merge, and where to write it."""

    adapter: str
    """A folder, `runs:/RUN_ID`, `models:/NAME@alias`, `models:/m-...`; several separated by commas."""
    out: Path
    base: str | None = None
    """The base; the one that the adapter names if not given."""
    dtype: Dtype = "auto"
    """Type of the merged weights; auto: the type of the base's files."""
    into: Into = "dequantised"
    """For an adapter trained on a quantised base: merge into its dequantised or its original weights."""
    quantize: Quantize | None = None
    """The quantisation of the base in training, if the adapter's record does not have it."""
    data: str | None = None
    """Rows to measure the loss on, for the model as it was trained and each merged form; loads the whole model."""
    shard: int = 5 * 10**9
    """The most bytes of a file."""
    weights: tuple[float, ...] = ()
    """For several adapters, one weight each."""
    combination: str = "cat"
    """How several are combined: `engine.merging.combine.METHODS`."""
    rank: int | None = None
    """The rank of the combined adapter; the sum of the ranks if not given."""
    density: float = 0.5
    """The share of each adapter that TIES, DARE and pruning keep."""
    pad_token: str | None = None
    """The token to pad rows with, if the model has no embedding for the tokenizer's pad token."""


def find(request: MergeRequest, scratch: Path, progress: Progress) -> init_from.Start:
    """The adapter's folder and the record of its base; several are combined in `scratch`.

    Raises:
        ModelError: there is no adapter, or they belong to several bases. ConfigError: they cannot be combined.
    """
    starts = [_read(place) for place in request.adapter.split(",")]
    return starts[0] if len(starts) == 1 else _combined(request, starts, scratch, progress)


def _read(place: str) -> init_from.Start:
    """The adapter's folder and the record of its base. A run means the adapter that it logged.

    Raises:
        ModelError: there is no adapter, or a whole model.
    """
    uri = f"{place.rstrip('/')}/adapter" if re.fullmatch(r"runs:/[^/]+/?", place) else place
    start = init_from.read(uri, setting="--adapter")
    if start.base is None:
        raise ModelError(f"{place} is a whole model; there is nothing to merge", hint="name the adapter")
    missing = [name for name in FILES if not (start.folder / name).is_file()]
    if missing:
        raise ModelError(
            f"the adapter in {start.folder} has no {', '.join(missing)}",
            hint="only safetensors files are read, not pickles",
        )
    return start


def config_of(request: MergeRequest, start: init_from.Start) -> Config:
    """How the base was loaded in training, as a configuration.

    Raises:
        ConfigError: its quantisation is not supported.
    """
    base = start.base or {}
    quantization = base.get("quantization") or {}
    quantize = request.quantize or _quantize(quantization, own=bool(base.get("quantized_files")))
    settings: dict[str, Any] = {"quantize": quantize, "dtype": base.get("dtype") or "auto"}
    if quantize == "nf4":
        settings["double_quant"] = bool(quantization.get("bnb_4bit_use_double_quant", True))
    origins = {}
    if request.base:
        settings["name"], origins["model.name"] = request.base, "--base"
    return Config(
        method="merge",
        model=ModelSection(**settings),
        adapter=AdapterSection(kind=str(base.get("kind") or "lora")),
        package=PackageSection(dtype=request.dtype),
        origins=origins,
    )


def _quantize(quantization: Mapping[str, Any], *, own: bool) -> str:
    if quantization.get("load_in_8bit"):
        return "int8"
    if not quantization.get("load_in_4bit"):
        return "none"
    kind = quantization.get("bnb_4bit_quant_type")
    if kind != "nf4" and not own:
        raise ConfigError(f"the adapter was trained on a base in {kind}", hint="only nf4 and int8 are supported")
    return "nf4"


def base_of(request: MergeRequest, config: Config, start: init_from.Start, progress: Progress) -> BaseModel:
    """The adapter's base model.

    Raises:
        ModelError: it cannot be found or lacks weights, or the adapter was trained on another one.
    """
    from mlflow_ft.engine.models import lacking

    recorded = start.base or {}
    base = init_from.base_of(config, start, progress, option="--base")
    revision = str(recorded.get("revision") or "")
    if revision and not revision.startswith("sha256:") and not base.revision.startswith("sha256:"):
        if revision != base.revision:
            raise ModelError(
                f"the adapter {start.uri} was trained on {recorded.get('name_or_path')} at {revision}, but --base is "
                f"{base.name} at {base.revision}",
                hint="leave out --base to fetch the recorded revision",
            )
    elif request.base and not revision.startswith("sha256:"):
        progress.warn(
            f"the adapter does not record its base's weights, so it cannot be verified that {base.name} is its base"
        )
    grown = start.folder if recorded.get("tokens") else None
    task: Task = recorded.get("task") or "generate"
    lacking.check(base.path, base.name, task=task)
    return replace(base, task=task, start=grown)


def _combined(
    request: MergeRequest, starts: Sequence[init_from.Start], folder: Path, progress: Progress
) -> init_from.Start:
    """Several adapters of one base combined into one.

    Raises:
        ConfigError: an adapter cannot be combined, or the settings do not fit. ModelError: they have different bases.
    """
    from mlflow_ft.engine.merging import combine

    bases = {_same_base(start.base or {}) for start in starts}
    if len(bases) > 1:
        names = "; ".join(f"{start.uri}: {(start.base or {}).get('name_or_path')}" for start in starts)
        raise ModelError(f"the adapters belong to different bases: {names}")
    if not request.weights:
        raise ConfigError(f"{len(starts)} adapters and no weights", hint="--weights 0.5,0.5; 1,1 adds them up")
    how = combine.How(method=request.combination, weights=request.weights, rank=request.rank, density=request.density)
    combine.check([start.folder for start in starts], how)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        folders = [
            _fitting(request, start, Path(scratch, str(number)), progress) for number, start in enumerate(starts)
        ]
        lost = combine.combine(folders, how, folder)
    if lost:
        progress.say(f"the rank is too low: up to {lost:.1%} of a layer's combined update (Frobenius norm) is lost")
    for file in starts[0].folder.iterdir():
        if file.is_file() and file.name not in (*FILES, *OF_ONE):
            shutil.copyfile(file, folder / file.name)
    return init_from.Start(uri=" + ".join(start.uri for start in starts), folder=folder, base=starts[0].base)


def _fitting(request: MergeRequest, start: init_from.Start, folder: Path, progress: Progress) -> Path:
    """The adapter's folder, or a copy in `folder` with its base's names for the weights.

    Raises:
        ModelError: it does not fit its base.
    """
    from mlflow_ft.engine.merging import fold

    config = config_of(request, start)
    base = base_of(request, config, start, progress)

    def say(text: str) -> None:
        progress.say(f"{start.uri}: {text}")

    return fold.with_names_of_base(config, base, start.folder, folder, say=say)


def _same_base(base: Mapping[str, Any]) -> str:
    return json.dumps([base.get(name) for name in ("name_or_path", "revision", "quantization", "task", "tokens")])

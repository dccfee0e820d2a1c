"""What a merge is asked for, and the adapter that it is about: one, or several of one base made one."""

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
from mlflow_ft.stages import init_from
from mlflow_ft.values import BaseModel

Into = Literal["dequantised", "original"]
Quantize = Literal["none", "nf4", "int8"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
FILES = ("adapter_config.json", "adapter_model.safetensors")
OF_ONE = ("manifest.json", "README.md")
"""What an adapter's folder says of that adapter alone."""


@dataclass(frozen=True, kw_only=True)
class MergeRequest:
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
    pad_token: str | None = None
    """Token of the tokenizer to pad rows with, where its own is none that the model has an embedding for."""


def find(request: MergeRequest, scratch: Path, progress: Progress) -> init_from.Start:
    """The adapter's folder and what it says of its base; several are made one in `scratch`.

    Raises:
        ModelError: there is no adapter, or they belong to several bases. ConfigError: they cannot be made one.
    """
    starts = [_read(place) for place in request.adapter.split(",")]
    return starts[0] if len(starts) == 1 else _combined(request, starts, scratch, progress)


def _read(place: str) -> init_from.Start:
    """The adapter's folder and what it says of its base. A run alone means the adapter that it logged.

    Raises:
        ModelError: there is none, or a whole model.
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
    """How the base was held in training, as a configuration.

    Raises:
        ConfigError: in a way that is not known here.
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
        raise ConfigError(f"the adapter was trained beside a base in {kind}", hint="only nf4 and int8 are known here")
    return "nf4"


def base_of(request: MergeRequest, config: Config, start: init_from.Start, progress: Progress) -> BaseModel:
    base = start.base or {}
    found = init_from.base_of(config, start, progress, option="--base")
    recorded = str(base.get("revision") or "")
    if recorded and not recorded.startswith("sha256:") and not found.revision.startswith("sha256:"):
        if recorded != found.revision:
            raise ModelError(
                f"the adapter {start.uri} was trained on {base.get('name_or_path')} at {recorded}, and --base is "
                f"{found.name} at {found.revision}",
                hint="leave --base out, and the recorded revision is fetched",
            )
    elif request.base and not recorded.startswith("sha256:"):
        progress.warn(f"the adapter does not record its base's weights: that {found.name} is its base is on your word")
    grown = start.folder if base.get("tokens") else None
    return replace(found, task=base.get("task") or "generate", start=grown)


def _combined(
    request: MergeRequest, found: Sequence[init_from.Start], folder: Path, progress: Progress
) -> init_from.Start:
    """Several adapters of one base as one.

    Raises:
        ConfigError: one of them cannot be combined, or the settings do not fit. ModelError: they are of several bases.
    """
    from mlflow_ft.engine.merging import combine

    bases = {_same_base(one.base or {}) for one in found}
    if len(bases) > 1:
        told = "; ".join(f"{one.uri}: {(one.base or {}).get('name_or_path')}" for one in found)
        raise ModelError(f"the adapters belong to different bases: {told}")
    if not request.weights:
        raise ConfigError(f"{len(found)} adapters and no weights", hint="--weights 0.5,0.5; 1,1 adds them up")
    how = combine.How(method=request.combination, weights=request.weights, rank=request.rank, density=request.density)
    combine.check([one.folder for one in found], how)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        folders = [_fitting(request, one, Path(scratch, str(place)), progress) for place, one in enumerate(found)]
        lost = combine.combine(folders, how, folder)
    if lost:
        progress.say(
            f"of a layer's combined update at most {lost:.1%} (Frobenius norm) is beyond the rank, and is lost"
        )
    for file in found[0].folder.iterdir():
        if file.is_file() and file.name not in (*FILES, *OF_ONE):
            shutil.copyfile(file, folder / file.name)
    return init_from.Start(uri=" + ".join(one.uri for one in found), folder=folder, base=found[0].base)


def _fitting(request: MergeRequest, start: init_from.Start, folder: Path, progress: Progress) -> Path:
    """The adapter's folder, or a copy in `folder` with the names that its base has for the weights.

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

"""An adapter and its base, from wherever they are, to a folder with the merged model."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from mlflow_ft.config.methods import AdapterSection
from mlflow_ft.config.schema import Config, ModelSection, PackageSection
from mlflow_ft.errors import ConfigError, FineTuneError, ModelError, ResourceError
from mlflow_ft.job import BaseModel
from mlflow_ft.progress import Progress
from mlflow_ft.stages import init_from, whole

Into = Literal["dequantised", "original"]
Quantize = Literal["none", "nf4", "int8"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
FORMAT = 1
"""Goes into the fingerprint: a merge of another version of this code is another merge."""
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is to be merged, and where to."""

    adapter: str
    """A folder, `runs:/RUN_ID`, `models:/NAME@alias`, `models:/m-...`."""
    out: Path
    base: str | None = None
    """The base; the one that the adapter names when not given."""
    dtype: Dtype = "auto"
    """Type of the merged weights; auto is that of the base's files."""
    into: Into = "dequantised"
    """Of an adapter that was trained beside a quantised base: what that base stood for, or its original weights."""
    quantize: Quantize | None = None
    """How the base was held in training, where the adapter's own record does not say it."""
    shard: int = 5 * 10**9
    """Bytes of a file, at most."""


@dataclass(frozen=True, kw_only=True)
class Merged:
    """The folder, and how it came to be."""

    folder: Path
    already: bool
    """It was there, from the same merge."""
    record: Mapping[str, Any]


def merge(asked: Asked, progress: Progress) -> Merged:
    """Merge, and leave a whole folder or none.

    Raises:
        ConfigError: the folder is taken. ModelError: no adapter, no base, or one that does not belong to the other.
        RefusedError: the merged weights are not finite. ResourceError: the disk is too small.
    """
    _check(asked)
    out = asked.out.expanduser().absolute()
    start = find_adapter(asked.adapter)
    config = config_of(asked, start)
    base = _base(asked, config, start, progress)
    facts = _facts(asked, config, start, base)
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    if record := whole.finished(out, key):
        forget(whole.place(out, key))
        return Merged(folder=out, already=True, record=record)
    progress.say(f"merge {start.uri} into {base.name} ({base.origin})")
    with whole.writing(out, key) as folder:
        record = facts | {whole.KEY: key} | _write(asked, config, start, base, folder, progress)
        whole.write_record(folder, record)
        _seal(folder)
    forget(folder)
    return Merged(folder=out, already=False, record=record)


def _check(asked: Asked) -> None:
    if not asked.adapter:
        raise ConfigError("no adapter was named", hint="--adapter FOLDER, runs:/RUN_ID or models:/NAME@alias")
    for name, known in (("into", Into), ("quantize", Quantize), ("dtype", Dtype)):
        value = getattr(asked, name)
        if value is not None and value not in get_args(known):
            raise ConfigError(f"--{name} {value!r} is none of {', '.join(get_args(known))}")


def find_adapter(asked: str) -> init_from.Start:
    """The adapter's folder and what it says of its base. A run alone means the adapter that it logged.

    Raises:
        ModelError: there is none, or a whole model.
    """
    uri = f"{asked.rstrip('/')}/adapter" if re.fullmatch(r"runs:/[^/]+/?", asked) else asked
    start = init_from.read(uri, setting="--adapter")
    if start.base is None:
        raise ModelError(f"{asked} is a whole model; there is nothing to merge", hint="name the adapter")
    missing = [name for name in ADAPTER_FILES if not (start.folder / name).is_file()]
    if missing:
        raise ModelError(
            f"the adapter in {start.folder} has no {', '.join(missing)}", hint="only safetensors are read, no pickles"
        )
    return start


def config_of(asked: Asked, start: init_from.Start) -> Config:
    """How the base was held in training, as a configuration.

    Raises:
        ConfigError: in a way that is not known here.
    """
    base = start.base or {}
    quantization = base.get("quantization") or {}
    quantize = asked.quantize or _quantize(quantization)
    settings: dict[str, Any] = {"quantize": quantize, "dtype": base.get("dtype") or "auto"}
    if quantize == "nf4":
        settings["double_quant"] = bool(quantization.get("bnb_4bit_use_double_quant", True))
    origins = {}
    if asked.base:
        settings["name"], origins["model.name"] = asked.base, "--base"
    return Config(
        method="merge",
        model=ModelSection(**settings),
        adapter=AdapterSection(kind=str(base.get("kind") or "lora")),
        package=PackageSection(dtype=asked.dtype),
        origins=origins,
    )


def _quantize(quantization: Mapping[str, Any]) -> str:
    if quantization.get("load_in_8bit"):
        return "int8"
    if not quantization.get("load_in_4bit"):
        return "none"
    kind = quantization.get("bnb_4bit_quant_type")
    if kind != "nf4":
        raise ConfigError(f"the adapter was trained beside a base in {kind}", hint="only nf4 and int8 are known here")
    return "nf4"


def _base(asked: Asked, config: Config, start: init_from.Start, progress: Progress) -> BaseModel:
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
    elif asked.base and not recorded.startswith("sha256:"):
        progress.warn(f"the adapter does not record its base's weights: that {found.name} is its base is on your word")
    grown = start.folder if base.get("tokens") else None
    return replace(found, task=base.get("task") or "generate", start=grown)


def _facts(asked: Asked, config: Config, start: init_from.Start, base: BaseModel) -> dict[str, Any]:
    """What makes one merge another: two with the same facts give the same bytes."""
    adapter = {name: _sha256(start.folder / name) for name in ADAPTER_FILES}
    quantised = config.model.quantize != "none"
    return {
        "format": FORMAT,
        "adapter": {"uri": start.uri, **adapter},
        "base": {"name_or_path": base.name_or_path, "revision": base.revision},
        "quantize": config.model.quantize,
        "double_quant": config.model.double_quant if config.model.quantize == "nf4" else None,
        "into": asked.into if quantised else "original",
        "dtype": asked.dtype,
        "shard": asked.shard,
    }


def _write(
    asked: Asked, config: Config, start: init_from.Start, base: BaseModel, folder: Path, progress: Progress
) -> dict[str, Any]:
    from mlflow_ft.engine import companions, merge, models

    dtype = models.saved_dtype(config, base.path)
    needed = _bytes(base.path, dtype.itemsize)
    _check_space(folder, needed)
    try:
        with progress.bar("merge", total=round(needed / 2**20), unit="MiB") as bar:
            report = merge.fold(
                config,
                base,
                start.folder,
                folder=folder,
                dtype=dtype,
                original=asked.into == "original",
                shard=asked.shard,
                advance=lambda size: bar.advance(size / 2**20),
            )
        companions.copy(start.folder, base.path, folder, generates=base.task != "score")
    except FineTuneError:
        shutil.rmtree(folder, ignore_errors=True)  # what is wrong stays wrong: nothing to go on with
        forget(folder)
        raise
    if report["way"] == "peft":
        progress.warn(f"the whole model was in memory: {report['reason']}")
    if names := report.get("untied"):
        progress.say(f"{', '.join(names)} now has weights of its own: the adapter has changed one of two tied layers")
    return {"dtype": str(dtype).removeprefix("torch."), **report}


def _bytes(base: Path, itemsize: int) -> int:
    from mlflow_ft.engine.tensor_files import ModelFiles

    entries = ModelFiles(base).entries.values()
    return sum(entry.size // entry.dtype.itemsize * itemsize for entry in entries)


def _check_space(folder: Path, needed: int) -> None:
    there = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    free = shutil.disk_usage(folder).free + there
    if free < needed:
        raise ResourceError(
            f"the merged model needs {needed / 2**30:.1f} GiB in {folder.parent}, and {free / 2**30:.1f} GiB are free",
            hint="free some space, or choose another place with --out",
        )


def _seal(folder: Path) -> None:
    from mlflow_ft.tracking import write_manifest

    write_manifest(folder)


def forget(folder: Path) -> None:
    """Remove what was kept for a merge that is stopped to go on."""
    from mlflow_ft.engine import journal_files

    journal_files.clear(folder)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()

"""Merge an adapter and its base, wherever they are, into a folder with the merged model."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from mlflow_ft.config.schema import Config
from mlflow_ft.errors import ConfigError, FineTuneError, ResourceError, StoppedError
from mlflow_ft.hashes import file_hash
from mlflow_ft.operations import whole_folder
from mlflow_ft.operations.merging import adapters, merge_loss
from mlflow_ft.operations.merging.adapters import Dtype, Into, MergeRequest, Quantize
from mlflow_ft.progress import Progress
from mlflow_ft.stages import init_from
from mlflow_ft.values import BaseModel

__all__ = ["MergeRequest", "Merged", "merge"]

FORMAT = 2
"""Part of the fingerprint: another version of this code gives another merge."""


@dataclass(frozen=True, kw_only=True)
class Merged:
    """The folder and the record of the merge."""

    folder: Path
    already: bool
    """Whether it was there already, from the same merge."""
    record: Mapping[str, Any]


def merge(request: MergeRequest, progress: Progress) -> Merged:
    """Merge; the result is a complete folder or none.

    Raises:
        ConfigError: the folder has other content. ModelError: no adapter or no base, or they do not belong together.
        RefusedError: the merged weights are not finite. ResourceError: the disk is too small.
    """
    _check(request)
    with tempfile.TemporaryDirectory(prefix="mlflow-ft-merge-") as scratch:
        start = adapters.find(request, Path(scratch), progress)
        return _merged(request, start, progress)


def _merged(request: MergeRequest, start: init_from.Start, progress: Progress) -> Merged:
    from mlflow_ft.engine.models import added_tokens, generation

    out = request.out.expanduser().absolute()
    config = adapters.config_of(request, start)
    base = adapters.base_of(request, config, start, progress)
    config = _as_stored(request, config, base)
    added_tokens.check(start.folder, base, pads=request.pad_token is None)
    facts = _facts(request, config, start, base)
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    if record := whole_folder.finished(out, key):
        forget(whole_folder.place(out, key))
        return Merged(folder=out, already=True, record=record)
    progress.say(f"merge {start.uri} into {base.name} ({base.origin})")
    for place in (base.path, start.folder):
        if text := generation.description(generation.read(place), place):
            progress.warn(text)
    with whole_folder.writing(out, key) as folder:
        record = facts | {whole_folder.KEY: key} | _write(request, config, start, base, folder, progress)
        whole_folder.write_record(folder, record)
        _seal(folder)
    forget(folder)
    return Merged(folder=out, already=False, record=record)


def _as_stored(request: MergeRequest, config: Config, base: BaseModel) -> Config:
    """The configuration with the quantisation of the base's own files, if they are quantised.

    Raises:
        ConfigError: `--quantize` differs. ModelError: their format is not supported.
    """
    from mlflow_ft.engine.models import own_quantization

    own = own_quantization.of(base.path)
    if own is None:
        return config
    own_quantization.check(own)
    held = own.held or "none"
    if request.quantize not in (None, held):
        raise ConfigError(
            f"--quantize is {request.quantize}, but the base's own files are in {own.description}",
            hint="leave out --quantize (the files decide), or name the adapter's own base with --base",
        )
    settings = {"quantize": held} | ({"double_quant": own.double} if held == "nf4" else {})
    return config.model_copy(update={"model": config.model.model_copy(update=settings)})


def _check(request: MergeRequest) -> None:
    if not request.adapter:
        raise ConfigError("no adapter was named", hint="--adapter FOLDER, runs:/RUN_ID or models:/NAME@alias")
    for name, known in (("into", Into), ("quantize", Quantize), ("dtype", Dtype)):
        value = getattr(request, name)
        if value is not None and value not in get_args(known):
            raise ConfigError(f"--{name} {value!r} is not one of {', '.join(get_args(known))}")


def trained(request: MergeRequest, scratch: Path, progress: Progress) -> Any:
    """The adapter on its base as it was trained, in memory."""
    from mlflow_ft.engine.models import loading

    start = adapters.find(request, scratch, progress)
    config = adapters.config_of(request, start)
    return loading.load_saved(
        config, adapters.base_of(request, config, start, progress), start.folder, say=progress.say
    )


def _facts(request: MergeRequest, config: Config, start: init_from.Start, base: BaseModel) -> dict[str, Any]:
    """What identifies a merge: two merges with the same facts give the same bytes."""
    adapter = {name: file_hash(start.folder / name) for name in adapters.FILES}
    return {
        "format": FORMAT,
        "adapter": {"uri": start.uri, **adapter},
        "base": {"name_or_path": base.name_or_path, "revision": base.revision},
        "quantize": config.model.quantize,
        "double_quant": config.model.double_quant if config.model.quantize == "nf4" else None,
        "into": _into(request, config, base),
        "dtype": request.dtype,
        "shard": request.shard,
    } | ({"pad_token": request.pad_token} if request.pad_token else {})


def _into(request: MergeRequest, config: Config, base: BaseModel) -> str:
    from mlflow_ft.engine.models import own_quantization

    own = own_quantization.of(base.path)
    quantised = own.held is not None if own else config.model.quantize != "none"
    return request.into if quantised else "original"


def _write(
    request: MergeRequest, config: Config, start: init_from.Start, base: BaseModel, folder: Path, progress: Progress
) -> dict[str, Any]:
    from mlflow_ft.engine.merging import companions, fold
    from mlflow_ft.engine.models import loading, text_part

    parts = text_part.of(base.path, task=base.task)
    if parts and parts.text_alone:
        progress.say(parts.merged(base.name))
    dtype = loading.saved_dtype(config, base.path)
    needed = _bytes(base.path, dtype.itemsize)
    _check_space(folder, needed)
    try:
        with progress.bar("merge", total=round(needed / 2**20), unit="MiB") as bar:
            report = fold.fold(
                config,
                base,
                start.folder,
                folder=folder,
                dtype=dtype,
                original=request.into == "original",
                shard=request.shard,
                advance=lambda size: bar.advance(size / 2**20),
            )
        companions.copy(start.folder, base.path, folder, generates=base.task != "score")
        if request.pad_token:
            companions.pad_with(request.pad_token, folder)
        if request.data:
            into = _into(request, config, base)
            report["loss"] = merge_loss.measure(
                request.data, config, base, start.folder, merged=folder, into=into, progress=progress
            )
    except StoppedError:
        raise  # the same command continues from what is written
    except FineTuneError:
        shutil.rmtree(folder, ignore_errors=True)  # a repeated merge would fail again: nothing to continue from
        forget(folder)
        raise
    for note in report["notes"]:
        progress.say(note)
    if report["way"] == "peft":
        progress.warn(f"the whole model was loaded into memory: {report['reason']}")
    if names := report.get("untied"):
        progress.say(f"{', '.join(names)} is no longer tied: the adapter changed one of two tied layers")
    part = {"text_part_of": parts.whole} if parts and parts.text_alone else {}
    return {"dtype": str(dtype).removeprefix("torch."), **part, **report}


def _bytes(base: Path, itemsize: int) -> int:
    from mlflow_ft.engine.merging import bnb_files

    entries = bnb_files.of(base).entries.values()
    return sum(entry.size // entry.dtype.itemsize * itemsize for entry in entries)


def _check_space(folder: Path, needed: int) -> None:
    written = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    free = shutil.disk_usage(folder).free + written
    if free < needed:
        raise ResourceError(
            f"the merged model needs {needed / 2**30:.1f} GiB in {folder.parent}, and {free / 2**30:.1f} GiB are free",
            hint="free some space, or set another --out",
        )


def _seal(folder: Path) -> None:
    from mlflow_ft.tracking import write_manifest

    write_manifest(folder)


def forget(folder: Path) -> None:
    """Remove the files that let an interrupted merge continue."""
    from mlflow_ft.engine.merging import journal_files

    journal_files.clear(folder)

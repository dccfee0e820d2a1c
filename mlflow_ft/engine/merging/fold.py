"""Merge an adapter into the weights it was trained on, and write them without quantisation.

An adapter trained on a quantised base also corrects the base's rounding errors. So it is merged into the *dequantised*
base; merging in place rounds the update away, and merging into the original weights gives different outputs.

If this can be done tensor by tensor (`stream_merge`), the model is never completely in memory; otherwise PEFT merges.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from mlflow_ft.config.schema import Config
from mlflow_ft.engine import hardware
from mlflow_ft.engine.adapters import files, fitting, unmergeable
from mlflow_ft.engine.adapters.fitting import FAILURES, Say, silent
from mlflow_ft.engine.hub import quiet_transformers
from mlflow_ft.engine.merging import journal_files, stored_parts, stream_merge
from mlflow_ft.engine.merging.stream_merge import Merge, Plan
from mlflow_ft.engine.models import older_names, own_quantization, skeleton
from mlflow_ft.engine.models.loading import load_base, quantization, quiet_peft, saved_dtype, with_adapter
from mlflow_ft.engine.models.skeleton import UnsuitedError
from mlflow_ft.engine.tokens import room, vocabulary
from mlflow_ft.errors import ConfigError, ModelError, brief
from mlflow_ft.values import BaseModel, Job, Trained


def merge(job: Job, trained: Trained, folder: Path, *, original: bool = False) -> None:
    """Write the merged model of a trained adapter to `folder`, without the tokenizer; see `fold`."""
    assert trained.adapter is not None
    dtype = saved_dtype(job.config, trained.base.path)
    journal_files.clear(folder)  # files of an earlier merge may be from another training
    fold(job.config, trained.base, trained.adapter, folder=folder, dtype=dtype, original=original)
    journal_files.clear(folder)


def fold(
    config: Config,
    base: BaseModel,
    adapter: Path,
    *,
    folder: Path,
    dtype: torch.dtype,
    original: bool = False,
    shard: int = stream_merge.SHARD,
    advance: Callable[[int], None] = lambda size: None,
) -> dict[str, Any]:
    """Merge `adapter` into `base` as it was in training (`config.model`), and write the weights in `dtype`.

    `original` merges into the original weights, although training used quantised ones. `shard` is the largest size of
    a file in bytes; `advance` gets the number of bytes just finished.

    Returns:
        `way` (`stream` or `peft`), `reason` (why not stream), `notes` (sentences about deviations from the adapter's
        files: a renaming), and what `stream_merge.write` returns.

    Raises:
        ModelError: the adapter does not fit the base, or cannot be merged into it. RefusedError: a merged weight is NaN
        or infinite.
    """
    try:
        plan = planned(config, base, adapter, dtype=dtype, original=original)
    except UnsuitedError as reason:
        plain = config.model_copy(update={"model": config.model.model_copy(update={"quantize": "none"})})
        notes = _whole(plain if original else config, base, adapter, folder=folder, dtype=dtype)
        return {"way": "peft", "reason": str(reason), "notes": notes}
    report = stream_merge.write(plan, folder, shard=shard, advance=advance)
    return {"way": "stream", "notes": list(plan.skeleton.notes), **report}


def planned(config: Config, base: BaseModel, adapter: Path, *, dtype: torch.dtype, original: bool = False) -> Plan:
    """The plan by which `fold` merges tensor by tensor, from names, shapes and the adapter, without the base's weights.

    Raises:
        ModelError: the adapter does not fit the base, or cannot be merged into it. UnsuitedError: PEFT must merge it,
        with the whole model in memory.
    """
    unmergeable.check_config(files.settings(adapter), where=adapter)
    held = hardware.held_dtype(config)
    own = own_quantization.of(base.path)
    if original and own and own.held:
        raise ConfigError(
            f"the base's own files are in {own.description}: there are no original weights to merge into",
            hint="omit --into: the adapter is then merged into the dequantised weights",
        )
    tokenizer = vocabulary.grown(config, base)
    wanted = Merge(
        base=base.path,
        adapter=adapter,
        dtype=dtype,
        quantiser=None if original or own else quantization(config, held),
        held=held,
        task=base.task,
        rows=room.size(tokenizer) if tokenizer else None,
    )
    return stream_merge.plan(wanted)


def with_names_of_base(config: Config, base: BaseModel, adapter: Path, folder: Path, *, say: Say = silent) -> Path:
    """The adapter's folder, or a copy in `folder` with the weights renamed to the base's names.

    Raises:
        ModelError: the adapter does not fit the base.
    """
    tokenizer = vocabulary.grown(config, base)
    rows = room.size(tokenizer) if tokenizer else None
    try:
        fit = skeleton.fit(base.path, adapter, task=base.task, rows=rows, say=say)
    except UnsuitedError:
        with quiet_peft():
            wrapped = fitting.attached(load_base(config, base), adapter)
            fit = fitting.fitted(wrapped, files.tensors(adapter), where=adapter, say=say)
    if not fit.renamed:
        return adapter
    shutil.copytree(adapter, folder)
    save_file(fit.state, folder / files.WEIGHTS, metadata={"format": "pt"})
    return folder


def _whole(config: Config, base: BaseModel, adapter: Path, *, folder: Path, dtype: torch.dtype) -> list[str]:
    """Merge with PEFT, with the whole model in memory; return notes about the adapter."""
    own = own_quantization.of(base.path)
    quantised = own.held is not None if own else config.model.quantize != "none"
    model: Any = load_base(config, base, dtype=None if quantised else torch.float32)
    if quantised:
        with quiet_transformers():
            model = model.dequantize(dtype=torch.float32).float()
        model.is_loaded_in_4bit = model.is_loaded_in_8bit = False  # PEFT checks them
        model._weight_conversions = None  # how the quantised files were read; they are not written that way
    # Merge in float32: weights are rounded to the saved type only once, at the end.
    notes: list[str] = []
    wrapped = with_adapter(model, adapter, say=notes.append)
    unmergeable.check(wrapped, where=adapter)
    try:
        merged = wrapped.merge_and_unload(safe_merge=True)
    except FAILURES as error:
        message = f"PEFT cannot merge the adapter in {adapter}: {brief(error)}"
        raise ModelError(message, hint=unmergeable.UNKNOWN) from error
    _save(merged, dtype, folder)
    return notes


def copy_model(job: Job, trained: Trained, folder: Path) -> None:
    """Write a fully tuned model to `folder`, in the type used in training unless another is set.

    The type of the base model's files may be too coarse: bfloat16 loses most of the changes of a low learning rate.
    """
    model = load_base(job.config, trained.base, path=trained.model, dtype=torch.float32)
    _save(model, saved_dtype(job.config, trained.model), folder)


def rehearse(job: Job, trained: Trained, folder: Path) -> None:
    """Plan the merge of an untrained adapter, and write the configuration of the merged model.

    Raises:
        ModelError: the adapter cannot be merged into the base.
    """
    assert trained.adapter is not None
    base, dtype = trained.base, saved_dtype(job.config, trained.base.path)
    try:
        plan = planned(job.config, base, trained.adapter, dtype=dtype)
    except UnsuitedError:  # PEFT will merge it; `unmergeable.of_model` has tried a layer of each kind
        shutil.copyfile(base.path / "config.json", folder / "config.json")
    else:
        stream_merge.write_config(plan, folder)


def rehearse_copy(job: Job, trained: Trained, folder: Path) -> None:
    """Write everything but the weights of a model that will be fully tuned; `trained.model` has no weights yet."""
    saved_dtype(job.config, trained.model)
    shutil.copytree(trained.model, folder, dirs_exist_ok=True)


def _save(model: Any, dtype: torch.dtype, folder: Path) -> None:
    model.config.use_cache = True
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    exact = stored_parts.kept_exact(model, dtype)
    for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
        if tensor.is_floating_point() and not any(part in name for part in exact):
            tensor.data = tensor.data.to(dtype)
    with quiet_transformers():
        model.save_pretrained(folder)
    older_names.add(model.config, folder)

"""Merge an adapter into its base tensor by tensor: memory for a layer and the adapter, whatever the model's size.

    plan = stream_merge.plan(Merge(base=..., adapter=..., dtype=torch.bfloat16))
    stream_merge.write(plan, folder)

Each file is written whole, brought to the disk and noted in a journal; a merge that was stopped goes on behind the
last one, until `journal_files.clear`. The result is what PEFT's `merge_and_unload(safe_merge=True)` of the model in
float32 gives, bit for bit.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BitsAndBytesConfig

from mlflow_ft.engine.adapters.fitting import FAILURES
from mlflow_ft.engine.adapters.unmergeable import UNKNOWN
from mlflow_ft.engine.merging import bnb_files, stored_parts, tensor_files
from mlflow_ft.engine.merging.journal_files import Journal
from mlflow_ft.engine.merging.rounding import Rounding
from mlflow_ft.engine.merging.tensor_files import Entry, ModelFiles
from mlflow_ft.engine.models import generation, skeleton
from mlflow_ft.engine.models.skeleton import Skeleton, UnsuitedError
from mlflow_ft.errors import ModelError, RefusedError, brief

SHARD = 5 * 10**9
"""Bytes of a file, at most."""
SAME = 1e-6
"""Largest relative difference of two merges of one tied weight that are the same: rounding in float32."""


@dataclass(frozen=True, kw_only=True)
class Merge:
    """What is to be merged."""

    base: Path
    adapter: Path
    dtype: torch.dtype
    """Of the merged weights; the merge itself is in float32."""
    quantiser: BitsAndBytesConfig | None = None
    """How the base was held in training; None: as its files are, or what they stand for where they are quantised."""
    held: torch.dtype = torch.float32
    """The type that a quantised base was loaded in."""
    task: str = "generate"
    rows: int | None = None
    """For how many tokens the embeddings must have room."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A merge that can go tensor by tensor: where each weight of the result comes from."""

    merge: Merge
    skeleton: Skeleton
    files: ModelFiles
    sources: Mapping[str, str]
    """From the name of a weight to its name in the base's files; weights that the adapter brings whole have none."""
    parts: Mapping[str, str]
    """From the name of a tensor that stays as it is, such as one expert of those that are fused, to its weight's."""
    untied: frozenset[str]
    """Weights that were one with another, and are not in the merged model."""
    entries: tuple[Entry, ...]

    @cached_property
    def rounding(self) -> Rounding | None:
        wanted = self.merge
        if wanted.quantiser is None:
            return None
        return Rounding(wanted.base, wanted.quantiser, held=wanted.held, task=wanted.task)

    def weight(self, name: str) -> Tensor:
        """A weight of the base as it was in training, in float32."""
        if name in self.skeleton.replaced:
            return self.skeleton.replaced[name]
        stored = self.files.read(self.sources[name])
        weight = self.rounding(name, stored) if self.rounding else stored
        return _grown(weight.float() if weight.is_floating_point() else weight, self.skeleton.shapes[name])

    def merged(self, name: str) -> Tensor:
        """A weight of the merged model, in its final type."""
        if name in self.parts:
            stored = self.files.read(name)
            return self._final(name, self.rounding(self.parts[name], stored) if self.rounding else stored)
        unit = self.skeleton.units.get(name)
        if unit is None:
            return self._final(name, self._untouched(name))
        mine = [one for one, its in self.skeleton.units.items() if its == unit]
        weights = {one.removeprefix(f"{unit}."): self.weight(one) for one in mine if self._has_base(one)}
        try:
            return self._final(name, self.skeleton.merged(unit, weights)[name])
        except ValueError as error:  # PEFT looks for numbers that are not finite itself
            raise RefusedError(
                f"{name} would contain NaN or infinite values: {error}", hint="check the adapter's values"
            ) from error
        except FAILURES as error:
            raise ModelError(f"PEFT cannot merge {name}: {brief(error)}", hint=UNKNOWN) from error

    def _untouched(self, name: str) -> Tensor:
        """A weight that no layer of the adapter is over; where it can be, as it lies in the file, without a copy."""
        plain = self.rounding is None and name not in self.skeleton.replaced
        if plain and self.files.entries[self.sources[name]].shape == tuple(self.skeleton.shapes[name]):
            return self.files.read(self.sources[name])
        return self.weight(name)

    def _has_base(self, name: str) -> bool:
        return name in self.sources or name in self.skeleton.replaced

    def type_of(self, name: str, dtype: torch.dtype) -> torch.dtype:
        """The final type of a weight that is of `dtype` in the base."""
        exact = stored_parts.kept_exact(self.skeleton.model, self.merge.dtype)
        kept = not dtype.is_floating_point or any(part in self.parts.get(name, name) for part in exact)
        return dtype if kept else self.merge.dtype

    def _final(self, name: str, weight: Tensor) -> Tensor:
        found = weight.to(self.type_of(name, weight.dtype))
        if found.is_floating_point() and found.numel() and not torch.stack(torch.aminmax(found)).isfinite().all():
            raise RefusedError(
                f"{name} would contain NaN or infinite values in {found.dtype}",
                hint="the adapter may be damaged; --dtype float32 rules out an overflow",
            )
        return found


def plan(wanted: Merge) -> Plan:
    """Find out where every weight of the merged model comes from. Reads names and shapes, and the adapter.

    Raises:
        UnsuitedError: PEFT must merge it, with the whole model in memory; the reason is told.
    """
    bones = skeleton.build(wanted.base, wanted.adapter, task=wanted.task, rows=wanted.rows)
    files = bnb_files.of(wanted.base, bones.model)
    parts = stored_parts.untouched(files, bones)
    sources = _sources(files, bones, wanted, parts)
    found = Plan(
        merge=wanted, skeleton=bones, files=files, sources=sources, parts=parts, untied=frozenset(), entries=()
    )
    if found.rounding and any(name in found.rounding for name in parts.values()):
        raise UnsuitedError("the base's files split a weight that was rounded as a whole")
    found = replace(found, untied=_untied(found))
    return replace(found, entries=tuple(_entries(found)))


def _sources(files: ModelFiles, bones: Skeleton, wanted: Merge, parts: Mapping[str, str]) -> dict[str, str]:
    prefix = f"{bones.model.base_model_prefix}."
    found: dict[str, str] = {}
    for stored in files.places:
        if stored in parts:
            continue
        name = next((one for one in (stored, prefix + stored) if one in bones.shapes), None)
        if name is None and not (wanted.task == "score" and stored.startswith("lm_head.")):
            raise UnsuitedError(f"the base's files contain {stored}, which has another name in the model")
        if name is not None:
            found[name] = stored
    for group in bones.tied:
        there = [name for name in sorted(group) if name in found]
        if len(there) > 1:
            raise UnsuitedError(f"the base's files contain the same weight twice: {', '.join(there)}")
        found |= {name: found[there[0]] for name in group if there}
    for name in bones.shapes:
        if name not in found and name not in bones.replaced and name not in bones.units and name not in parts.values():
            raise UnsuitedError(f"the base's files do not contain {name}")
    for name, stored_name in found.items():
        _check_shape(name, files.entries[stored_name].shape, bones.shapes[name])
    return found


def _check_shape(name: str, stored: Sequence[int], shape: Sequence[int]) -> None:
    """Rows for new tokens may be missing, and nothing else."""
    if tuple(stored[1:]) != tuple(shape[1:]) or (len(shape) > 0 and stored[0] > shape[0]):
        raise UnsuitedError(f"{name} is {tuple(stored)} in the base's files and {tuple(shape)} in the model")


def _grown(weight: Tensor, shape: Sequence[int]) -> Tensor:
    """A row for every token: new ones begin as the mean of the others, as in `vocabulary.grow`."""
    missing = shape[0] - len(weight) if weight.dim() else 0
    return torch.cat([weight, weight.mean(dim=0, keepdim=True).expand(missing, -1)]) if missing else weight


def _untied(found: Plan) -> frozenset[str]:
    """The names of tied weights that an adapter makes different: a copy of each must be in the files.

    PEFT's own merge writes the change of one into the other, which it did not have when it was trained.
    """
    names: set[str] = set()
    for group in found.skeleton.tied:
        first, *others = sorted(group, key=lambda name: (name != _stored_name(found, group), name))
        names |= {name for name in others if not _same(found, first, name)}
    return frozenset(names)


def _stored_name(found: Plan, group: frozenset[str]) -> str:
    """The name under which transformers keeps a tied weight: that of the embeddings."""
    keys = getattr(found.skeleton.model, "_tied_weights_keys", None) or {}
    return next((name for name in sorted(group) if name not in keys), min(group))


def _same(found: Plan, first: str, second: str) -> bool:
    bones = found.skeleton
    touched = [name in bones.units or name in bones.replaced for name in (first, second)]
    if not any(touched):
        return True
    one, two = found.merged(first).float(), found.merged(second).float()
    return bool((one - two).abs().max() <= SAME * one.abs().max())


def _entries(found: Plan) -> Iterator[Entry]:
    """The weights of the result, in the order in which the base's files have them."""
    bones = found.skeleton
    dropped = {name for group in bones.tied for name in group if name != _stored_name(found, group)} - found.untied
    order = {stored: number for number, stored in enumerate(found.files.places)}
    whole = (bones.shapes.keys() - dropped - set(found.parts.values())) | found.parts.keys()
    sources = {**{name: name for name in found.parts}, **found.sources}
    for name in sorted(whole, key=lambda name: (order.get(sources.get(name, ""), len(order)), name)):
        stored = found.files.entries[sources[name]].dtype if name in sources else torch.float32
        shape = found.files.entries[name].shape if name in found.parts else bones.shapes[name]
        yield Entry(name=name, shape=tuple(shape), dtype=found.type_of(name, stored))


def write(
    found: Plan, folder: Path, *, shard: int = SHARD, advance: Callable[[int], None] = lambda size: None
) -> dict[str, Any]:
    """Write the merged model's weights and configuration into `folder`, going on where an earlier merge stopped.

    `shard` is the largest size of a file, and `advance` is told of bytes that are done.

    Returns:
        `shards`, `resumed` (how many of them were there already), `bytes`, `untied` (names).
    """

    def tensor(entry: Entry) -> Tensor:
        merged = found.merged(entry.name)
        advance(entry.size)
        return merged

    folder.mkdir(parents=True, exist_ok=True)
    journal = Journal(folder)
    shared = tensor_files.shards(found.entries, limit=shard)
    resumed = 0
    for name, group in shared.items():
        if journal.has(name):
            resumed += 1
            advance(sum(entry.size for entry in group))
            continue
        tensor_files.write(folder / name, group, tensor)
        journal.add(name)
    if len(shared) > 1:
        (folder / tensor_files.INDEX).write_text(json.dumps(tensor_files.index(shared), indent=2, sort_keys=True))
    write_config(found, folder)
    return {
        "shards": len(shared),
        "resumed": resumed,
        "bytes": sum(entry.size for entry in found.entries),
        "untied": sorted(found.untied),
    }


def write_config(found: Plan, folder: Path) -> None:
    """Write how the merged model is built and how it generates: config.json, generation_config.json."""
    config = found.skeleton.model.config
    config.use_cache = True
    config.dtype = found.merge.dtype
    config.architectures = [type(found.skeleton.model).__name__]
    if found.untied:
        config.tie_word_embeddings = False
    config.save_pretrained(folder)
    generation.copy(found.merge.base, folder)

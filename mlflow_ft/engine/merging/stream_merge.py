"""Merge an adapter into its base tensor by tensor, with only a layer and the adapter in memory.

    plan = stream_merge.plan(Merge(base=..., adapter=..., dtype=torch.bfloat16))
    stream_merge.write(plan, folder)

Each finished file is flushed to disk and recorded in a journal; an interrupted merge continues after the last one,
until `journal_files.clear`. The result equals PEFT's `merge_and_unload(safe_merge=True)` of the model in float32, bit
for bit.
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

from mlflow_ft.engine import weight_files
from mlflow_ft.engine.adapters.files import is_finite
from mlflow_ft.engine.adapters.fitting import FAILURES
from mlflow_ft.engine.adapters.unmergeable import UNKNOWN
from mlflow_ft.engine.merging import bnb_files, stored_parts, tensor_files
from mlflow_ft.engine.merging.journal_files import Journal
from mlflow_ft.engine.merging.rounding import Rounding
from mlflow_ft.engine.merging.tensor_files import Entry, ModelFiles
from mlflow_ft.engine.models import generation, lacking, older_names, skeleton
from mlflow_ft.engine.models.skeleton import Skeleton, UnsuitedError
from mlflow_ft.errors import FineTuneError, ModelError, RefusedError, brief
from mlflow_ft.rows import Task

SHARD = 5 * 10**9
"""Largest size of a file in bytes."""
SAME = 1e-6
"""Largest relative difference between two merges of a tied weight that is only rounding in float32."""


@dataclass(frozen=True, kw_only=True)
class Merge:
    """What to merge, and how."""

    base: Path
    adapter: Path
    dtype: torch.dtype
    """Type of the merged weights; the merge itself is in float32."""
    quantiser: BitsAndBytesConfig | None = None
    """How the base was quantised in training; None: not, or by its own files, which are dequantised."""
    held: torch.dtype = torch.float32
    """The type in which a quantised base was loaded."""
    task: Task = "generate"
    rows: int | None = None
    """How many rows the embeddings need."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A merge tensor by tensor: where each weight of the result comes from."""

    merge: Merge
    skeleton: Skeleton
    files: ModelFiles
    sources: Mapping[str, str]
    """From the name of a weight to its name in the base's files, except weights that the adapter replaces."""
    parts: Mapping[str, str]
    """From the name of an unchanged tensor, such as one of several fused experts, to its weight's name."""
    untied: frozenset[str]
    """Weights that are tied in the base, but not in the merged model."""
    entries: tuple[Entry, ...]

    @cached_property
    def rounding(self) -> Rounding | None:
        wanted = self.merge
        if wanted.quantiser is None:
            return None
        return Rounding(wanted.base, wanted.quantiser, held=wanted.held, task=wanted.task)

    def weight(self, name: str) -> Tensor:
        """A weight of the base as in training, in float32."""
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
        members = self._members(name)
        weights = {member.removeprefix(f"{unit}."): self.weight(member) for member in members if self._has_base(member)}
        try:
            return self._final(name, self.skeleton.merged(unit, weights)[name])
        except ValueError as error:  # PEFT itself checks for NaN and infinite values
            raise self._not_finite(name, f": {error}", "check the adapter's values") from error
        except FAILURES as error:
            raise ModelError(f"PEFT cannot merge {name}: {brief(error)}", hint=UNKNOWN) from error

    def _untouched(self, name: str) -> Tensor:
        """A weight that the adapter does not change; if possible, from the file without a copy."""
        plain = self.rounding is None and name not in self.skeleton.replaced
        if plain and self.files.entries[self.sources[name]].shape == tuple(self.skeleton.shapes[name]):
            return self.files.read(self.sources[name])
        return self.weight(name)

    def _has_base(self, name: str) -> bool:
        return name in self.sources or name in self.skeleton.replaced

    def type_of(self, name: str, dtype: torch.dtype) -> torch.dtype:
        """The final type of a weight that has `dtype` in the base."""
        exact = stored_parts.kept_exact(self.skeleton.model, self.merge.dtype)
        kept = not dtype.is_floating_point or any(part in self.parts.get(name, name) for part in exact)
        return dtype if kept else self.merge.dtype

    def _final(self, name: str, weight: Tensor) -> Tensor:
        final = weight.to(self.type_of(name, weight.dtype))
        if not is_finite(final):
            overflow = "" if final.dtype is torch.float32 else "; --dtype float32 rules out an overflow"
            raise self._not_finite(name, f" in {final.dtype}", f"the adapter may be damaged{overflow}")
        return final

    def _members(self, name: str) -> list[str]:
        """The weights that are merged together with this one, itself included."""
        unit = self.skeleton.units.get(name)
        return [name] if unit is None else [member for member, owner in self.skeleton.units.items() if owner == unit]

    def _not_finite(self, name: str, how: str, hint: str) -> FineTuneError:
        """The error for a merged weight with NaN or infinite values; it blames the base if they are in its files."""
        for member in self._members(name):
            stored = member if member in self.parts else self.sources.get(member)
            if stored and not is_finite(self.files.read(stored)):
                return ModelError(
                    f"{stored} in the base's files contains NaN or infinite values",
                    hint="copy or download the base again, or use another one",
                )
        return RefusedError(f"{name} would contain NaN or infinite values{how}", hint=hint)


def plan(wanted: Merge) -> Plan:
    """Plan where every weight of the merged model comes from. Reads names and shapes, and the adapter.

    Raises:
        ModelError: the base's files lack a weight. UnsuitedError: PEFT must merge it, with the whole model in memory;
        the message says why.
    """
    bones = skeleton.build(wanted.base, wanted.adapter, task=wanted.task, rows=wanted.rows)
    files = bnb_files.of(wanted.base, bones.model)
    parts = stored_parts.untouched(files, bones)
    sources = _sources(files, bones, wanted, parts)
    draft = Plan(
        merge=wanted, skeleton=bones, files=files, sources=sources, parts=parts, untied=frozenset(), entries=()
    )
    if draft.rounding and any(name in draft.rounding for name in parts.values()):
        raise UnsuitedError("the base's files split a weight that was rounded as a whole")
    draft = replace(draft, untied=_untied(draft))
    return replace(draft, entries=tuple(_entries(draft)))


def _sources(files: ModelFiles, bones: Skeleton, wanted: Merge, parts: Mapping[str, str]) -> dict[str, str]:
    prefix = f"{bones.model.base_model_prefix}."
    sources: dict[str, str] = {}
    for stored in files.places:
        if stored in parts:
            continue
        name = next((candidate for candidate in (stored, prefix + stored) if candidate in bones.shapes), None)
        if name is None and not (wanted.task == "score" and stored.startswith("lm_head.")):
            raise UnsuitedError(f"the base's files contain {stored}, which has another name in the model")
        if name is not None:
            sources[name] = stored
    for group in bones.tied:
        present = [name for name in sorted(group) if name in sources]
        if len(present) > 1:
            raise UnsuitedError(f"the base's files contain the same weight twice: {', '.join(present)}")
        sources |= {name: sources[present[0]] for name in group if present}
    there = {*sources, *bones.replaced, *bones.stored, *parts.values()}
    if absent := [name for name in bones.shapes if name not in there]:
        lacking.check(wanted.base, str(wanted.base), task=wanted.task)
        raise UnsuitedError(f"the base's files do not contain {absent[0]}")
    for name, stored_name in sources.items():
        _check_shape(name, files.entries[stored_name].shape, bones.shapes[name])
    return sources


def _check_shape(name: str, stored: Sequence[int], shape: Sequence[int]) -> None:
    """Only rows for new tokens may be missing."""
    if tuple(stored[1:]) != tuple(shape[1:]) or (len(shape) > 0 and stored[0] > shape[0]):
        raise UnsuitedError(f"{name} is {tuple(stored)} in the base's files and {tuple(shape)} in the model")


def _grown(weight: Tensor, shape: Sequence[int]) -> Tensor:
    """Add rows for new tokens, as the mean of the others; see `vocabulary.grow`."""
    missing = shape[0] - len(weight) if weight.dim() else 0
    return torch.cat([weight, weight.mean(dim=0, keepdim=True).expand(missing, -1)]) if missing else weight


def _untied(plan: Plan) -> frozenset[str]:
    """The names of tied weights that the adapter makes different: the files need a copy of each.

    PEFT's own merge also applies the change of one to the other, which training did not.
    """
    names: set[str] = set()
    for group in plan.skeleton.tied:
        first, *others = sorted(group, key=lambda name: (name != _stored_name(plan, group), name))
        names |= {name for name in others if not _same(plan, first, name)}
    return frozenset(names)


def _stored_name(plan: Plan, group: frozenset[str]) -> str:
    """The name under which transformers saves a tied weight: that of the embeddings."""
    keys = getattr(plan.skeleton.model, "_tied_weights_keys", None) or {}
    return next((name for name in sorted(group) if name not in keys), min(group))


def _same(plan: Plan, first: str, second: str) -> bool:
    bones = plan.skeleton
    touched = [name in bones.units or name in bones.replaced for name in (first, second)]
    if not any(touched):
        return True
    first_merged, second_merged = plan.merged(first).float(), plan.merged(second).float()
    return bool((first_merged - second_merged).abs().max() <= SAME * first_merged.abs().max())


def _entries(plan: Plan) -> Iterator[Entry]:
    """The weights of the result, in the order of the base's files."""
    bones = plan.skeleton
    dropped = {name for group in bones.tied for name in group if name != _stored_name(plan, group)} - plan.untied
    order = {stored: number for number, stored in enumerate(plan.files.places)}
    names = (bones.shapes.keys() - dropped - set(plan.parts.values())) | plan.parts.keys()
    sources = {**{name: name for name in plan.parts}, **plan.sources}
    for name in sorted(names, key=lambda name: (order.get(sources.get(name, ""), len(order)), name)):
        stored = plan.files.entries[sources[name]].dtype if name in sources else torch.float32
        shape = plan.files.entries[name].shape if name in plan.parts else bones.shapes[name]
        yield Entry(name=name, shape=tuple(shape), dtype=plan.type_of(name, stored))


def write(
    plan: Plan, folder: Path, *, shard: int = SHARD, advance: Callable[[int], None] = lambda size: None
) -> dict[str, Any]:
    """Write the merged model's weights and configuration to `folder`, continuing an interrupted merge.

    `shard` is the largest size of a file in bytes; `advance` gets the number of bytes just finished.

    Returns:
        `shards`, `resumed` (how many of them already existed), `bytes`, `untied` (names).
    """

    def tensor(entry: Entry) -> Tensor:
        merged = plan.merged(entry.name)
        advance(entry.size)
        return merged

    folder.mkdir(parents=True, exist_ok=True)
    journal = Journal(folder)
    shared = tensor_files.shards(plan.entries, limit=shard)
    resumed = 0
    for name, group in shared.items():
        if journal.has(name):
            resumed += 1
            advance(sum(entry.size for entry in group))
            continue
        tensor_files.write(folder / name, group, tensor)
        journal.add(name)
    if len(shared) > 1:
        (folder / weight_files.INDEX).write_text(json.dumps(tensor_files.index(shared), indent=2, sort_keys=True))
    write_config(plan, folder)
    return {
        "shards": len(shared),
        "resumed": resumed,
        "bytes": sum(entry.size for entry in plan.entries),
        "untied": sorted(plan.untied),
    }


def write_config(plan: Plan, folder: Path) -> None:
    """Write the merged model's config.json and generation_config.json."""
    config = plan.skeleton.model.config
    config.use_cache = True
    config.dtype = plan.merge.dtype
    config.architectures = [type(plan.skeleton.model).__name__]
    if plan.untied:
        config.tie_word_embeddings = False
    config.save_pretrained(folder)
    older_names.add(config, folder)
    generation.copy(plan.merge.base, folder)

"""A checkpoint's folder: `step-000120`, complete or absent, with a manifest of sha256 hashes.

    weights.safetensors      the weights that train
    optimizer.safetensors    the optimizer's tensors
    state.safetensors        every other tensor
    state.json               everything else
    checkpoint.json          step, time and scores, for people and for choosing one
    manifest.json            sha256 and size of every file, written last

There is no pickle. A folder is written as `step-000120.partial`, synced to disk and renamed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from mlflow_ft import disk
from mlflow_ft.engine.checkpoints import tree
from mlflow_ft.errors import FineTuneError, ModelError
from mlflow_ft.manifest import verify_manifest, write_manifest

PREFIX, PARTIAL = "step-", ".partial"
OPTIMIZER = "optimizer"
OWN_FILES = ("weights", OPTIMIZER)
"""Parts whose tensors have a file of their own."""
REST = "state"
FACTS = "checkpoint.json"
Parts = Mapping[str, Any]


def name(step: int) -> str:
    """The folder's name: `step-000120`."""
    return f"{PREFIX}{step:06}"


def step_of(folder: Path) -> int:
    """The optimizer step after which the checkpoint was written."""
    return int(folder.name.removeprefix(PREFIX).removesuffix(PARTIAL))


def write(parent: Path, step: int, parts: Parts) -> Path:
    """Write the parts, each a tree, into `step-N.partial`, and return that folder; `finish` makes it a checkpoint.

    Raises:
        OSError: the disk is full or gone. TypeError: a part has a value that a checkpoint cannot hold.
    """
    partial = parent / (name(step) + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    files: dict[str, dict[str, Tensor]] = {part: {} for part in (*OWN_FILES, REST)}
    content = {}
    for part, state in parts.items():
        content[part] = tree.taken_apart(state, files[part if part in OWN_FILES else REST], part)
    for file, tensors in files.items():
        save_file(_own(tensors), partial / f"{file}.safetensors")
    (partial / f"{REST}.json").write_text(json.dumps(content), encoding="utf-8")
    return partial


def _own(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, each contiguous and in memory of its own, as safetensors needs them."""
    own, taken = {}, set()
    for key, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        shares = place in taken or tensor.untyped_storage().nbytes() != tensor.numel() * tensor.element_size()
        own[key] = tensor.clone().contiguous() if shares else tensor.contiguous()
        taken.add(place)
    return own


def finish(partial: Path, facts: Mapping[str, Any]) -> Path:
    """Write facts and manifest, wait until all is on the disk, and rename; returns the checkpoint's folder."""
    (partial / FACTS).write_text(json.dumps(dict(facts), indent=2, sort_keys=True) + "\n", encoding="utf-8")
    write_manifest(partial)
    disk.sync_folder(partial)
    target = partial.with_name(partial.name.removesuffix(PARTIAL))
    shutil.rmtree(target, ignore_errors=True)  # of an attempt that wrote this step too
    partial.rename(target)
    disk.sync(target.parent)
    return target


def facts(folder: Path) -> dict[str, Any]:
    """The facts that `finish` got."""
    content: dict[str, Any] = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    return content


def complete(parent: Path) -> list[Path]:
    """The checkpoints in a folder, the oldest first; they are not verified."""
    folders = [path for path in parent.glob(f"{PREFIX}*") if path.is_dir() and path.suffix != PARTIAL]
    return sorted(folders, key=step_of)


def latest(parent: Path, say: Callable[[str], None]) -> Path | None:
    """The last checkpoint that matches its manifest; `say` gets a sentence about each that is skipped."""
    for partial in parent.glob(f"{PREFIX}*{PARTIAL}"):
        say(f"{partial.name}: the checkpoint is half-written and is skipped")
    for folder in reversed(complete(parent)):
        try:
            verify_manifest(folder)
        except FineTuneError as error:
            problems = "; ".join(str(problem) for problem in error.problems)
            say(f"{folder.name}: the checkpoint is corrupt and is skipped: {problems or error.message}")
        else:
            return folder
    return None


def read(folder: Path, *, optimizer: bool = True) -> dict[str, Any]:
    """The parts of a checkpoint that was verified; without `optimizer`, which is larger than the weights, all others.

    Raises:
        ModelError: its files cannot be read.
    """
    try:
        content = json.loads((folder / f"{REST}.json").read_text(encoding="utf-8"))
        files = [file for file in (*OWN_FILES, REST) if optimizer or file != OPTIMIZER]
        content = {part: state for part, state in content.items() if optimizer or part != OPTIMIZER}
        tensors: dict[str, Tensor] = {}
        for file in files:
            tensors |= load_file(folder / f"{file}.safetensors")
        parts: dict[str, Any] = tree.put_together(content, tensors)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"the checkpoint {folder} cannot be read: {error}", hint="resume from another one") from error
    return parts


def remove_old(parent: Path, *, keep: int, best: int | None) -> None:
    """Remove all checkpoints but the last `keep` and the one of step `best`, and what was left half-written."""
    folders = complete(parent)
    for folder in folders[: max(0, len(folders) - keep)]:
        if step_of(folder) != best:
            shutil.rmtree(folder, ignore_errors=True)

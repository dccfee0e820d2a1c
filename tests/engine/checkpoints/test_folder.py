"""Checkpoints on disk: complete or absent, verified before they are used, and refused if anything differs."""

from __future__ import annotations

import json
import math
import random
import shutil
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mlflow_ft.config.schema import TrainingSection
from mlflow_ft.engine import generators
from mlflow_ft.engine.checkpoints import folder, keeper, tree
from mlflow_ft.engine.checkpoints.keeper import Keeper
from mlflow_ft.errors import ModelError, RefusedError
from mlflow_ft.manifest import write_manifest
from mlflow_ft.values import Job, Resume
from tests.engine.conftest import Bench, ListedRun

TREE = {
    "weights": {"a": torch.arange(6).view(2, 3), "half": torch.ones(2, dtype=torch.bfloat16)},
    "optimizer": {
        "state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(2)}},
        "groups": [{"betas": (0.9, 0.99)}],
    },
    "random": {"python": (3, (1, 2), None), "numpy": {"key": np.arange(3, dtype=np.uint32), "pos": np.int64(2)}},
    "counters": {
        "loss": math.nan,
        "best": -math.inf,
        "name": "x",
        "flag": True,
        "logs": deque([1, 2]),
        "none": None,
        "": {},
    },
}


def saved(parent: Path, step: int = 3, parts: Any = None) -> Path:
    facts = {"step": step, "eval_loss": None, "frozen_sha256": ""}
    return folder.finish(folder.write(parent, step, parts or TREE), facts)


def test_a_tree_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert tree.differences(TREE, folder.read(saved(tmp_path))) == []
    assert {file.suffix for file in (tmp_path / "step-000003").iterdir()} == {".json", ".safetensors"}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("weights/a", torch.zeros(2, 3)),
        ("counters/loss", 0.0),
        ("random/python", (3, (1, 3), None)),
        ("counters/new", 1),
    ],
)
def test_one_changed_value_is_a_difference(path: str, value: Any) -> None:
    part, _, name = path.partition("/")
    changed = TREE | {part: TREE[part] | {name: value}}
    assert any(different.startswith(f"/{path}") for different in tree.differences(TREE, changed))


def test_a_value_that_a_checkpoint_cannot_hold_is_named() -> None:
    with pytest.raises(TypeError, match="callbacks/x is a object"):
        tree.taken_apart({"callbacks": {"x": object()}}, {}, "")


def test_tensors_that_share_memory_are_written(tmp_path: Path) -> None:
    whole = torch.arange(10.0)
    parts = TREE | {"weights": {"first": whole[:5], "same": whole[:5], "columns": whole.view(2, 5).T}}
    assert tree.differences(parts, folder.read(saved(tmp_path, parts=parts))) == []


SPOILT: dict[str, Callable[[Path], Any]] = {
    "a flipped bit": lambda place: flip(place / "weights.safetensors"),
    "a file cut short": lambda place: (place / "state.json").write_text("{"),
    "a missing file": lambda place: (place / "optimizer.safetensors").unlink(),
    "no manifest": lambda place: (place / "manifest.json").unlink(),
    "half-written": lambda place: place.rename(place.with_name(place.name + ".partial")),
    "a pickle": lambda place: (place / "optimizer.pt").write_bytes(b"x"),
}


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


@pytest.mark.fault("a checkpoint that is corrupt or half-written")
@pytest.mark.parametrize("how", SPOILT)
def test_a_spoilt_checkpoint_is_skipped_for_the_one_before(tmp_path: Path, how: str) -> None:
    earlier = saved(tmp_path, 3)
    SPOILT[how](saved(tmp_path, 6))
    said: list[str] = []
    assert folder.latest(tmp_path, said.append) == earlier
    assert len(said) == 1
    assert said[0].startswith("step-000006")
    assert "skipped" in said[0]


def test_random_generators_continue_where_they_were(tmp_path: Path) -> None:
    states = folder.read(saved(tmp_path, parts={"random": generators.collect()}))["random"]
    expected = (torch.rand(3).tolist(), np.random.rand(), random.random())
    generators.restore(states)
    assert (torch.rand(3).tolist(), np.random.rand(), random.random()) == expected


# --- when they are written and which are kept


def a_keeper(
    tmp_path: Path, *, clock: Callable[[], float] = lambda: 0.0, after: int = 0, **settings: Any
) -> tuple[Keeper, ListedRun, list[str]]:
    run, said = ListedRun(), []
    training = TrainingSection(**settings)
    job = SimpleNamespace(
        config=SimpleNamespace(training=training, method="lora"),
        folder=tmp_path,
        run=run,
        progress=SimpleNamespace(warn=said.append),
        resume=Resume(checkpoint=tmp_path / folder.name(after)) if after else None,
    )
    return Keeper(cast(Job, job), clock=clock), run, said


@pytest.mark.parametrize(
    ("save_steps", "expected"), [(4, [4, 8, 10]), (0.3, [3, 6, 9, 10]), ("5min", [5, 10]), ("2.5 min", [3, 6, 9, 10])]
)
def test_the_distance_is_in_steps_shares_or_minutes(tmp_path: Path, save_steps: Any, expected: list[int]) -> None:
    now = [0.0]
    kept, _, _ = a_keeper(tmp_path, clock=lambda: now[0], save_steps=save_steps)
    steps = []
    kept.begin()
    for step in range(1, 11):
        now[0] += 60
        if kept.due(step, 10):
            steps.append(step)
            kept.save(step, {}, wait=True)
    assert steps == expected


def test_the_last_ones_and_the_best_are_kept(tmp_path: Path) -> None:
    losses = {1: 3.0, 2: 1.0, 3: 2.0, 4: math.nan, 5: 2.5}
    kept, run, _ = a_keeper(tmp_path, save_total_limit=2)
    with kept:
        for step, loss in losses.items():
            kept.save(step, {}, loss=loss, wait=True)
    assert [folder.step_of(place) for place in folder.complete(kept.parent)] == [2, 4, 5]
    assert run.uploaded == [f"step-00000{step}" for step in losses]
    again, _, _ = a_keeper(tmp_path, after=5, save_total_limit=1)
    again.save(6, {}, loss=1.5, wait=True)  # the best of the earlier process is still the best
    assert [folder.step_of(place) for place in folder.complete(kept.parent)] == [2, 6]


@pytest.mark.parametrize("how", ["cut short", "missing"])
def test_a_checkpoint_without_facts_does_not_keep_a_run_from_resuming(tmp_path: Path, how: str) -> None:
    kept, _, _ = a_keeper(tmp_path)
    for step, loss in ((1, 2.0), (2, 1.0)):
        kept.save(step, {}, loss=loss, wait=True)
    file = kept.parent / "step-000002" / folder.FACTS
    file.unlink() if how == "missing" else file.write_text("{")
    again, _, _ = a_keeper(tmp_path, after=2, save_total_limit=1)
    again.save(3, {}, loss=3.0, wait=True)
    assert [folder.step_of(place) for place in folder.complete(kept.parent)] == [1, 3]


def test_nothing_is_uploaded_if_not_wanted(tmp_path: Path) -> None:
    kept, run, _ = a_keeper(tmp_path, upload_checkpoints=False)
    kept.save(1, {}, wait=True)
    assert (run.uploaded, len(folder.complete(kept.parent))) == ([], 1)


@pytest.mark.fault("a full disk while a checkpoint is written")
@pytest.mark.parametrize("at", ["write", "finish"])
def test_a_full_disk_costs_the_checkpoint_not_the_training(
    tmp_path: Path, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, run, said = a_keeper(tmp_path)
    kept.save(1, TREE, wait=True)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(folder, at, full)
        kept.save(2, TREE, wait=True)
    assert len(said) == 1
    assert "step 2 could not be written" in said[0]
    assert "No space left" in said[0]
    kept.save(3, TREE, wait=True)
    assert [folder.step_of(place) for place in folder.complete(kept.parent)] == [1, 3]
    assert folder.latest(kept.parent, said.append) == kept.parent / "step-000003"
    assert run.uploaded == ["step-000001", "step-000003"]


# --- what differs is refused


def changed(place: Path, part: str, name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Change a tensor of a checkpoint, and its manifest with it: only the comparison can notice."""
    file = place / f"{part}.safetensors"
    tensors = load_file(file)
    key = next(key for key in tensors if name in key)
    save_file(tensors | {key: change(tensors[key])}, file)
    (place / "manifest.json").unlink()
    write_manifest(place)


@pytest.fixture
def interrupted(bench: Callable[..., Bench]) -> tuple[Bench, Path]:
    """A training of six steps and its checkpoint of step 4."""
    setup = bench("lora", max_steps=6, save_steps=2, save_total_limit=3)
    setup.train()
    shutil.rmtree(setup.job.folder / "train" / "adapter")
    return setup, keeper.place(setup.job) / "step-000004"


def again(setup: Bench, checkpoint: Path, **resume: Any) -> Bench:
    other = replace(setup, job=replace(setup.job, resume=Resume(checkpoint=checkpoint, **resume)))
    other.train()
    return other


def compared(setup: Bench) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(cast(ListedRun, setup.job.run).texts["resume/step-000004.json"])
    return content


def test_another_order_of_the_rows_is_refused(interrupted: tuple[Bench, Path]) -> None:
    setup, checkpoint = interrupted
    rows = setup.data.train.examples
    moved = replace(setup.data, train=replace(setup.data.train, encoded=setup.data.eval.encoded, examples=rows))
    with pytest.raises(RefusedError, match=r"differs from the checkpoint of step 4: .*next") as error:
        again(replace(setup, data=moved), checkpoint)
    assert "--accept-changes" in error.value.hint
    assert not compared(setup)["equal"]
    accepted = again(replace(setup, data=moved), checkpoint, accept_changes=True)
    assert (accepted.job.folder / "train" / "adapter").is_dir()


def test_other_weights_below_the_adapter_are_refused(interrupted: tuple[Bench, Path], tmp_path: Path) -> None:
    setup, checkpoint = interrupted
    other = shutil.copytree(setup.base.path, tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][0, 0] += 1e-4
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RefusedError, match=r"weights that do not train \(sha256\)"):
        again(replace(setup, base=replace(setup.base, path=other)), checkpoint)


def test_an_adapter_of_another_size_is_refused(interrupted: tuple[Bench, Path], bench: Callable[..., Bench]) -> None:
    _, checkpoint = interrupted
    with pytest.raises(ModelError, match="belongs to another model or adapter"):
        again(bench("lora", max_steps=6, **{"adapter.r": 2}), checkpoint)


def test_a_longer_training_does_not_begin_with_an_empty_optimizer(
    interrupted: tuple[Bench, Path], bench: Callable[..., Bench]
) -> None:
    setup, checkpoint = interrupted
    longer = replace(setup, job=bench("lora", max_steps=8).job)
    with pytest.raises(ModelError, match="the checkpoint of the last step has no optimizer"):
        again(longer, checkpoint.with_name("step-000006"))


def test_an_optimizer_that_lost_precision_is_noticed(
    interrupted: tuple[Bench, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an optimizer does that casts its state to the type of the weights."""
    load = torch.optim.AdamW.load_state_dict

    def rounded(self: Any, state: dict[str, Any]) -> None:
        load(self, state)
        for values in self.state.values():
            values["exp_avg"] = values["exp_avg"].bfloat16().float()

    monkeypatch.setattr(torch.optim.AdamW, "load_state_dict", rounded)
    setup, checkpoint = interrupted
    with pytest.raises(RefusedError, match=r"optimizer \(/state/0/exp_avg"):
        again(setup, checkpoint)

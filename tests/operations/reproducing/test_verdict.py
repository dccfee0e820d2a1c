"""What is said about weights, and the sentence in which a reproduction ends."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow.entities import Run, RunData, RunInfo, RunTag
from safetensors.torch import save_file

from mlflow_ft.config.schema import Config
from mlflow_ft.engine import hardware
from mlflow_ft.hashes import file_hash
from mlflow_ft.operations.changes import Change
from mlflow_ft.operations.reproducing import comparison, verdict, weights
from mlflow_ft.operations.reproducing.comparison import Rule
from mlflow_ft.operations.reproducing.original import Original
from mlflow_ft.operations.reproducing.verdict import NotReproducedError, Reproduction
from mlflow_ft.operations.reproducing.weights import ComparedWeights
from mlflow_ft.values import BaseModel, Trained

FILE = "adapter/adapter_model.safetensors"
BITS, NEAR = Rule(exact=True, tolerance=0), Rule(exact=False, tolerance=1e-3)
SAME = ComparedWeights(count=1, recorded=True)
MACHINE = Change(kind="machine", name="threads", then="4", now="8")


def trained(folder: Path, *tensors: float) -> Trained:
    (folder / "train" / "adapter").mkdir(parents=True)
    values = {f"layer.{number}": torch.tensor([0.0, value]) for number, value in enumerate(tensors)}
    save_file(values, folder / "train" / FILE)
    base = BaseModel(name="x", path=folder, name_or_path="x", revision="x", origin="x")
    return Trained(folder=folder / "train", base=base, metrics={})


def original(folder: Path, recorded: dict[str, str] | None, *, accepted: str = "", **settings: Any) -> Original:
    info = RunInfo("id", "0", "user", "FINISHED", 0, 1, "active")  # type: ignore[no-untyped-call]  # mlflow's
    tags = {"mlflow.mlflow_ft.folder": str(folder)} | ({"mlflow_ft.accepted_changes": accepted} if accepted else {})
    data = RunData(tags=[RunTag(*tag) for tag in tags.items()])  # type: ignore[no-untyped-call]  # mlflow's
    config = Config.model_validate({"method": "lora", **settings})
    now = datetime(2026, 1, 1)  # noqa: DTZ001  # templates get local time
    return Original(run=Run(info, data), config=config, moment=now, facts={}, curves={}, weights=recorded)


def reproduction(now: float, rule: Rule, weights: ComparedWeights = SAME, *changes: Change) -> Reproduction:
    return Reproduction(
        run_id="new",
        reproduces="old",
        tracking_uri="sqlite:///mlflow.db",
        url=None,
        folder="outputs/new",
        rule=rule,
        metrics=comparison.compare({"train/loss": {1: 3.0, 2: 2.0}}, {"train/loss": {1: 3.0, 2: now}}, rule),
        weights=weights,
        environment=changes,
    )


def test_equal_weights_are_known_by_their_hashes(tmp_path: Path) -> None:
    new = trained(tmp_path / "new", 1.0, 2.0)
    hashes = {FILE: file_hash(tmp_path / "new" / "train" / FILE)}
    assert weights.compare(original(tmp_path / "gone", hashes), new) == ComparedWeights(count=1, recorded=True)


def test_the_largest_difference_of_weights_that_differ(tmp_path: Path) -> None:
    before, new = trained(tmp_path / "old", 1.0, 2.0), trained(tmp_path / "new", 1.25, 1.5)
    hashes = {FILE: file_hash(before.folder / FILE)}
    result = weights.compare(original(tmp_path / "old", hashes), new)
    assert (result.differing, result.tensor, result.largest) == ((FILE,), "layer.1", 0.5)
    assert not result.identical


def test_a_file_that_is_not_the_original_s_is_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its folder was trained in again: the hash that the run recorded is another."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'none' / 'mlflow.db'}")
    trained(tmp_path / "old", 1.0)
    result = weights.compare(original(tmp_path / "old", {FILE: "other"}), trained(tmp_path / "new", 1.25))
    assert (result.differing, result.largest) == ((FILE,), None)
    other = weights.compare(original(tmp_path / "old", {"model/a.safetensors": "other"}), trained(tmp_path / "b", 1.0))
    assert other.differing == (FILE, "model/a.safetensors")


def test_weights_of_an_older_run_are_not_known(tmp_path: Path) -> None:
    result = weights.compare(original(tmp_path, None), trained(tmp_path / "new", 1.0))
    assert (result.recorded, result.identical, result.result) == (False, False, "not recorded by the original")
    assert reproduction(2.0, BITS, result).same
    assert reproduction(2.0, BITS, result).sentence.endswith("the original's weights were not recorded")


def test_weights_decide_where_everything_must_be_equal() -> None:
    changed = ComparedWeights(count=1, recorded=True, differing=(FILE,), largest=0.1)
    assert reproduction(2.0, BITS).same
    assert reproduction(2.0, BITS).identical
    assert not reproduction(2.0, BITS, changed).same
    assert f"equal, but not the weights: {FILE}" in reproduction(2.0, BITS, changed).sentence
    assert reproduction(2.0, NEAR, changed).same
    assert reproduction(2.0, NEAR, changed).sentence.startswith("equal within the tolerance: losses within 0.001")
    assert reproduction(2.0, NEAR).sentence.startswith("equal bit for bit")


def test_the_error_says_where_it_began_and_what_differs_in_the_environment() -> None:
    alike = str(NotReproducedError(reproduction(2.5, BITS)))
    assert "run old was not reproduced: train/loss differs first, at step 2: 2.0 in the original, 2.5 now" in alike
    assert "nothing differs in code, plugins, versions or machine: the training itself is not deterministic" in alike
    differs = str(NotReproducedError(reproduction(2.5, NEAR, SAME, MACHINE)))
    assert "machine threads  was 4, is 8" in differs
    assert "began as rounding" not in differs


def test_a_difference_that_grew_from_rounding_is_explained() -> None:
    then, now = {"train/loss": {1: 3.0, 2: 2.0}}, {"train/loss": {1: 3.0 + 1e-7, 2: 2.5}}
    grown = reproduction(2.5, NEAR, SAME, MACHINE)
    grown = Reproduction(**(vars(grown) | {"metrics": comparison.compare(then, now, NEAR)}))
    assert "The difference began as rounding (1e-07) and grew" in str(NotReproducedError(grown))


def test_the_rule_is_bit_for_bit_only_where_nothing_differs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = original(tmp_path, None)
    half = original(tmp_path, None, model={"dtype": "bfloat16"})
    assert verdict.rule(run, [MACHINE], tolerance=None) == Rule(exact=False, tolerance=1e-3)
    assert verdict.rule(half, [MACHINE], tolerance=None) == Rule(exact=False, tolerance=1e-2)
    assert verdict.rule(run, [MACHINE], tolerance=0).exact
    assert verdict.rule(run, [], tolerance=0.5) == Rule(exact=False, tolerance=0.5)
    monkeypatch.setattr(hardware, "device", lambda: torch.device("cpu"))
    assert verdict.rule(run, [], tolerance=None).exact
    assert not verdict.rule(original(tmp_path, None, accepted="library torch"), [], tolerance=None).exact
    monkeypatch.setattr(hardware, "device", lambda: torch.device("cuda"))
    assert not verdict.rule(run, [], tolerance=None).exact

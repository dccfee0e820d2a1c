"""A plugin that was written for an earlier release loads with today's core, trains, and is judged.

Each folder is the template as it was released, unchanged but for its name. It stays for as long as `faults.OLDEST_API`
admits the API that it was made for.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mlflow_ft import plugins
from mlflow_ft.plugins import faults
from mlflow_ft.registry import Registry
from mlflow_ft.testing import write_jsonl

RELEASES = {"template_0_1_0": 1}
"""The API that each was made for."""


@pytest.fixture(params=RELEASES)
def template(request: pytest.FixtureRequest) -> ModuleType:
    return importlib.import_module(f"tests.released.{request.param}")


def test_every_api_that_is_admitted_has_a_template() -> None:
    assert set(range(faults.OLDEST_API, faults.API + 1)) == set(RELEASES.values())


def test_it_is_active_and_complete(template: ModuleType) -> None:
    loaded = plugins.load({"MLFLOW_FT_PLUGINS": ""}, allow=[])
    added = loaded.add(template, name="released")
    assert (added.status, added.error, added.notes) == ("active", "", ())
    assert set(added.provides) == {
        "format flash-card",
        "check parrot",
        "evaluator brevity",
        "trainer gentle-lora",
        "reward terse",
        "exporter bfloat16",
        "gate brief",
    }
    assert set(added.hooks) == {"after_evaluate", "before_train", "detect_format", "on_run_error", "training_callbacks"}
    Registry(loaded)


def test_its_method_trains_on_its_format_and_its_evaluator_scores(
    template: ModuleType, tiny_model: Path, tmp_path: Path, fine_tune: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_FT_PLUGINS_ALLOW", "")  # today's template, if it is installed, has the same names
    cards = [{"front": f"{number} and 1", "back": str(number + 1), "deck": "sums"} for number in range(24)]
    file = write_jsonl(tmp_path / "cards.jsonl", cards)
    settings = {"package.exports": "[bfloat16]", "export_max_kl": 1}
    outcome = fine_tune("gentle-lora", template, model=tiny_model, data=file, **settings)
    assert outcome.versions
    assert "length_ratio" in {score.name for score in outcome.scores.tuned}

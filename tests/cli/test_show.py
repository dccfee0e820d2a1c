from __future__ import annotations

import json

import pytest

from mlflow_ft.plugins import BUILTIN, KINDS
from tests.cli.conftest import Run

IN_KIND = {
    "formats": "alpaca",
    "checks": "exact-duplicate",
    "trainers": "qlora",
    "adapters": "lora",
    "evaluators": "exact-match",
    "rewards": "exact-answer",
    "packagers": "merged",
    "exporters": "nf4",
    "gates": "beats-champion",
    "launchers": "accelerate",
    "engines": "local",
    "serving_engines": "transformers",
    "plan_rules": "few-rows",
}


def test_every_kind_is_tried() -> None:
    assert set(IN_KIND) == set(KINDS) - {"guards", "options", "commands"}  # which the core has none of


@pytest.mark.parametrize("kind", IN_KIND)
def test_show_lists_a_kind(run: Run, kind: str) -> None:
    result = run("show", kind)
    assert (result.code, result.err) == (0, "")
    [line] = [line for line in result.out.splitlines() if line.startswith(f"{IN_KIND[kind]} ")]
    assert line.endswith(f"(builtin.{kind})")


@pytest.mark.parametrize("kind", IN_KIND)
def test_show_prints_the_same_as_json(run: Run, kind: str) -> None:
    rows = json.loads(run("show", kind, "--json").out)
    shown = [line.split()[0] for line in run("show", kind).out.splitlines() if not line.startswith(" ")]
    assert [row["name"] for row in rows] == shown
    assert IN_KIND[kind] in shown
    assert all(row["summary"] and row["provider"] for row in rows)


def test_show_prints_defaults_and_paper(run: Run) -> None:
    assert "model.quantize" not in run("show", "trainers").out
    result = run("show", "trainers", "qlora").out
    assert "model.quantize = nf4" in result
    assert "https://arxiv.org/abs/2305.14314" in result
    [qlora] = [row for row in json.loads(run("show", "trainers", "--json").out) if row["name"] == "qlora"]
    assert qlora["defaults"]["model.quantize"] == "nf4"


def test_an_unknown_kind_is_wrong_input(run: Run) -> None:
    result = run("show", "trainer")
    assert (result.code, result.out) == (2, "")
    assert "Invalid value for 'KIND': 'trainer'" in result.err
    assert "'trainers'" in result.err


def test_plugins_lists_the_built_ins(run: Run) -> None:
    result = run("plugins")
    assert result.code == 0
    lines = {line.split()[0]: line.split() for line in result.out.splitlines()}
    for module in BUILTIN:
        assert lines[module.removeprefix("mlflow_ft.")][1] == "active"


def test_plugins_prints_the_same_as_json(run: Run) -> None:
    rows = json.loads(run("plugins", "--json").out)
    assert [row["name"] for row in rows] == [line.split()[0] for line in run("plugins").out.splitlines()]
    assert {row["module"] for row in rows} >= set(BUILTIN)
    assert all(len(row["sha256"]) == 64 for row in rows if row["status"] == "active")


def test_a_plugin_that_is_off_is_listed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_FT_PLUGINS", "no-such-plugin")
    result = run("plugins")
    assert result.code == 2
    assert "MLFLOW_FT_PLUGINS names no-such-plugin" in result.err

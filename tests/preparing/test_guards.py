"""Guard sets: scored before and after, kept apart from the held-out rows, and asked for by a promotion."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from mlflow_ft import plugins
from mlflow_ft.config.gates import Gates
from mlflow_ft.errors import ConfigError, DataError
from mlflow_ft.operations.promoting import rescore
from mlflow_ft.progress import Progress
from mlflow_ft.testing import write_jsonl
from mlflow_ft.tracking import Store, contenders


@pytest.fixture
def guard(tmp_path: Path) -> Path:
    """Other rows, in another format."""
    rows = [{"instruction": f"say {word}", "output": word} for word in ("red", "blue", "apple", "door", "song")]
    return write_jsonl(tmp_path / "guard.jsonl", rows)


@pytest.mark.slow
def test_a_guard_set_is_scored_before_and_after(
    fine_tune: Callable[..., Any], tiny_model: Path, tiny_rows: Path, guard: Path
) -> None:
    common = {"model": tiny_model, "data": tiny_rows, "max_steps": 4, "learning_rate": 0.01}
    plain = fine_tune("full", **common)
    outcome = fine_tune("full", **common, **{"evaluation.guards": f"words={guard}"})
    client = MlflowClient()
    run = client.get_run(outcome.run_id)
    metrics, before = run.data.metrics, client.get_run(plain.run_id).data.metrics
    assert {name: metrics[name] for name in before if name.startswith("eval/tuned/")} == {
        name: value for name, value in before.items() if name.startswith("eval/tuned/")
    }  # it changes nothing else
    assert metrics["eval/tuned/words/loss"] != metrics["eval/tuned/loss"]
    assert metrics["eval/base/words/loss"] > 0
    inputs = {
        next(tag.value for tag in dataset_input.tags if tag.key == "mlflow.data.context"): dataset_input.dataset
        for dataset_input in run.inputs.dataset_inputs
    }
    assert set(inputs) == {"train", "eval", "guard"}
    assert inputs["guard"].name == "guard.jsonl"
    rows = contenders.read(client, outcome.run_id, "eval/rows.json")
    assert rows["guards"] == {"words": inputs["guard"].digest}
    assert not [name for name in rows["scores"]["tuned"] if "/" in name]
    version = outcome.versions[0]
    model = client.get_logged_model(version.model_id)
    digests = {metric.key: metric.dataset_digest for metric in model.metrics}
    assert digests["eval/tuned/words/loss"] == inputs["guard"].digest
    assert digests["eval/tuned/loss"] == inputs["eval"].digest
    card = client.get_model_version(version.name, str(version.version)).description
    assert "guard set `words`: 5 rows" in card

    # a champion that was not scored on the guard set is, where a gate guards it
    candidate = contenders.contender(client, contenders.find_version(client, version.name, str(version.version)))
    (other,) = [candidate for candidate in plain.versions if candidate.name == version.name]
    champion = contenders.contender(client, contenders.find_version(client, other.name, str(other.version)))
    gates = Gates(beats_champion=None, max_regression={"words/loss": 0.01})
    assert rescore.needed(candidate, champion, gates)
    assert not rescore.needed(candidate, champion, Gates(beats_champion=None, max_regression={"loss": 0.01}))
    assert not rescore.needed(candidate, candidate, gates)
    pair = rescore.Pair(candidate=candidate, champion=champion, store=Store(client), champion_store=Store(client))
    scored, _ = rescore.champion(pair, plugins=plugins.load(), progress=Progress(quiet=True))
    assert scored.score("words/loss") == pytest.approx(metrics["eval/tuned/words/loss"], rel=1e-4)

    write_jsonl(guard, [{"instruction": "say it", "output": "something else"}])
    scored, note = rescore.champion(pair, plugins=plugins.load(), progress=Progress(quiet=True))
    assert "the rows of words have changed" in note
    assert scored.score("words/loss") is None


def test_a_name_that_no_metric_can_have_is_refused(
    fine_tune: Callable[..., Any], tiny_rows: Path, guard: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="'a/b' cannot be a name"):
        fine_tune("lora", model=tmp_path / "none", data=tiny_rows, **{"evaluation.guards": f"a/b={guard}"})


def test_a_guard_that_cannot_be_read_stops_before_training(
    fine_tune: Callable[..., Any], tiny_model: Path, tiny_rows: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="nowhere"):
        fine_tune("lora", model=tiny_model, data=tiny_rows, **{"evaluation.guards": f"a={tmp_path / 'nowhere.jsonl'}"})


def test_a_guard_does_not_change_the_template(
    fine_tune: Callable[..., Any], tiny_model: Path, tiny_rows: Path, tmp_path: Path
) -> None:
    call = {"type": "function", "function": {"name": "look", "arguments": {"at": "it"}}}
    turns = [{"role": "user", "content": "look"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    tools = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}]
    rows = write_jsonl(tmp_path / "tools.jsonl", [{"messages": turns, "tools": tools}] * 3)
    with pytest.raises(DataError, match="calls tools, but the training template cannot write tool calls"):
        fine_tune("lora", model=tiny_model, data=tiny_rows, **{"evaluation.guards": f"tools={rows}"})

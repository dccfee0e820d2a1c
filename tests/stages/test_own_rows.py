"""An evaluator that measures on rows of its own, sees the model, refuses settings, and says which way is better."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from mlflow import MlflowClient

from mlflow_ft import Evaluator, Score, Subject, hookimpl, plugins
from mlflow_ft.cli.asked import asked
from mlflow_ft.config.gates import Gates
from mlflow_ft.errors import ConfigError
from mlflow_ft.stages import evaluate
from mlflow_ft.testing import write_jsonl
from mlflow_ft.tracking import contenders

QUESTIONS = ("red", "green", "blue", "door", "song")
HELD_OUT = 5


def costs(subject: Subject) -> Sequence[Score]:
    """How unlikely the model finds some words, by its logits: a benchmark of five questions."""
    import torch

    assert subject.config.method == "full"
    assert not subject.model.training
    rows = []
    for word in QUESTIONS:
        ids = torch.tensor([subject.data.tokenizer(word).input_ids])
        with torch.no_grad():
            rows.append(-subject.model(ids).logits[0, -1].log_softmax(-1).max().item())
    if subject.run is not None:
        subject.run.table([{"word": word, "cost": row} for word, row in zip(QUESTIONS, rows, strict=True)], "own.json")
    mean = Score.mean("bench/cost", rows)
    return [Score(name=mean.name, value=mean.value, rows=mean.rows, lower_is_better=True, digest="d" * 32)]


def plugin(**more: Any) -> ModuleType:
    module = ModuleType("bench")

    @hookimpl
    def register_evaluators() -> list[Evaluator]:
        return [Evaluator(name="bench", summary="a benchmark", evaluate=costs, own_rows=True, **more)]

    module.register_evaluators = register_evaluators  # type: ignore[attr-defined]  # a module made here
    return module


def test_its_scores_are_kept_apart_from_the_held_out_rows(
    fine_tune: Callable[..., Any], tiny_model: Path, tiny_rows: Path, tmp_path: Path
) -> None:
    guard = write_jsonl(tmp_path / "guard.jsonl", [{"instruction": "say it", "output": "it"}] * 3)
    settings = {"evaluation.guards": f"words={guard}", "data.turns": "each", "data.test_size": HELD_OUT}
    outcome = fine_tune("full", plugin(), model=tiny_model, data=tiny_rows, learning_rate=0.01, **settings)
    client = MlflowClient()
    run = client.get_run(outcome.run_id)
    cost = run.data.metrics["eval/tuned/bench/cost"]
    assert cost != run.data.metrics["eval/base/bench/cost"]
    assert "eval/tuned/words/loss" in run.data.metrics
    assert "eval/tuned/words/bench/cost" not in run.data.metrics
    assert {file.path for file in client.list_artifacts(outcome.run_id)} >= {"own.json"}
    kept = contenders.read(client, outcome.run_id, "eval/rows.json")
    assert kept["digests"] == {"bench/cost": "d" * 32}
    assert kept["lower_is_better"] == {"bench/cost": True}
    assert len(kept["scores"]["tuned"]["bench/cost"]) == len(QUESTIONS)
    version = outcome.versions[0]
    logged = {metric.key: metric for metric in client.get_logged_model(version.model_id).metrics}
    assert logged["eval/tuned/loss"].dataset_digest
    assert not logged["eval/tuned/bench/cost"].dataset_digest
    card = client.get_model_version(version.name, str(version.version)).description
    assert "On rows of their own, not the held-out ones: `bench/cost`." in card
    assert "`bench/cost` (lower is better)" in card
    assert ("Training made `bench/cost` worse" in card) == (cost > run.data.metrics["eval/base/bench/cost"])


def test_turns_of_a_conversation_are_joined_only_on_held_out_rows() -> None:
    config: Any = asked(["full", "--model=x", "--data.turns=each"], plugins.load({}))
    score = Score(name="a", value=0.5, rows=(0.0, 1.0), digest="d")
    data: Any = None  # it is not looked at
    assert evaluate.by_conversation(score, data, config) == (0.0, 1.0)


def test_what_it_refuses_leaves_no_run(fine_tune: Callable[..., Any], tiny_model: Path, tiny_rows: Path) -> None:
    refusing = plugin(refuses=lambda config: f"it needs more than {config.evaluation.max_rows} rows; take a hundred")
    with pytest.raises(ConfigError, match="evaluator bench: it needs more than 4 rows; take a hundred"):
        fine_tune("full", refusing, model=tiny_model, data=tiny_rows)
    assert not MlflowClient().search_runs(["0"])
    fine_tune("full", refusing, model=tiny_model, data=tiny_rows, **{"evaluation.evaluators": "loss"})


@pytest.mark.parametrize(
    ("name", "said", "listed", "lower"),
    [
        ("loss", None, [], True),
        ("acc", None, [], False),
        ("acc", True, [], True),
        ("loss", False, [], False),
        ("loss", False, ["loss"], True),
        ("cost", None, ["cost"], True),
    ],
)
def test_which_way_is_better(name: str, said: bool | None, listed: list[str], lower: bool) -> None:  # noqa: FBT001  # a table
    score = Score(name=name, value=1.0, lower_is_better=said)
    assert score.is_lower(Gates(lower_is_better=listed)) is lower

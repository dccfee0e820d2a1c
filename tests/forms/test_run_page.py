"""A run's name and description in MLflow's UI: what was asked, whether it helped, what comes next."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.utils.name_utils import _generate_random_name

from mlflow_ft.config.gates import Gates
from mlflow_ft.config.schema import Config, RunSection
from mlflow_ft.errors import DataError
from mlflow_ft.forms import changes, run_page
from mlflow_ft.testing import make_rows, write_jsonl
from mlflow_ft.values import Score, Scores

FineTune = Callable[..., Any]


def config(**data: Any) -> Config:
    return Config.model_validate({"method": "qlora", "model": {"name": "HuggingFaceTB/SmolLM2-135M"}, "data": data})


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"path": "rows/train.jsonl"}, "qlora SmolLM2-135M train.jsonl"),
        ({"path": "tatsu-lab/alpaca"}, "qlora SmolLM2-135M alpaca"),
        ({"path": ["a.jsonl", "b.jsonl", "c.jsonl"]}, "qlora SmolLM2-135M a.jsonl and 2 more"),
        ({"path": {"x/a.jsonl": 0.7, "b": 0.3}}, "qlora SmolLM2-135M a.jsonl and 1 more"),
        ({}, "qlora SmolLM2-135M demo"),
        ({"path": "folder/"}, "qlora SmolLM2-135M folder"),
    ],
)
def test_a_name_says_what_it_is(data: dict[str, Any], expected: str) -> None:
    assert run_page.name(config(**data)) == expected


def test_a_long_name_is_cut() -> None:
    assert len(run_page.name(config(path="x" * 300))) == run_page.LONGEST_NAME


@pytest.mark.parametrize("name", ["trial-0", "my-exp-1", "a name", "", "amazing-gull", "amazing-gull-x"])
def test_a_name_that_somebody_chose_stays(name: str) -> None:
    assert run_page.renaming(name, config()) == {}


def test_a_name_that_mlflow_made_up_is_replaced() -> None:
    made_up = _generate_random_name()
    assert run_page.renaming(made_up, config()) == {"mlflow.runName": "qlora SmolLM2-135M demo"}
    chosen = config().model_copy(update={"run": RunSection(name=made_up)})
    assert run_page.renaming(made_up, chosen) == {}


# --- whether it helped


def of(base: list[float], tuned: list[float], name: str = "loss") -> Scores:
    return Scores(base=(Score.mean(name, base),), tuned=(Score.mean(name, tuned),), answers=())


@pytest.mark.parametrize(
    ("base", "tuned", "verdict", "change"),
    [
        (
            [3.0 + n / 10 for n in range(40)],
            [1.0 + n / 10 for n in range(40)],
            "Better than its base",
            "better by 2 (1.",
        ),
        ([3.0, 2.0] * 20, [2.0, 3.0] * 20, "Not shown to be better", "better by 0 ("),
        ([3.0, 2.0], [1.0, 1.0], "Not shown to be better", "better by 1.5, too few rows for an interval"),
        ([1.0] * 40, [3.0] * 40, "Not shown to be better", "worse by 2 ("),
        ([1.0] * 40, [1.0] * 40, "Not shown to be better", "none"),
    ],
)
def test_the_verdict_and_the_change(base: list[float], tuned: list[float], verdict: str, change: str) -> None:
    scores = of(base, tuned)
    found = changes.of(scores.base, scores.tuned, Gates())
    said = changes.verdict(("loss",), scores.base, scores.tuned, found)
    assert said is not None
    assert said.words.startswith(verdict)
    assert str(found["loss"]).startswith(change)


@pytest.mark.parametrize("tuned", [[float("nan")] * 9, [None] * 9, [1.0] * 3])
def test_scores_that_cannot_be_compared_have_no_change(tuned: Any) -> None:
    scores = of([2.0] * 9, tuned)
    found = changes.of(scores.base, scores.tuned, Gates())
    assert str(found["loss"]) == ""
    assert changes.verdict(("loss",), scores.base, scores.tuned, found) is None


def test_of_many_scores_a_description_has_the_first() -> None:
    many = tuple(Score.mean(f"a-guard-with-a-long-name-{number:03}/exact_match", [1.0]) for number in range(60))
    scores = Scores(base=many, tuned=many, answers=())
    text = run_page._table(scores, changes.of(many, many, Gates()))
    assert "name-019" in text
    assert "name-020" not in text
    assert text.endswith("and 40 scores more, in `report.html`")


# --- runs


def test_a_run_says_how_it_went(fine_tune: FineTune, tiny_model: Path, tmp_path: Path) -> None:
    rows = write_jsonl(tmp_path / "we|ird_`na*me.jsonl", make_rows(24))
    run_id = fine_tune("lora", model=tiny_model, data=rows, max_steps=2).run_id
    run = MlflowClient().get_run(run_id)
    assert run.info.run_name == "lora tiny we|ird_`na*me.jsonl"
    note = run.data.tags["mlflow.note.content"]
    first = run.data.metrics["eval/base/loss"]
    assert note.startswith(("**Not shown to be better than its base**: `loss` ", "**Better"))
    for words in (f"{first:.4g}", "`exact_match`", "`merged` is the trained model", "@candidate", "mlflow-ft promote"):
        assert words in note
    assert "will be here" not in note


def test_a_failed_run_says_why_until_it_is_continued(
    fine_tune: FineTune, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow_ft import pipeline, plugins
    from mlflow_ft.stages import evaluate

    right = evaluate.evaluate

    def fails(*_: Any) -> Any:
        raise DataError("the rows are ``` gone", hint="bring them back")

    monkeypatch.setattr(evaluate, "evaluate", fails)
    rows = write_jsonl(tmp_path / "rows.jsonl", make_rows(24))
    with pytest.raises(DataError):
        fine_tune("lora", model=tiny_model, data=rows, max_steps=2)
    client = MlflowClient()
    [run] = client.search_runs(["0"])
    client.set_tag(run.info.run_id, "mlflow.note.content", run.data.tags["mlflow.note.content"] + "\n\nmy own words")
    note = client.get_run(run.info.run_id).data.tags["mlflow.note.content"]
    assert note.startswith("**FAILED** in the stage train\n\n```\nthe rows are ''' gone\n  bring them back")
    assert "Fine-tunes" in note
    monkeypatch.setattr(evaluate, "evaluate", right)
    pipeline.resume(run.info.run_id, plugins.load({"MLFLOW_FT_PLUGINS": ""}))
    note = client.get_run(run.info.run_id).data.tags["mlflow.note.content"]
    assert "FAILED" not in note
    assert note.startswith(("**Better", "**Not shown"))
    assert note.endswith("my own words")

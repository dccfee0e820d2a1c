"""What a sweep shows: the table of its trials, what mattered, and pictures of both."""

from __future__ import annotations

from pathlib import Path

from mlflow_ft import plugins
from mlflow_ft.cli import sweeps
from mlflow_ft.cli.asked import asked
from mlflow_ft.operations.sweeping import report
from mlflow_ft.operations.sweeping.study import Study
from mlflow_ft.registry import Registry


def test_trials_importances_and_pictures(tmp_path: Path) -> None:
    loaded, words = plugins.load({"MLFLOW_FT_PLUGINS": ""}), ["lora", "--data=rows.jsonl", "--r=8", "--lora_dropout=0"]
    plan = sweeps.planned(asked(words, loaded), Registry(loaded), words, sweeps.Asked(budget="12"))
    study = Study(tmp_path / "study", "study", plan=plan)
    for number in range(12):
        trial = study.draw()
        assert trial is not None
        study.note(number, "run", f"run-{number}")
        if number == 3:
            study.note(number, "error", "no memory")
            study.tell(number, "failed")
        else:
            study.tell(number, "complete", float(trial.values["learning_rate"]))
    rows = report.rows(study)
    assert [row["state"] for row in rows] == ["complete"] * 3 + ["failed"] + ["complete"] * 8
    assert rows[3]["loss"] is None
    assert rows[3]["error"] == "no memory"
    assert not [name for name in rows[0] if "." in name], "MLflow's table looks inside the value at a dot"
    weights = report.importances(study)
    assert max(weights, key=lambda name: weights[name]) == "learning_rate"
    pictures = list(report.pictures(study, tmp_path, with_importances=True))
    assert [file.name for file in pictures] == ["parallel-coordinates.svg", "importances.svg"]
    assert all("learning_rate" in file.read_text() for file in pictures)

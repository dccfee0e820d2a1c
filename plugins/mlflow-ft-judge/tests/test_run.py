"""The judge in whole runs and promotions: scores, tables, traces, gates, and no key anywhere."""

from __future__ import annotations

import json
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow_ft_judge.engine import checking, scorers
from mlflow_ft_judge.testing import Say, fair, texts

from mlflow_ft import ConfigError, plugins
from mlflow_ft.config.gates import read_gates
from mlflow_ft.operations.promoting.decision import PromotionRequest
from mlflow_ft.operations.promoting.promote import promote
from mlflow_ft.progress import Progress
from mlflow_ft.testing import make_rows, write_jsonl

GATES = "{require: [finished], beats_champion: {metric: judge/helpfulness}, options: {judge: {model: scripted}}}"


def of(judge, **more):
    """Settings of a run that is judged by a server."""
    settings = {"endpoint": judge.url, "model": "scripted", "backoff": 0.01, "retries": 1, **more}
    return {"evaluation.evaluators": "[loss,judge]"} | {
        f"plugins.judge.{key}": value for key, value in settings.items()
    }


def longer(body):
    """A judge that likes long answers."""
    shown = texts(body)
    if "answer" in shown:
        return json.dumps({"reason": "measured", "mark": 1 + len(shown["answer"]) % 5})
    first, second = len(shown["answer A"]), len(shown["answer B"])
    return json.dumps({"reason": "measured", "winner": "A" if first > second else "B" if second > first else "tie"})


def promotion(version, gates=GATES):
    request = PromotionRequest(
        name="tiny-lora", version=str(version), by="ann", now_ms=0, gates=read_gates(gates, place="gates.yaml")
    )
    decision = promote(request, plugins=plugins.load(), progress=Progress(quiet=True))
    return {judged.name: judged.verdict for judged in decision.judged}, decision


@pytest.mark.slow
def test_runs_are_judged_and_promoted_on_it(tiny_model, tiny_rows, serve, fine_tune, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:  # MLflow keeps to the store of the first trace of a process
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")
        with mlflow.start_span("of another store"):
            pass
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    judge = serve(longer)
    settings = {"model": tiny_model, "data": tiny_rows, "api_key_env": "MY_KEY"}
    judged = of(judge, api_key_env=settings.pop("api_key_env"), price_in=1.0, traces=2)
    outcome = fine_tune("lora", **settings, **judged)

    client = MlflowClient()
    run = client.get_run(outcome.run_id)
    metrics = {name.removeprefix("eval/"): value for name, value in run.data.metrics.items() if "judge" in name}
    assert {"base/judge/helpfulness", "tuned/judge/helpfulness", "tuned/judge/win_rate"} <= set(metrics)
    assert metrics["base/judge/win_rate"] == 0.5
    assert metrics["tuned/judge/cost"] > 0
    assert run.data.params["cfg.plugins.judge.model"] == "scripted"
    rows = json.loads(Path(client.download_artifacts(outcome.run_id, "eval/rows.json")).read_text())
    assert len(rows["scores"]["tuned"]["judge/win_rate"]) == 4
    assert rows["measured_by"]["judge/helpfulness"].startswith("scripted (")
    table = json.loads(Path(client.download_artifacts(outcome.run_id, "eval/judge/tuned.json")).read_text())
    assert {"prompt", "answer", "base", "helpfulness", "helpfulness, reason", "win"} <= set(table["columns"])
    traces = mlflow.search_traces(run_id=outcome.run_id, return_type="list")
    assert len(traces) == 4
    names = {assessment.name for trace in traces for assessment in trace.info.assessments}
    assert names == {"expected_response", "helpfulness", "winner_base_as_A", "winner_tuned_as_A"}

    assert {headers["Authorization"] for headers in judge.headers} == {"Bearer sk-very-secret"}
    kept = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert not [file for file in kept if b"sk-very-secret" in file.read_bytes()]

    # the first champion, then a candidate with other held-out rows: the champion is judged again
    _, decision = promotion(1, "{require: [finished], waive: {beats-base: a test of the champion after it}}")
    assert decision.outcome == "promoted"
    other = write_jsonl(tmp_path / "other.jsonl", make_rows(60))
    fine_tune("lora", **settings | {"data": other, "learning_rate": 0.02}, **judged)
    asked = len(judge.bodies)
    verdicts, _ = promotion(2)
    assert len(judge.bodies) == asked, "without an endpoint in the environment the run's own is not asked"
    assert "no score 'judge/helpfulness'" in verdicts["beats-champion judge/helpfulness"].found
    assert "no endpoint is given" in verdicts["judge"].found
    monkeypatch.setenv("MLFLOW_FT_JUDGE_ENDPOINT", judge.url)
    verdicts, decision = promotion(2)
    assert len(judge.bodies) > asked
    assert "Bearer" not in str(judge.headers[-1])
    assert "on 4 rows" in verdicts["beats-champion judge/helpfulness"].found
    assert "on 4 pairs" in verdicts["judge"].found
    assert "it was loaded and scored on them" in " ".join(decision.notes)


def test_a_judge_that_cannot_be_asked_is_found_before_training(serve):
    judge = serve()
    checking.check(judge.options())
    with pytest.raises(ConfigError, match="has no model 'scriptd'") as raised:
        checking.check(judge.options(model="scriptd"))
    assert raised.value.hint == "did you mean scripted?"
    with pytest.raises(ConfigError, match="nothing listens at the endpoint"):
        checking.check(judge.options(endpoint="http://127.0.0.1:9/v1"))


def test_a_run_that_names_the_judge_without_an_endpoint_is_refused(tiny_model, tiny_rows, fine_tune):
    with pytest.raises(ConfigError, match="no endpoint is given"):
        fine_tune("lora", model=tiny_model, data=tiny_rows, **{"evaluation.evaluators": "[judge]"})


@pytest.mark.filterwarnings("ignore:Starting with pandas version 4")  # mlflow 3.17 calls `all(0)`
def test_the_judge_is_one_of_mlflows_and_its_failures_are_errors(serve, tracking_store):
    broken = [False]
    judge = serve(lambda body: Say(status=500) if broken[0] else fair(body))
    [scorer] = scorers.scorers(judge.options(retries=0))
    data = [{"inputs": {"messages": [{"role": "user", "content": "Which?"}]}, "outputs": "good good"}]
    result = mlflow.genai.evaluate(data=data, scorers=[scorer])
    assert result.metrics == {"helpfulness/mean": 3.0}
    broken[0] = True
    failed = scorer(inputs="Which?", outputs="another answer", expectations={"expected_response": "good"})
    assert failed.value is None
    assert failed.error.error_message == "500 Internal Server Error"
    completion = {"choices": [{"message": {"role": "assistant", "content": "good good"}}]}
    broken[0] = False
    assert scorer(inputs=data[0]["inputs"], outputs=completion).value == 3

"""A champion whose scores are on other rows is loaded and scored on the candidate's, by real models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from mlflow_ft import plugins
from mlflow_ft.cli.asked import asked
from mlflow_ft.errors import ConfigError
from mlflow_ft.operations.promoting import rescore
from mlflow_ft.operations.promoting.decision import PromotionRequest
from mlflow_ft.operations.promoting.promote import promote
from mlflow_ft.progress import Progress
from mlflow_ft.registry import Registry
from mlflow_ft.testing import CHATML, make_tiny_model
from mlflow_ft.tracking import Store
from mlflow_ft.tracking.contenders import contender, find_version

pytestmark = pytest.mark.slow
Run = Callable[..., Any]
QUIET = Progress(quiet=True)


def rescored(client: MlflowClient, candidate: Any, champion: Any) -> Any:
    store = Store(client)
    pair = rescore.Pair(candidate=candidate, champion=champion, store=store, champion_store=store)
    return rescore.champion(pair, plugins=plugins.load({"MLFLOW_FT_PLUGINS": ""}), progress=QUIET)


def test_scored_again_a_model_has_the_scores_that_its_run_kept(
    fine_tune: Run, tiny_model: Path, tiny_rows: Path
) -> None:
    fine_tune("lora", model=tiny_model, data=tiny_rows, learning_rate=1e-2, **{"registry.model_name": "chat"})
    client = MlflowClient()
    for name in ("chat", "chat-adapter"):
        version = contender(client, find_version(client, name, "1"))
        again, note = rescored(client, version, version)
        assert note == "the champion (version 1) had no scores on these rows: it was loaded and scored on them"
        assert again.unscored == ""
        assert again.rows.keys() == version.rows.keys() >= {"loss", "exact_match"}
        assert again.rows["loss"] == pytest.approx(version.rows["loss"], abs=1e-5)
        assert again.rows["exact_match"] == version.rows["exact_match"]
        assert again.score("loss") == pytest.approx(version.score("loss"), abs=1e-5)


def test_a_champion_on_other_rows_is_scored_on_the_candidates(
    fine_tune: Run, tiny_model: Path, tiny_rows: Path
) -> None:
    common = {"model": tiny_model, "data": tiny_rows, "registry.model_name": "chat", "learning_rate": 5e-3}
    gates = tiny_rows.with_name("gates.yaml")
    gates.write_text("max_scores: {loss: 9}\nbeats_champion: {min_rows: 10}\nbeats_base: {min_rows: 10}\n")
    common["registry.gates"] = gates
    fine_tune("full", **common, **{"data.test_size": 0.4})
    fine_tune("full", **common, max_steps=20, **{"data.test_size": 0.3})
    who = {"name": "chat", "by": "ann", "now_ms": 0}
    for version in (1, 2):
        decision = promote(PromotionRequest(version=str(version), **who), plugins=plugins.load(), progress=QUIET)
    assert decision.outcome == "promoted"
    assert decision.gates_from.startswith("gates.yaml of run ")
    assert "scores loss" in [judgement.name for judgement in decision.judged]
    assert decision.notes == ("the champion (version 1) had no scores on these rows: it was loaded and scored on them",)
    [verdict] = [judgement.verdict for judgement in decision.judged if judgement.gate == "beats-champion"]
    assert verdict.numbers["difference"] > 0.1
    assert verdict.numbers["rows"] == len(
        contender(MlflowClient(), find_version(MlflowClient(), "chat", "2")).rows["loss"]
    )


def test_rows_that_changed_since_are_not_scored_on(fine_tune: Run, tiny_model: Path, tiny_rows: Path) -> None:
    fine_tune("full", model=tiny_model, data=tiny_rows, **{"registry.model_name": "chat"})
    tiny_rows.write_text("".join(tiny_rows.read_text().splitlines(keepends=True)[:-8]))
    client = MlflowClient()
    version = contender(client, find_version(client, "chat", "1"))
    assert "have changed since it was scored" in rescored(client, version, version)[0].unscored
    tiny_rows.unlink()
    assert "could not be scored on them" in rescored(client, version, version)[1]


def test_losses_of_another_tokenizer_are_not_compared(
    fine_tune: Run, tiny_model: Path, tiny_rows: Path, tmp_path: Path
) -> None:
    other = make_tiny_model(tmp_path / "other", chat_template=CHATML.replace("\n{{", " {{"))
    common = {"data": tiny_rows, "registry.model_name": "chat"}
    fine_tune("full", model=other, **common)
    fine_tune("full", model=tiny_model, **common)
    client = MlflowClient()
    champion, candidate = (contender(client, find_version(client, "chat", number)) for number in ("1", "2"))
    assert champion.eval_digest != candidate.eval_digest
    champion_again, _ = rescored(client, candidate, champion)
    assert champion_again.unscored == ""
    assert "exact_match" in champion_again.rows
    assert "loss" not in champion_again.rows
    assert champion_again.score("loss") is None


def test_code_that_a_run_was_allowed_is_not_run_again(tiny_model: Path) -> None:
    given = ["lora", f"--model={tiny_model}", "--trust_remote_code=true", "--rollout.reward_funcs=own.py:score"]
    loaded = plugins.load({"MLFLOW_FT_PLUGINS": ""})
    config = rescore.harmless(asked(given, loaded), Registry(loaded).rewards)
    assert not config.model.trust_remote_code
    assert (config.rollout.reward_funcs, config.rollout.reward_model) == (None, None)
    for names, kept in (("exact-answer,valid-json", ["exact-answer", "valid-json"]), ("exact-answer,own.py:a", None)):
        given = ["grpo", f"--model={tiny_model}", f"--reward_funcs=[{names}]"]
        config = rescore.harmless(asked(given, loaded), Registry(loaded).rewards)
        assert config.rollout.reward_funcs == kept  # what a plugin brings here is not the run's own code
    given.append("--rollout.reward_model=models:/judge/1")
    assert rescore.harmless(asked(given, loaded), Registry(loaded).rewards).rollout.reward_model is None


def test_gates_that_cannot_be_stop_a_training_before_it_begins(
    fine_tune: Run, tiny_model: Path, tiny_rows: Path
) -> None:
    gates = tiny_rows.with_name("gates.yaml")
    for text, words in (("min_score: {loss: 1}", "did you mean min_scores"), ("names: [finnished]", "unknown gate")):
        gates.write_text(text)
        with pytest.raises(ConfigError) as error:
            fine_tune("full", model=tiny_model, data=tiny_rows, **{"registry.gates": gates})
        assert words in str(error.value)

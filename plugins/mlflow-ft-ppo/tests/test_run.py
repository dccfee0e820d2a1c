"""PPO as a user runs it: from prompts to a registered version that answers."""

from __future__ import annotations

import mlflow
import mlflow_ft_ppo
import pytest
from mlflow import MlflowClient

from mlflow_ft import ConfigError
from mlflow_ft.testing import WORDS, write_jsonl

REWARD = "def short(completions, **_):\n    return [-float(len(turns[-1]['content'])) for turns in completions]\n"


def test_contract(plugin_contract):
    plugin_contract(mlflow_ft_ppo, settings={"rollout.reward_funcs": "[exact-answer]", "max_completion_length": 8})


@pytest.fixture
def settings(tiny_model, tmp_path):
    (tmp_path / "rewards.py").write_text(REWARD)
    data = write_jsonl(
        tmp_path / "prompts.jsonl", [{"prompt": f"{first} {second}"} for first in WORDS for second in WORDS[:2]]
    )
    return {"model": tiny_model, "data": data, "max_completion_length": 8}


def test_a_run_from_prompts_to_versions_that_answer(settings, tmp_path, fine_tune):
    outcome = fine_tune("ppo", reward_funcs=f"{tmp_path / 'rewards.py'}:short", **settings)
    client = MlflowClient()
    run = client.get_run(outcome.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["cfg.rollout.num_iterations"] == "4"
    assert {"train/objective/kl", "eval/reward", "eval/tuned/reward/short"} <= set(run.data.metrics)
    assert "samples/step_000002.json" in {file.path for file in client.list_artifacts(outcome.run_id, "samples")}
    assert {version.name for version in outcome.versions} == {"tiny-ppo", "tiny-ppo-adapter"}
    model = mlflow.pyfunc.load_model("models:/tiny-ppo@candidate")
    answer = model.predict({"messages": [{"role": "user", "content": "red"}]})
    assert isinstance(answer["choices"][0]["message"]["content"], str)


def test_a_run_without_a_reward_is_refused_before_anything_is_loaded(settings, fine_tune):
    with pytest.raises(ConfigError, match="it learns from rewards, and none are given"):
        fine_tune("ppo", **settings)
    assert not MlflowClient().search_registered_models()


def test_a_setting_of_another_method_is_refused(settings, tmp_path, fine_tune):
    with pytest.raises(ConfigError, match="1 problem in the settings of objective and rollout"):
        fine_tune("ppo", reward_funcs=f"{tmp_path / 'rewards.py'}:short", loss_type="sigmoid", **settings)

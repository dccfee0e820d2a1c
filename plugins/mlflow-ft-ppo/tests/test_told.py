"""What training logs and how it ends: metrics, tables, callbacks, judges, refusals, a signal."""

from __future__ import annotations

import json
import math

import pytest
import torch
from mlflow_ft_ppo import refuses
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from mlflow_ft import Example, RefusedError
from mlflow_ft.errors import FineTuneError
from mlflow_ft.testing import WORDS

FULL = {"adapter.kind": "none"}
USUAL = (
    *("objective/kl", "objective/entropy", "objective/non_score_reward", "objective/rlhf_reward", "objective/scores"),
    *("policy/approxkl_avg", "policy/clipfrac_avg", "policy/entropy_avg", "loss/policy_avg", "loss/value_avg"),
    *("val/clipfrac_avg", "val/ratio", "val/ratio_var", "val/num_eos_tokens", "lr", "episode", "grad_norm", "loss"),
)
"""The metrics that people who know TRL's PPO look for."""


def test_the_usual_metrics_are_there_and_agree(bench):
    trial = bench(max_steps=2)
    trial.train()
    assert {f"train/{name}" for name in USUAL} <= {name for name, _, _ in trial.run.points}
    assert all(math.isfinite(value) for _, _, value in trial.run.points)
    reward, score, penalty = (
        trial.curve(f"train/objective/{name}")[1] for name in ("rlhf_reward", "scores", "non_score_reward")
    )
    assert reward == pytest.approx(score + penalty)
    assert penalty == pytest.approx(-0.05 * trial.curve("train/objective/kl")[1])
    assert trial.curve("train/episode") == [8, 16]
    assert trial.curve("train/lr") == trial.curve("train/learning_rate") == pytest.approx([1e-3, 5e-4])  # linear, to 0
    assert trial.curve("train/objective/scores") == pytest.approx(trial.curve("train/rewards/early"))


def test_an_answer_without_a_reward_is_not_learned(bench):
    rows = [
        Example(messages=({"role": "user", "content": word},), columns={"word": word})
        for word in ("red", "blue", "red", "blue", "red", "blue", "red", "blue")
    ]
    trial = bench(reward="picky", rows=rows, max_steps=1)
    trial.train()
    with pytest.raises(RefusedError, match="no reward function gave a value for any of 8 answers"):
        bench(reward="silent").train()
    assert trial.curve("train/objective/scores") == pytest.approx(trial.curve("train/rewards/picky"))


def test_a_reward_function_that_raises_is_reported(bench):
    with pytest.raises(RefusedError, match="reward function 'raising' raised KeyError: 'no such column'"):
        bench(reward="raising").train()


def test_an_infinite_loss_stops_the_training(bench):
    with pytest.raises(RefusedError, match=r"is (inf|nan) at step 1"):
        bench(reward="endless", logging_steps=100, **FULL).train()


def test_a_signal_ends_the_training_after_the_step_and_keeps_the_weights(bench):
    trial = bench(max_steps=9)
    trial.run.stop_after = 3
    trained = trial.train()
    assert 3 <= trained.metrics["train/steps"] <= 4
    assert trained.adapter


def test_answers_that_do_not_end_are_charged_for_it(bench):
    free, charged = (
        bench(max_steps=1, **{"objective.options": options}) for options in ("{}", "{missing_eos_penalty: 2}")
    )
    for trial in (free, charged):
        trial.train()
    endless = 8 - free.curve("train/val/num_eos_tokens")[0]
    assert endless > 0
    difference = free.curve("train/objective/scores")[0] - charged.curve("train/objective/scores")[0]
    assert difference == pytest.approx(2 * endless / 8)


def test_conversations_are_prompts_whose_answer_the_rewards_get(bench, tmp_path):
    (tmp_path / "asked.py").write_text(
        "seen = []\ndef answered(completions, answer, **_):\n"
        "    assert set(answer) == {'yes'}\n    return [float(len(turns[-1]['content'])) for turns in completions]\n"
    )
    turns = [({"role": "user", "content": word}, {"role": "assistant", "content": "yes"}) for word in WORDS]
    trial = bench(rows=[Example(messages=row) for row in turns], reward_funcs=f"{tmp_path / 'asked.py'}:answered")
    trial.train()
    assert len(trial.curve("train/rewards/answered")) == 2
    assert trial.curve("eval/rewards/answered")


def test_a_table_shows_the_held_out_answers_at_every_evaluation(bench):
    trial = bench(max_steps=2, eval_steps=1)
    trial.train()
    assert list(trial.run.tables) == [f"samples/step_{step:06}.json" for step in (0, 1, 2)]
    table = trial.run.tables["samples/step_000002.json"]
    assert len(table) == 4
    assert 0 <= table[0]["reward/early"] <= 1
    assert [step for name, step, _ in trial.run.points if name == "eval/reward"] == [0, 1, 2]


def test_a_reward_model_is_a_judge(bench, tiny_model, tmp_path):
    folder = tmp_path / "judge"
    settings = json.loads((tiny_model / "config.json").read_text())
    config = LlamaConfig.from_dict(settings | {"num_labels": 1, "architectures": None})
    torch.manual_seed(3)
    LlamaForSequenceClassification(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    trial = bench(reward_model=folder, reward_weights="[2, 3]")
    trial.train()
    model, function, both = (
        trial.curve(f"train/{name}") for name in ("rewards/reward_model", "rewards/early", "objective/scores")
    )
    assert both == pytest.approx([2 * second + 3 * first for first, second in zip(model, function, strict=True)])


def test_callbacks_of_plugins_are_called(bench):
    from transformers import TrainerCallback

    called = []

    class Notes(TrainerCallback):
        def on_train_begin(self, args, state, control, **_):
            called.append("begin")

        def on_step_end(self, args, state, control, **_):
            called.append(state.global_step)

        def on_log(self, args, state, control, logs=None, **_):
            called.append("log" if "loss" in logs else "evaluated")

        def on_train_end(self, args, state, control, **_):
            called.append("end")

    import types

    from mlflow_ft import hookimpl

    module = types.ModuleType("noting")
    module.training_callbacks = hookimpl(lambda job: [Notes()])
    trial = bench()
    assert trial.job.plugins.add(module, name="noting").status == "active"
    trial.train()
    assert called == ["begin", "evaluated", 1, "log", 2, "log", "evaluated", "end"]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"reward_funcs": "none"}, "none are given"),
        ({"num_generations": 3}, "not a multiple of num_generations"),
        ({"objective.options": "{gama: 1}"}, "no field 'gama'"),
    ],
)
def test_impossible_settings_are_reported_before_anything_is_loaded(bench, settings, reason):
    job = bench(**settings).job
    try:
        message = refuses(job.config, job.registry.adapters["lora"])
    except FineTuneError as error:
        message = str(error)
    assert reason in message

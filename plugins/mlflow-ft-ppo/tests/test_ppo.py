"""Whole trainings on a tiny model: it learns, begins at the reference, repeats itself, and tells what is wrong."""

from __future__ import annotations

import json
import math

import pytest
import torch
from mlflow_ft_ppo import refuses
from mlflow_ft_ppo.engine import ppo
from safetensors.torch import load_file
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


def weights(trained):
    folder = trained.adapter or trained.model
    return load_file(next(folder.glob("*.safetensors")))


def test_it_learns(bench):
    """A penny for the KL: at the usual coefficient it stops where a nat costs what it earns, far below 1."""
    settings = {"learning_rate": 5e-3, "lr_scheduler_type": "constant", "beta": 0.005}
    one = bench(max_steps=25, per_device_train_batch_size=32, eval_steps=25, **settings, **FULL)
    one.train()
    scores = one.curve("train/objective/scores")
    assert sum(scores[:3]) / 3 < 0.6
    assert sum(scores[-3:]) / 3 > 0.9
    before, after = one.curve("eval/reward")
    assert before < 0.6
    assert after > 0.9
    assert one.curve("train/val/explained_variance")[0] == pytest.approx(0, abs=1e-3)


def test_a_training_begins_at_the_reference_and_its_first_ratio_is_one(bench):
    for settings in ({}, FULL):
        one = bench(max_steps=2, num_iterations=1, **settings)
        one.train()
        assert one.curve("train/objective/kl")[0] == 0
        assert one.curve("train/val/ratio")[0] == pytest.approx(1, abs=1e-6)
        assert one.curve("train/val/ratio_var")[0] == pytest.approx(0, abs=1e-6)
        assert one.curve("train/policy/clipfrac_avg") == [0, 0]
        assert one.curve("train/objective/kl")[1] != 0


def test_the_usual_metrics_are_there_and_agree(bench):
    one = bench(max_steps=2)
    one.train()
    assert {f"train/{name}" for name in USUAL} <= {name for name, _, _ in one.run.points}
    assert all(math.isfinite(value) for _, _, value in one.run.points)
    reward, score, penalty = (
        one.curve(f"train/objective/{name}")[1] for name in ("rlhf_reward", "scores", "non_score_reward")
    )
    assert reward == pytest.approx(score + penalty)
    assert penalty == pytest.approx(-0.05 * one.curve("train/objective/kl")[1])
    assert one.curve("train/episode") == [8, 16]
    assert one.curve("train/objective/scores") == pytest.approx(one.curve("train/rewards/early"))


def test_the_same_seed_gives_the_same_weights(bench):
    first, second, other = (weights(bench(**{"run.seed": seed}).train()) for seed in (1, 1, 2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_accumulation_changes_nothing(bench):
    """8 x 1 and 2 x 4 answers are the same step: the loss is the mean over the tokens of the mini-batch."""
    found = [
        weights(bench(per_device_train_batch_size=8 // parts, gradient_accumulation_steps=parts, **FULL).train())
        for parts in (1, 4)
    ]
    largest = max((found[0][name] - found[1][name]).abs().max() for name in found[0])
    assert largest < 5e-4  # Adam's first steps are of the size of the rate, 1e-3, whatever the gradient
    mean = sum((found[0][name] - found[1][name]).abs().mean() for name in found[0]) / len(found[0])
    assert mean < 1e-5


def test_checkpointing_changes_nothing(bench):
    found = [weights(bench(gradient_checkpointing=on).train()) for on in ("false", "true")]
    for name in found[0]:
        torch.testing.assert_close(found[0][name], found[1][name], rtol=1e-4, atol=1e-5)


def test_a_strong_hold_keeps_the_policy_near_its_start(bench):
    far, near = (bench(max_steps=8, learning_rate=3e-3, beta=beta, **FULL) for beta in (0.0001, 5))
    for one in (far, near):
        one.train()
    assert abs(near.curve("train/objective/kl")[-1]) < abs(far.curve("train/objective/kl")[-1]) / 2


def test_without_beta_no_reference_is_asked(bench, monkeypatch):
    monkeypatch.setattr(ppo.reference, "of_start", None)
    one = bench(max_steps=1, beta=0)
    one.train()
    assert one.curve("train/objective/kl") == [0]


def test_the_coefficient_follows_its_target(bench):
    one = bench(max_steps=3, **{"objective.options": "{kl_target: 100, kl_horizon: 80}"})
    one.train()
    # far below the target: 20 % of a tenth of the horizon less at each step
    assert one.curve("train/objective/kl_coef") == pytest.approx([0.05, 0.049, 0.04802])


def test_an_adapter_that_is_trained_further_is_held_to_what_it_was(bench):
    first = bench(max_steps=4, learning_rate=1e-1).train()
    one = bench(start=first.adapter, num_iterations=1)
    module = one.prepare()
    trained = ppo.train(one.job, one.data, module)
    kl = one.curve("train/objective/kl")
    assert kl[0] == 0, "held to the adapter's start, not to the base"
    assert kl[1] != 0
    assert sorted(path.name for path in trained.adapter.iterdir() if path.is_dir()) == []
    saved, before = weights(trained), weights(first)
    assert set(saved) == set(before)
    assert any(not torch.equal(saved[name], before[name]) for name in saved)


@pytest.mark.parametrize(
    "settings", [{"init_lora_weights": "pissa"}, {"adapter.kind": "adalora", "max_steps": 4}, {"adapter.kind": "ia3"}]
)
def test_an_adapter_of_another_sort_is_held_to_what_it_was(bench, settings):
    one = bench(num_iterations=1, **settings)
    one.train()
    assert one.curve("train/objective/kl")[0] == 0
    assert one.curve("train/objective/kl")[-1] != 0


def test_the_value_head_is_kept_and_can_be_gone_on_from(bench):
    first = bench(**FULL).train()
    file = first.folder / "value_head.safetensors"
    assert set(load_file(file)) == {"weight", "bias"}
    assert not [name for name in weights(first) if "value" in name]
    one = bench(max_steps=1, **FULL, **{"objective.options": f"{{value_head: {file}, value_learning_rate: 1e-9}}"})
    again = load_file(one.train().folder / "value_head.safetensors")
    torch.testing.assert_close(again["weight"], load_file(file)["weight"])


def test_an_answer_of_which_no_judge_says_anything_is_not_learned_from(bench):
    rows = [
        Example(messages=({"role": "user", "content": word},), columns={"word": word})
        for word in ("red", "blue", "red", "blue", "red", "blue", "red", "blue")
    ]
    one = bench(reward="picky", rows=rows, max_steps=1)
    one.train()
    with pytest.raises(RefusedError, match="no reward says anything of any of 8 answers"):
        bench(reward="silent").train()
    assert one.curve("train/objective/scores") == pytest.approx(one.curve("train/rewards/picky"))


def test_a_reward_function_that_raises_is_told(bench):
    with pytest.raises(RefusedError, match="reward function 'raising' raised KeyError: 'no such column'"):
        bench(reward="raising").train()


def test_a_loss_that_is_no_number_stops_the_training(bench):
    with pytest.raises(RefusedError, match="is (inf|nan) at step 1"):
        bench(reward="endless", logging_steps=100, **FULL).train()


def test_a_signal_ends_the_training_behind_the_step_and_what_was_learned_is_kept(bench):
    one = bench(max_steps=9)
    one.run.stop_after = 3
    trained = one.train()
    assert 3 <= trained.metrics["train/steps"] <= 4
    assert trained.adapter


def test_answers_that_do_not_end_are_charged_for_it(bench):
    free, charged = (
        bench(max_steps=1, **{"objective.options": options}) for options in ("{}", "{missing_eos_penalty: 2}")
    )
    for one in (free, charged):
        one.train()
    endless = 8 - free.curve("train/val/num_eos_tokens")[0]
    assert endless > 0
    difference = free.curve("train/objective/scores")[0] - charged.curve("train/objective/scores")[0]
    assert difference == pytest.approx(2 * endless / 8)


def test_several_answers_to_each_prompt_and_several_mini_batches(bench):
    one = bench(max_steps=-1, num_train_epochs=1, num_generations=4, **{"objective.options": "{num_mini_batches: 2}"})
    trained = one.train()
    prompts = len(one.data.train.examples)
    assert trained.metrics["train/steps"] == math.ceil(prompts / (16 / 4))
    assert one.curve("train/episode")[-1] == 16 * trained.metrics["train/steps"]


def test_conversations_are_prompts_whose_answer_the_rewards_get(bench, tmp_path):
    (tmp_path / "asked.py").write_text(
        "seen = []\ndef answered(completions, answer, **_):\n"
        "    assert set(answer) == {'yes'}\n    return [float(len(turns[-1]['content'])) for turns in completions]\n"
    )
    turns = [({"role": "user", "content": word}, {"role": "assistant", "content": "yes"}) for word in WORDS]
    one = bench(rows=[Example(messages=row) for row in turns], reward_funcs=f"{tmp_path / 'asked.py'}:answered")
    one.train()
    assert len(one.curve("train/rewards/answered")) == 2
    assert one.curve("eval/rewards/answered")


def test_a_table_shows_the_held_out_answers_at_every_evaluation(bench):
    one = bench(max_steps=2, eval_steps=1)
    one.train()
    assert list(one.run.tables) == [f"samples/step_{step:06}.json" for step in (0, 1, 2)]
    table = one.run.tables["samples/step_000002.json"]
    assert len(table) == 4
    assert 0 <= table[0]["reward/early"] <= 1
    assert [step for name, step, _ in one.run.points if name == "eval/reward"] == [0, 1, 2]


def test_a_reward_model_is_a_judge(bench, tiny_model, tmp_path):
    folder = tmp_path / "judge"
    settings = json.loads((tiny_model / "config.json").read_text())
    config = LlamaConfig.from_dict(settings | {"num_labels": 1, "architectures": None})
    torch.manual_seed(3)
    LlamaForSequenceClassification(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    one = bench(reward_model=folder, reward_weights="[2, 3]")
    one.train()
    model, function, both = (
        one.curve(f"train/{name}") for name in ("rewards/reward_model", "rewards/early", "objective/scores")
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
    one = bench()
    assert one.job.plugins.add(module, name="noting").status == "active"
    one.train()
    assert called == ["begin", "evaluated", 1, "log", 2, "log", "evaluated", "end"]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"reward_funcs": "none"}, "none was named"),
        ({"num_generations": 3}, "no multiple of num_generations"),
        ({"objective.options": "{gama: 1}"}, "no field 'gama'"),
    ],
)
def test_what_cannot_work_is_told_before_anything_is_loaded(bench, settings, reason):
    job = bench(**settings).job
    try:
        told = refuses(job.config, job.registry.adapters["lora"])
    except FineTuneError as error:
        told = str(error)
    assert reason in told

"""Whole training runs on a tiny model: it learns, starts at the reference, and is reproducible."""

from __future__ import annotations

import math

import pytest
import torch
from mlflow_ft_ppo.engine import ppo
from safetensors.torch import load_file

FULL = {"adapter.kind": "none"}


def weights(trained):
    folder = trained.adapter or trained.model
    return load_file(next(folder.glob("*.safetensors")))


def test_it_learns(bench):
    """At the usual beta it would stop far below 1, where a nat costs as much as it earns."""
    settings = {"learning_rate": 5e-3, "lr_scheduler_type": "constant", "beta": 0.005}
    trial = bench(max_steps=25, per_device_train_batch_size=32, eval_steps=25, **settings, **FULL)
    trial.train()
    scores = trial.curve("train/objective/scores")
    assert sum(scores[:3]) / 3 < 0.6
    assert sum(scores[-3:]) / 3 > 0.9
    before, after = trial.curve("eval/reward")
    assert before < 0.6
    assert after > 0.9
    assert trial.curve("train/val/explained_variance")[0] == pytest.approx(0, abs=1e-3)


def test_the_value_head_learns_the_expected_reward(bench):
    trial = bench(
        reward="of_the_prompt",
        max_steps=15,
        per_device_train_batch_size=32,
        learning_rate=3e-3,
        lr_scheduler_type="constant",
        max_completion_length=4,
        **FULL,
        **{"objective.options": "{vf_coef: 1.0, cliprange_value: 1.0, lam: 1.0}"},
    )
    trial.train()
    explained, losses = trial.curve("train/val/explained_variance"), trial.curve("train/loss/value_avg")
    assert explained[0] == pytest.approx(0, abs=1e-3)
    assert explained[-1] > 0.8
    assert losses[-1] < losses[0] / 5


def test_a_training_begins_at_the_reference_and_its_first_ratio_is_one(bench):
    for settings in ({}, FULL):
        trial = bench(max_steps=2, num_iterations=1, **settings)
        trial.train()
        assert trial.curve("train/objective/kl")[0] == 0
        assert trial.curve("train/val/ratio")[0] == pytest.approx(1, abs=1e-6)
        assert trial.curve("train/val/ratio_var")[0] == pytest.approx(0, abs=1e-6)
        assert trial.curve("train/policy/clipfrac_avg") == [0, 0]
        assert trial.curve("train/objective/kl")[1] != 0


def test_the_first_value_loss_is_that_of_a_head_that_says_nothing(bench):
    """For a value of 0, half the square of the score, averaged over answers of the same length."""
    trial = bench(reward="of_the_prompt", max_steps=1, num_iterations=1, max_completion_length=1, beta=0)
    trial.train()
    share = trial.curve("train/objective/scores")[0]
    assert 0 < share < 1
    assert trial.curve("train/loss/value_avg")[0] == pytest.approx(0.5 * share, abs=1e-6)


def test_dropout_is_off(bench):
    """With dropout, another network than the one that sampled an answer would learn it."""
    trial = bench(max_steps=3, num_iterations=1, learning_rate=5e-2, **{"adapter.lora_dropout": 0.5})
    trial.train()
    assert trial.curve("train/objective/kl")[-1] != 0, "the adapter does something"
    assert trial.curve("train/val/ratio_var") == pytest.approx([0, 0, 0], abs=1e-6)


def test_the_same_seed_gives_the_same_weights_whatever_was_drawn_before(bench):
    trained_weights = []
    for drawn, seed in enumerate((1, 1, 2)):
        trial = bench(**{"run.seed": seed})
        model = trial.prepare()
        torch.rand(drawn)
        trained_weights.append(weights(ppo.train(trial.job, trial.data, model)))
    first, second, other = trained_weights
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_accumulation_changes_nothing(bench):
    """8 x 1 and 2 x 4 answers are the same step: the loss is the mean over the tokens of the mini-batch."""
    plain = {"optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 1e6, **FULL}  # Adam would hide a different scale
    trained_weights = [
        weights(bench(per_device_train_batch_size=8 // parts, gradient_accumulation_steps=parts, **plain).train())
        for parts in (1, 4)
    ]
    for name in trained_weights[0]:
        torch.testing.assert_close(trained_weights[0][name], trained_weights[1][name], rtol=1e-4, atol=1e-6)


def test_checkpointing_changes_nothing(bench):
    trained_weights = [weights(bench(gradient_checkpointing=on).train()) for on in ("false", "true")]
    for name in trained_weights[0]:
        torch.testing.assert_close(trained_weights[0][name], trained_weights[1][name], rtol=1e-4, atol=1e-5)


def test_a_high_beta_keeps_the_policy_near_its_start(bench):
    far, near = (bench(max_steps=8, learning_rate=3e-3, beta=beta, **FULL) for beta in (0.0001, 5))
    for trial in (far, near):
        trial.train()
    assert abs(near.curve("train/objective/kl")[-1]) < abs(far.curve("train/objective/kl")[-1]) / 2


def test_without_beta_no_reference_is_used(bench, monkeypatch):
    monkeypatch.setattr(ppo.reference, "of_start", None)
    trial = bench(max_steps=1, beta=0)
    trial.train()
    assert trial.curve("train/objective/kl") == [0]


def test_the_coefficient_follows_its_target(bench):
    trial = bench(max_steps=3, **{"objective.options": "{kl_target: 100, kl_horizon: 80}"})
    trial.train()
    # far below the target: 20 % of a tenth of the horizon less at each step
    assert trial.curve("train/objective/kl_coef") == pytest.approx([0.05, 0.049, 0.04802])


def test_the_reference_of_an_adapter_trained_further_is_its_start(bench):
    first = bench(max_steps=4, learning_rate=1e-1).train()
    trial = bench(start=first.adapter, num_iterations=1)
    module = trial.prepare()
    trained = ppo.train(trial.job, trial.data, module)
    kl = trial.curve("train/objective/kl")
    assert kl[0] == 0, "held to the adapter's start, not to the base"
    assert kl[1] != 0
    assert sorted(path.name for path in trained.adapter.iterdir() if path.is_dir()) == []
    saved, before = weights(trained), weights(first)
    assert set(saved) == set(before)
    assert any(not torch.equal(saved[name], before[name]) for name in saved)


@pytest.mark.parametrize(
    "settings", [{"init_lora_weights": "pissa"}, {"adapter.kind": "adalora", "max_steps": 4}, {"adapter.kind": "ia3"}]
)
def test_the_reference_of_other_adapters_is_their_start(bench, settings):
    trial = bench(num_iterations=1, **settings)
    trial.train()
    assert trial.curve("train/objective/kl")[0] == 0
    assert trial.curve("train/objective/kl")[-1] != 0


def test_the_value_head_is_saved_and_can_be_continued(bench):
    first = bench(**FULL).train()
    file = first.folder / "value_head.safetensors"
    assert set(load_file(file)) == {"weight", "bias"}
    assert not [name for name in weights(first) if "value" in name]
    trial = bench(max_steps=1, **FULL, **{"objective.options": f"{{value_head: {file}, value_learning_rate: 1e-9}}"})
    again = load_file(trial.train().folder / "value_head.safetensors")
    torch.testing.assert_close(again["weight"], load_file(file)["weight"])


def test_several_answers_to_each_prompt_and_several_mini_batches(bench):
    trial = bench(max_steps=-1, num_train_epochs=1, num_generations=4, **{"objective.options": "{num_mini_batches: 2}"})
    trained = trial.train()
    prompts = len(trial.data.train.examples)
    assert trained.metrics["train/steps"] == math.ceil(prompts / (16 / 4))
    assert trial.curve("train/episode")[-1] == 16 * trained.metrics["train/steps"]

"""Every formula against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow_ft_ppo.engine import objective

LN_3_2, LN_1_2 = math.log(1.5), math.log(0.5)


def near(actual, expected):
    torch.testing.assert_close(actual, torch.tensor(expected), rtol=1e-5, atol=1e-6)


def test_advantages_and_returns():
    rewards = torch.tensor([[1.0, 2.0], [3.0, 99.0]])
    values = torch.tensor([[0.5, 0.25], [1.0, 7.0]])
    mask = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    advantages, returns = objective.gae(rewards, values, mask, gamma=0.9, lam=0.5)
    # last token: 2 - 0.25; first: 1 + 0.9 x 0.25 - 0.5 = 0.725, and 0.9 x 0.5 x 1.75 = 0.7875 of the later one
    near(advantages, [[1.5125, 1.75], [2.0, 0.0]])
    near(returns, [[2.0125, 2.0], [3.0, 0.0]])


@settings(max_examples=50)
@given(
    st.lists(st.lists(st.floats(-5, 5, width=32), min_size=4, max_size=4), min_size=1, max_size=3), st.integers(1, 4)
)
def test_without_discount_the_returns_are_the_sums_of_later_rewards(rows, length):
    rewards = torch.tensor(rows)
    mask = (torch.arange(4) < length).float().expand_as(rewards)
    _, returns = objective.gae(rewards, torch.randn_like(rewards), mask, gamma=1.0, lam=1.0)
    earned = rewards * mask
    torch.testing.assert_close(returns, earned.flip(1).cumsum(1).flip(1) * mask, rtol=1e-4, atol=1e-4)


def test_a_token_earns_less_its_kl_and_the_last_one_the_score_too():
    kl = torch.tensor([[0.1, 0.2, 0.3], [0.4, 9.0, 9.0], [0.1, 0.1, 0.1]])
    mask = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    earned = objective.token_rewards(torch.tensor([2.0, -1.0, 5.0]), kl, mask, beta=0.5)
    near(earned, [[-0.05, -0.1, 1.85], [-1.2, 0.0, 0.0], [0.0, 0.0, 0.0]])


def test_kl_estimates():
    logprobs, reference = torch.tensor([-1.0, -2.0]), torch.tensor([-1.5, -1.0])
    near(objective.kl_estimate(logprobs, reference), [0.5, -1.0])
    near(objective.kl_estimate(logprobs, reference, "k3"), [math.exp(-0.5) - 0.5, math.e - 2])


def test_both_kl_estimates_are_right_on_average():
    torch.manual_seed(0)
    policy, reference = torch.randn(2, 5).log_softmax(dim=-1)
    exact = (policy.exp() * (policy - reference)).sum()
    for kind in ("k1", "k3"):
        expected = (policy.exp() * objective.kl_estimate(policy, reference, kind)).sum()
        torch.testing.assert_close(expected, exact)


@pytest.mark.parametrize(
    ("log_ratio", "advantage", "loss", "clipped"),
    [
        (LN_3_2, 1.0, -1.2, True),  # gone far enough towards a good token
        (LN_3_2, -1.0, 1.5, False),  # a bad token that became likelier is pushed back with full force
        (LN_1_2, 1.0, -0.5, False),
        (LN_1_2, -1.0, 0.8, True),
        (0.0, 2.0, -2.0, False),
    ],
)
def test_clipped_policy_loss(log_ratio, advantage, loss, clipped):
    logprobs = torch.tensor([log_ratio - 3], requires_grad=True)
    actual, decided = objective.policy_loss(logprobs, torch.tensor([-3.0]), torch.tensor([advantage]), epsilon=0.2)
    near(actual.detach(), [loss])
    assert decided.tolist() == [clipped]
    actual.sum().backward()
    near(logprobs.grad, [0.0 if clipped else loss])  # d(-A ratio) / d log ratio = -A ratio


def test_clipped_value_loss():
    values, old = torch.tensor([1.0, 1.0, 1.0]), torch.tensor([0.5, 0.9, 1.5])
    loss, decided = objective.value_loss(values, old, torch.tensor([2.0, 2.0, 2.0]), epsilon=0.2)
    # 0.5 x max(1, 1.3^2); the second did not move far; the third moved away from its return: 0.5 x max(1, 0.7^2)
    near(loss, [0.845, 0.5, 0.5])
    assert decided.tolist() == [True, False, False]


def test_approximate_kl():
    near(objective.approximate_kl(torch.tensor([-1.2, -1.0]), torch.tensor([-1.0, -1.0])), [0.02, 0.0])


def test_masked_mean_and_whitening():
    values, mask = torch.tensor([[1.0, 2.0], [3.0, 100.0]]), torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    near(objective.masked_mean(values, mask), 2.0)
    near(objective.masked_whiten(values, mask), [[-1.0, 0.0], [1.0, 0.0]])
    near(objective.masked_whiten(3 * values, mask, shift=False), [[5.0, 6.0], [7.0, 0.0]])
    near(objective.masked_whiten(torch.tensor([[5.0, 9.0]]), torch.tensor([[1.0, 0.0]])), [[0.0, 0.0]])
    assert objective.masked_mean(values, torch.zeros(2, 2)) == 0


def test_explained_variance():
    returns, mask = torch.tensor([[1.0, 2.0, 3.0, 50.0]]), torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    near(objective.explained_variance(returns, returns, mask), 1.0)
    near(objective.explained_variance(torch.full_like(returns, 7.0), returns, mask), 0.0)
    near(objective.explained_variance(returns / 2, returns, mask), 0.75)  # 1 - 0.25 / 1


def test_the_kl_coefficient_is_steered_to_its_target_and_is_fixed_without_one():
    fixed = objective.KLController(beta=0.1)
    fixed.update(50.0, answers=1000)
    assert fixed.beta == 0.1
    steered = objective.KLController(beta=0.1, target=6.0, horizon=1000.0)
    steered.update(9.0, answers=100)  # 50 % too much is taken for 20 %, a tenth of a horizon long
    assert steered.beta == pytest.approx(0.102)
    steered.update(5.4, answers=100)
    assert steered.beta == pytest.approx(0.102 * 0.99)

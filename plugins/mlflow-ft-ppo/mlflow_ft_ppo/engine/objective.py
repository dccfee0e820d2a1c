"""PPO's formulas, on tensors of shape (answers, tokens) with a mask that is 1 on the tokens of each answer.

    PPO     Schulman et al. 2017, arXiv 1707.06347       clipped objective
    GAE     Schulman et al. 2016, arXiv 1506.02438       advantages
    Z19     Ziegler et al. 2019, arXiv 1909.08593        KL in the reward, adaptive coefficient
    S20     Stiennon et al. 2020, arXiv 2009.01325       the same for summaries
    N+      Huang et al. 2024, arXiv 2403.17031          implementation details, including those of Z19 and S20

The mask of an answer is ones from its first token to its last, then zeros. Log-probabilities are in nats.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

TINY = 1e-8


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the unmasked tokens, a scalar."""
    return (values * mask).sum() / mask.sum().clamp(min=1)


def masked_variance(values: Tensor, mask: Tensor) -> Tensor:
    """Variance over the unmasked tokens, with Bessel's correction, a scalar; 0 for a single token."""
    count = mask.sum()
    squares = ((values - masked_mean(values, mask)) ** 2 * mask).sum()
    return squares / (count - 1).clamp(min=1)


def masked_whiten(values: Tensor, mask: Tensor, *, shift: bool = True) -> Tensor:
    """Values scaled to variance 1 over the unmasked tokens, and to mean 0 unless `shift` is off (N+)."""
    mean = masked_mean(values, mask)
    whitened = (values - mean) * torch.rsqrt(masked_variance(values, mask) + TINY)
    return (whitened if shift else whitened + mean) * mask


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """1 - Var(returns - values) / Var(returns), a scalar: 1 if the values explain everything, 0 if nothing."""
    return 1 - masked_variance(returns - values, mask) / masked_variance(returns, mask).clamp(min=TINY)


def kl_estimate(logprobs: Tensor, reference: Tensor, kind: str = "k1") -> Tensor:
    """An estimate of KL(policy || reference) for every sampled token, in nats.

    k1 is the log ratio; k3 adds exp(-k1) - 1, whose expectation is 0: it is never negative and has less variance
    (J. Schulman, "Approximating KL divergence", 2020).
    """
    log_ratio = logprobs - reference
    return log_ratio if kind == "k1" else torch.exp(-log_ratio) - 1 + log_ratio


def token_rewards(scores: Tensor, kl: Tensor, mask: Tensor, *, beta: float) -> Tensor:
    """The reward of every token: -beta times its KL, plus the answer's score on the last token (Z19, N+).

    `scores` has the shape (answers,).
    """
    rewards = -beta * kl * mask
    last = (mask.sum(dim=1).long() - 1).clamp(min=0)
    rewards[torch.arange(len(rewards), device=rewards.device), last] += scores * mask.any(dim=1)
    return rewards


def gae(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimates, and the returns that the value head should predict.

        delta_t = r_t + gamma V_t+1 - V_t,   A_t = delta_t + gamma lam A_t+1,   return_t = A_t + V_t

    After the last token of an answer the value is 0, whether the answer ended or was cut off (as in TRL).
    """
    values, rewards = values * mask, rewards * mask
    advantages = torch.zeros_like(values)
    later = torch.zeros_like(values[:, 0])
    next_value = torch.zeros_like(later)
    for token in reversed(range(values.shape[1])):
        delta = rewards[:, token] + gamma * next_value - values[:, token]
        later = (delta + gamma * lam * later) * mask[:, token]
        next_value = values[:, token]
        advantages[:, token] = later
    return advantages, advantages + values


def policy_loss(logprobs: Tensor, old: Tensor, advantages: Tensor, *, epsilon: float) -> tuple[Tensor, Tensor]:
    """The clipped loss of every token (PPO, equation 7), and whether it was clipped.

    ratio = exp(logprobs - old),   loss = max(-A ratio, -A clip(ratio, 1 - epsilon, 1 + epsilon))
    """
    ratio = torch.exp(logprobs - old)
    free = -advantages * ratio
    held = -advantages * ratio.clamp(1 - epsilon, 1 + epsilon)
    return torch.maximum(free, held), held > free


def value_loss(values: Tensor, old: Tensor, returns: Tensor, *, epsilon: float) -> tuple[Tensor, Tensor]:
    """Half the squared error of every token, clipped around the value at sampling (N+), and whether it was clipped."""
    free = (values - returns) ** 2
    held = (old + (values - old).clamp(-epsilon, epsilon) - returns) ** 2
    return 0.5 * torch.maximum(free, held), held > free


def approximate_kl(logprobs: Tensor, old: Tensor) -> Tensor:
    """Half the squared log ratio of every token: the distance from the policy at sampling (TRL's approxkl)."""
    return 0.5 * (logprobs - old) ** 2


@dataclass
class KLController:
    """The KL coefficient: fixed, or adjusted to bring the KL of an answer near a target (Z19, section 2.2)."""

    beta: float
    target: float | None = None
    """KL in nats per answer; None keeps beta fixed."""
    horizon: float = 10_000.0

    def update(self, kl: float, *, answers: int) -> None:
        """After a step of `answers`: beta *= 1 + clip(kl / target - 1, -0.2, 0.2) answers / horizon."""
        if self.target is not None:
            error = min(max(kl / self.target - 1, -0.2), 0.2)
            self.beta *= 1 + error * answers / self.horizon

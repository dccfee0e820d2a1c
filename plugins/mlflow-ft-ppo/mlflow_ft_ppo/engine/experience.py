"""From sampled answers to experience: scores, KL to the reference, values, advantages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mlflow_ft import RefusedError
from mlflow_ft.engine.rewards import reward_judges
from mlflow_ft.engine.rewards.reward_judges import LoadedReward
from mlflow_ft_ppo.engine import objective
from mlflow_ft_ppo.engine.policy import PolicyWithValue, Seen
from mlflow_ft_ppo.engine.reference import Reference
from mlflow_ft_ppo.engine.rollout import Sampled, Tensors
from mlflow_ft_ppo.settings import PPOSettings


@dataclass(frozen=True, kw_only=True)
class Judged:
    """The scores of sampled answers."""

    scores: Tensor
    """float32, (answers,): the weighted sum of the rewards minus the penalty; 0 if no reward function gave a value."""
    known: Tensor
    """bool, (answers,): whether any reward function gave a value."""
    means: Mapping[str, float]
    """The mean of every reward function, under `rewards/NAME`."""


def judge(judges: Sequence[LoadedReward], sampled: Sequence[Sampled], settings: PPOSettings) -> Judged:
    """Call every reward function on all answers.

    Raises:
        RefusedError: a reward function raised, or none gave a value for any answer.
    """
    answers = [sample.answer for sample in sampled]
    rewards = reward_judges.of_answers(judges, answers)
    sums = reward_judges.weighted(judges, rewards)
    if all(total is None for total in sums):
        raise RefusedError(
            f"no reward function gave a value for any of {len(sums)} answers ({', '.join(rewards)})",
            hint="they returned None or NaN; check that the rows have the columns that they read",
        )
    penalty = settings.missing_eos_penalty or 0.0
    scores = [(total or 0.0) - penalty * (not answer.finished) for total, answer in zip(sums, answers, strict=True)]
    known = torch.tensor([total is not None for total in sums])
    means = {f"rewards/{name}": _mean(values) for name, values in rewards.items()}
    return Judged(scores=torch.tensor(scores) * known, known=known, means=means)


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else math.nan


@dataclass(frozen=True, kw_only=True)
class Experience:
    """A step's answers, ready to learn from; tensors of shape (answers, tokens) except `scores`."""

    answers: Tensors
    mask: Tensor
    """The mask of the answers, zero for answers without a reward."""
    logprobs: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor
    kl: Tensor
    """Estimate for each token in nats; zeros without a reference."""
    entropy: Tensor
    scores: Tensor


@torch.no_grad()
def collect(
    policy: PolicyWithValue,
    reference: Reference | None,
    answers: Tensors,
    judged: Judged,
    *,
    settings: PPOSettings,
    beta: float,
    batch_size: int,
) -> Experience:
    """Evaluate the answers with the policy that sampled them and with the reference, and compute the advantages."""
    batches = torch.arange(len(answers.mask), device=answers.mask.device).split(batch_size)
    seen = _together([answers.look(policy, rows) for rows in batches])
    mask = answers.mask * judged.known.to(answers.mask.device)[:, None]
    kl = torch.zeros_like(seen.logprobs)
    if reference:
        with reference() as start:
            before = _together([answers.look(start, rows) for rows in batches])
        kl = objective.kl_estimate(seen.logprobs, before.logprobs, settings.kl_estimator) * answers.mask
    scores = judged.scores.to(mask.device)
    earned = objective.token_rewards(scores, kl, mask, beta=beta)
    if settings.whiten_rewards:
        earned = objective.masked_whiten(earned, mask, shift=False)
    advantages, returns = objective.gae(earned, seen.values, mask, gamma=settings.gamma, lam=settings.lam)
    return Experience(
        answers=answers,
        mask=mask,
        logprobs=seen.logprobs,
        values=seen.values * mask,
        advantages=objective.masked_whiten(advantages, mask),
        returns=returns,
        kl=kl,
        entropy=seen.entropy,
        scores=scores,
    )


def _together(parts: Sequence[Seen]) -> Seen:
    return Seen(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


def metrics(step: Experience, judged: Judged, *, beta: float) -> dict[str, float]:
    """The usual PPO metrics, under TRL's names: sums over an answer's tokens, means over answers."""
    mask, known = step.answers.mask, judged.known.to(step.mask.device)
    kl = (step.kl * mask).sum(dim=1).mean().item()
    scores = step.scores[known].mean().item() if known.any() else math.nan
    return {
        "objective/kl": kl,
        "objective/entropy": -(step.logprobs * mask).sum(dim=1).mean().item(),
        "objective/non_score_reward": -beta * kl,
        "objective/rlhf_reward": scores - beta * kl,
        "objective/scores": scores,
        "objective/kl_coef": beta,
        "policy/entropy_avg": objective.masked_mean(step.entropy, mask).item(),
        "val/explained_variance": objective.explained_variance(step.values, step.returns, step.mask).item(),
        "completions/mean_length": mask.sum(dim=1).mean().item(),
        **judged.means,
    }

"""From sampled answers to something to learn from: scores, KL to the reference, values, advantages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mlflow_ft.engine.rewards import reward_judges
from mlflow_ft.engine.rewards.reward_judges import LoadedReward
from mlflow_ft.errors import RefusedError
from mlflow_ft_ppo.engine import objective
from mlflow_ft_ppo.engine.policy import PolicyWithValue, Seen
from mlflow_ft_ppo.engine.reference import Reference
from mlflow_ft_ppo.engine.rollout import Sampled, Tensors
from mlflow_ft_ppo.settings import PPOSettings


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What the judges say of sampled answers."""

    scores: Tensor
    """float32, (answers,): the weighted sum, less the penalty; 0 where no judge had anything to say."""
    known: Tensor
    """bool, (answers,): whether one had."""
    means: Mapping[str, float]
    """Of every judge its mean, under `rewards/NAME`."""


def judge(judges: Sequence[LoadedReward], sampled: Sequence[Sampled], settings: PPOSettings) -> Judged:
    """Ask every judge for all answers.

    Raises:
        RefusedError: a reward function raised, or no judge had anything to say of any answer.
    """
    answers = [one.answer for one in sampled]
    values = reward_judges.of_answers(judges, answers)
    sums = reward_judges.weighted(judges, values)
    if all(one is None for one in sums):
        raise RefusedError(
            f"no reward says anything of any of {len(sums)} answers ({', '.join(values)})",
            hint="they returned None, or NaN; do the rows have the columns that they look for?",
        )
    penalty = settings.missing_eos_penalty or 0.0
    scores = [(one or 0.0) - penalty * (not answer.finished) for one, answer in zip(sums, answers, strict=True)]
    known = torch.tensor([one is not None for one in sums])
    means = {f"rewards/{name}": _mean(found) for name, found in values.items()}
    return Judged(scores=torch.tensor(scores) * known, known=known, means=means)


def _mean(values: Sequence[float | None]) -> float:
    said = [value for value in values if value is not None]
    return sum(said) / len(said) if said else math.nan


@dataclass(frozen=True, kw_only=True)
class Experience:
    """A step's answers, ready to learn from; tensors of shape (answers, tokens) but for `scores`."""

    answers: Tensors
    mask: Tensor
    """That of the answers, without those of which no judge said anything."""
    logprobs: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor
    kl: Tensor
    """Estimate of each token, nats; zeros without a reference."""
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
    """Look at the answers with the policy that sampled them and with the reference, and work out the advantages."""
    rows = torch.arange(len(answers.mask), device=answers.mask.device).split(batch_size)
    seen = _together([answers.look(policy, some) for some in rows])
    mask = answers.mask * judged.known.to(answers.mask.device)[:, None]
    kl = torch.zeros_like(seen.logprobs)
    if reference:
        with reference() as start:
            before = _together([answers.look(start, some) for some in rows])
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
    return Seen(*(torch.cat(several) for several in zip(*parts, strict=True)))


def metrics(found: Experience, judged: Judged, *, beta: float) -> dict[str, float]:
    """What practitioners watch of the answers, under TRL's names; sums over an answer's tokens, means over answers."""
    mask, known = found.answers.mask, judged.known.to(found.mask.device)
    kl = (found.kl * mask).sum(dim=1).mean().item()
    scores = found.scores[known].mean().item() if known.any() else math.nan
    return {
        "objective/kl": kl,
        "objective/entropy": -(found.logprobs * mask).sum(dim=1).mean().item(),
        "objective/non_score_reward": -beta * kl,
        "objective/rlhf_reward": scores - beta * kl,
        "objective/scores": scores,
        "objective/kl_coef": beta,
        "policy/entropy_avg": objective.masked_mean(found.entropy, mask).item(),
        "val/explained_variance": objective.explained_variance(found.values, found.returns, found.mask).item(),
        "completions/mean_length": mask.sum(dim=1).mean().item(),
        **judged.means,
    }

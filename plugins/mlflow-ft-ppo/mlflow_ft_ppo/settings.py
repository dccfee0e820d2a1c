"""What can be set of PPO beside the sections `rollout`, `training` and `objective.beta`, as `objective.options`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from mlflow_ft.config.schema import Config

BETA = 0.05
"""KL coefficient where `objective.beta` is not given; TRL's `kl_coef`."""


@dataclass(frozen=True, kw_only=True)
class PPOSettings:
    """The options by name; where they were in TRL's PPOConfig, names, meaning and defaults are those."""

    gamma: float = 1.0
    """Discount of later rewards."""
    lam: float = 0.95
    """GAE's lambda: 1 trusts the rewards alone, 0 the next value alone."""
    cliprange_value: float = 0.2
    """A value may move so far from the one at sampling before its loss is clipped."""
    vf_coef: float = 0.1
    """Weight of the value loss."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus."""
    num_mini_batches: int = 1
    """Optimizer steps in each pass over the answers of a step."""
    whiten_rewards: bool = False
    """Divide the per-token rewards by their standard deviation."""
    missing_eos_penalty: float | None = None
    """Taken from the score of an answer that does not end by itself."""
    kl_estimator: Literal["k1", "k3"] = "k1"
    """k1: log ratio; k3: never negative, of less variance (Schulman, "Approximating KL divergence")."""
    kl_target: float | None = None
    """KL (nats an answer) that the coefficient is steered to; None: `objective.beta` stays as it is."""
    kl_horizon: float = 10_000.0
    """Answers over which the coefficient changes by a fifth at most, where there is a `kl_target`."""
    value_learning_rate: float | None = None
    """Learning rate of the value head; that of the policy when None."""
    value_head: str | None = None
    """A `value_head.safetensors` of an earlier run to go on from."""
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-5
    """1e-5 as in the reference implementations of PPO, not 1e-8."""

    def __post_init__(self) -> None:
        """Raise ValueError for a number that has no meaning."""
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be between 0 and 1")
        for name in ("cliprange_value", "kl_horizon", "adam_epsilon"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0")
        for name in ("kl_target", "value_learning_rate"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0")
        if self.vf_coef < 0 or self.entropy_coef < 0:
            raise ValueError("vf_coef and entropy_coef must not be negative")
        if self.num_mini_batches < 1 or self.num_mini_batches != int(self.num_mini_batches):
            raise ValueError("num_mini_batches must be a whole number from 1 on")
        if self.kl_estimator not in ("k1", "k3"):
            raise ValueError(f"kl_estimator must be k1 or k3, not {self.kl_estimator!r}")

    def answers_per_step(self, config: Config) -> int:
        """Answers that one process samples in a step."""
        training = config.training
        return training.per_device_train_batch_size * training.gradient_accumulation_steps * self.num_mini_batches


def read(config: Config) -> PPOSettings:
    """The options that were given.

    Raises:
        ConfigError: PPO has no such option, or the value has no meaning.
    """
    from mlflow_ft.engine import options

    given = options.typed(config.objective.options, PPOSettings, section="objective")
    found: PPOSettings = options.made(PPOSettings, given, section="objective.options")
    return found

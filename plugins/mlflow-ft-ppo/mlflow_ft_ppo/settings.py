"""PPO's settings in `objective.options`, in addition to the sections `rollout` and `training` and `objective.beta`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from mlflow_ft import Config

BETA = 0.05
"""KL coefficient if `objective.beta` is not given; TRL's `kl_coef`."""


@dataclass(frozen=True, kw_only=True)
class PPOSettings:
    """The options by name; those from TRL's PPOConfig keep their names, meanings and defaults."""

    gamma: float = 1.0
    """Discount of later rewards."""
    lam: float = 0.95
    """GAE's lambda: 1 uses only the rewards, 0 only the next value."""
    cliprange_value: float = 0.2
    """How far a value may move from the one at sampling before its loss is clipped."""
    vf_coef: float = 0.1
    """Weight of the value loss."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus."""
    num_mini_batches: int = 1
    """Optimizer steps in each pass over the answers of a step."""
    whiten_rewards: bool = False
    """Divide the per-token rewards by their standard deviation."""
    missing_eos_penalty: float | None = None
    """Subtracted from the score of an answer without an end token."""
    kl_estimator: Literal["k1", "k3"] = "k1"
    """k1: log ratio; k3: never negative, with less variance (Schulman, "Approximating KL divergence")."""
    kl_target: float | None = None
    """Target KL (nats per answer), towards which the coefficient is adjusted; None: `objective.beta` is constant."""
    kl_horizon: float = 10_000.0
    """Answers over which the coefficient changes by at most a fifth, if there is a `kl_target`."""
    value_learning_rate: float | None = None
    """Learning rate of the value head; None: that of the policy."""
    value_head: str | None = None
    """The `value_head.safetensors` of an earlier run to continue from."""
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-5
    """1e-5 as in the reference implementations of PPO, not 1e-8."""

    def __post_init__(self) -> None:
        """Raise ValueError for a value out of range."""
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
            raise ValueError("num_mini_batches must be a whole number of at least 1")
        if self.kl_estimator not in ("k1", "k3"):
            raise ValueError(f"kl_estimator must be k1 or k3, not {self.kl_estimator!r}")

    def answers_per_step(self, config: Config) -> int:
        """Answers that one process samples in a step."""
        training = config.training
        return training.batch_size * training.gradient_accumulation_steps * self.num_mini_batches


def read(config: Config) -> PPOSettings:
    """The options in the config.

    Raises:
        ConfigError: PPO has no such option, or the value is out of range.
    """
    from mlflow_ft.engine import options

    values = options.typed(config.objective.options, PPOSettings, section="objective")
    settings: PPOSettings = options.made(PPOSettings, values, section="objective.options")
    return settings

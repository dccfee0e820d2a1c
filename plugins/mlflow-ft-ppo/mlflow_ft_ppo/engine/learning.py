"""Learning from a step's answers: passes over them in mini-batches, with the clipped losses."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import Trainer, TrainingArguments, get_scheduler

from mlflow_ft import RolloutSection
from mlflow_ft_ppo.engine import objective
from mlflow_ft_ppo.engine.experience import Experience
from mlflow_ft_ppo.engine.policy import PolicyWithValue, Seen, recomputing
from mlflow_ft_ppo.settings import PPOSettings


class Learner:
    """Policy, optimizer and schedule under accelerate; `learn` takes a step's answers."""

    def __init__(
        self,
        policy: PolicyWithValue,
        args: TrainingArguments,
        settings: PPOSettings,
        *,
        rollout: RolloutSection,
        max_steps: int,
        accelerator: Accelerator,
        notify: Callable[[str], None],
    ) -> None:
        """`notify` calls the callbacks of an event: before and after every optimizer step."""
        self._args, self._settings = args, settings
        self._epsilon, self._passes = rollout.epsilon, rollout.num_iterations
        self._accelerator, self._notify = accelerator, notify
        optimizer = _optimizer(policy, args, settings)
        per_step = self._passes * settings.num_mini_batches
        self._scheduler = get_scheduler(
            args.lr_scheduler_type,
            optimizer,
            num_warmup_steps=args.get_warmup_steps(max_steps) * per_step,
            num_training_steps=max_steps * per_step,
        )
        # a quantised model is already on its device, and accelerate would refuse to move it
        self._policy: Any = accelerator.prepare_model(policy, device_placement=False)
        self._optimizer: Any = accelerator.prepare_optimizer(optimizer)
        self._unwrapped = policy
        self._shuffle = torch.Generator().manual_seed(args.seed + accelerator.process_index)

    @property
    def learning_rate(self) -> float:
        """Learning rate of the policy in the next step."""
        return float(self._scheduler.get_last_lr()[0])

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: optimizer, schedule, and the order of the mini-batches."""
        return {
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._scheduler.state_dict(),
            "shuffle": self._shuffle.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self._optimizer.load_state_dict(state["optimizer"])
        self._scheduler.load_state_dict(state["schedule"])
        self._shuffle.set_state(state["shuffle"])

    def learn(self, step: Experience) -> dict[str, float]:
        """Make all passes over the answers; return means over all tokens of all passes, under TRL's names."""
        sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=step.mask.device))
        norms: list[float] = []
        with recomputing(self._unwrapped.model, enabled=bool(self._args.activation_checkpointing)):
            for _ in range(self._passes):
                order = torch.randperm(len(step.mask), generator=self._shuffle).to(step.mask.device)
                mini_batches = order.chunk(self._settings.num_mini_batches)
                norms += [self._update(step, mini_batch, sums) for mini_batch in mini_batches]
        return _means(sums, self._settings) | {"grad_norm": sum(norms) / len(norms)}

    def _update(self, step: Experience, mini_batch: Tensor, sums: dict[str, Tensor]) -> float:
        """One optimizer step; the loss is the mean over its tokens, regardless of the number of forward passes."""
        tokens = self._accelerator.reduce(step.mask[mini_batch].sum(), reduction="mean").clamp(min=1)
        parts = mini_batch.split(self._args.per_device_train_batch_size)
        for number, rows in enumerate(parts):
            waits = number < len(parts) - 1
            with self._accelerator.no_sync(self._policy) if waits else nullcontext():
                seen = step.answers.look(self._policy, rows)
                self._accelerator.backward(self._loss(seen, step, rows, sums) / tokens)
        norm = self._accelerator.clip_grad_norm_(self._unwrapped.parameters(), self._args.max_grad_norm)
        self._notify("on_pre_optimizer_step")
        self._optimizer.step()
        self._notify("on_optimizer_step")
        self._scheduler.step()
        self._optimizer.zero_grad()
        return float(norm)

    def _loss(self, seen: Seen, step: Experience, rows: Tensor, sums: dict[str, Tensor]) -> Tensor:
        """The summed loss of some answers; adds the metrics to `sums`."""
        mask, old = step.mask[rows], step.logprobs[rows]
        policy, policy_clipped = objective.policy_loss(seen.logprobs, old, step.advantages[rows], epsilon=self._epsilon)
        value, value_clipped = objective.value_loss(
            seen.values, step.values[rows], step.returns[rows], epsilon=self._settings.cliprange_value
        )
        ratio = torch.exp(seen.logprobs - old).detach()
        metrics = {
            "loss/policy_avg": policy,
            "loss/value_avg": value,
            "policy/approxkl_avg": objective.approximate_kl(seen.logprobs, old),
            "policy/clipfrac_avg": policy_clipped.float(),
            "val/clipfrac_avg": value_clipped.float(),
            "val/ratio": ratio,
            "val/ratio_var": ratio**2,
            "entropy": seen.entropy,
            "tokens": torch.ones_like(mask),
        }
        for name, values in metrics.items():
            sums[name] = sums[name] + (values.detach() * mask).sum()
        loss = policy + self._settings.vf_coef * value
        if self._settings.entropy_coef:
            loss = loss - self._settings.entropy_coef * seen.entropy
        return (loss * mask).sum()


def _means(sums: dict[str, Tensor], settings: PPOSettings) -> dict[str, float]:
    tokens = max(1.0, sums.pop("tokens").item())
    means = {name: total.item() / tokens for name, total in sums.items()}
    means["val/ratio_var"] = max(0.0, means["val/ratio_var"] - means["val/ratio"] ** 2)
    loss = means["loss/policy_avg"] + settings.vf_coef * means["loss/value_avg"]
    return {"loss": loss - settings.entropy_coef * means.pop("entropy"), **means}


def _optimizer(policy: PolicyWithValue, args: TrainingArguments, settings: PPOSettings) -> torch.optim.Optimizer:
    """The optimizer named by `training.optim`; as in transformers, biases and norms have no weight decay."""
    kind, options = Trainer.get_optimizer_cls_and_kwargs(args, policy.model)
    trained = [weight for weight in policy.model.parameters() if weight.requires_grad]
    head_rate = settings.value_learning_rate or args.learning_rate
    groups = [
        {"params": [weight for weight in trained if weight.dim() > 1], "weight_decay": args.weight_decay},
        {"params": [weight for weight in trained if weight.dim() <= 1], "weight_decay": 0.0},
        {"params": list(policy.value_head.parameters()), "weight_decay": 0.0, "lr": head_rate},
    ]
    optimizer: torch.optim.Optimizer = kind([group for group in groups if group["params"]], **options)
    return optimizer

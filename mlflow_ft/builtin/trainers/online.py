"""The methods that learn from rewards for sampled answers: grpo and rloo."""

from __future__ import annotations

import os
from functools import partial
from pkgutil import resolve_name
from typing import TYPE_CHECKING

from mlflow_ft import Adapter, Trainer

if TYPE_CHECKING:
    from mlflow_ft import Config, Data, Job, Model, Trained

GRPO_LOSSES = ("dapo", "grpo", "dr_grpo", "bnpo", "cispo", "sapo", "luspo", "vespo")
"""The forms of the loss in TRL 1.16."""
ROLLOUT = (
    "reward_funcs",
    "reward_weights",
    "reward_model",
    "engine",
    "num_generations",
    "max_completion_length",
    "temperature",
    "top_p",
    "num_iterations",
    "epsilon",
)
RANGES = {
    "training.learning_rate": "1e-6 to 5e-6 for all weights, 1e-5 to 1e-4 with an adapter",
    "rollout.num_generations": "4 to 16",
    "rollout.max_completion_length": "as long as a good answer: a cut answer earns what its beginning earns",
    "rollout.temperature": "0.7 to 1.2; the answers of a group must differ",
}


def train_grpo(job: Job, data: Data, model: Model) -> Trained:
    """Group relative policy optimisation."""
    from mlflow_ft.engine.training import online

    return online.grpo(job, data, model)


def train_rloo(job: Job, data: Data, model: Model) -> Trained:
    """REINFORCE with a leave-one-out baseline."""
    from mlflow_ft.engine.training import online

    return online.rloo(job, data, model)


def refuses(config: Config, adapter: Adapter) -> str | None:
    """Why training could not make a step."""
    if not (config.rollout.reward_funcs or config.rollout.reward_model):
        return (
            "it learns from rewards, but none is named; name functions with --reward_funcs FILE.py:function, or a "
            "model with --reward_model"
        )
    if adapter.learned_prompt:
        return (
            "TRL pads prompts on the left, so padding would come between the learned prompt and the text, where it "
            "never is in serving; use lora or another adapter"
        )
    if adapter.name == "adaption-prompt":
        return "TRL reads log-probabilities from a head that this adapter hides; use lora or another adapter"
    if adapter.name == "adalora" and (config.method != "grpo" or config.objective.beta):
        return "the reference is a second adapter, which AdaLoRA does not allow; use grpo with beta 0"
    if config.adapter.init_lora_weights == "lora_ga":
        return "adapter.init_lora_weights lora_ga needs the gradient of a loss on answers, and prompts have none"
    return groups(config)


def refuses_grpo(config: Config, adapter: Adapter) -> str | None:
    """Like `refuses`, and a loss that TRL does not have."""
    loss = config.objective.loss_type
    if loss is not None and loss not in GRPO_LOSSES:
        return f"objective.loss_type {loss} is not one of {', '.join(GRPO_LOSSES)}"
    return refuses(config, adapter)


def groups(config: Config) -> str | None:
    """Why the answers of a step do not make complete groups of answers to one prompt; None where they do."""
    size = config.rollout.num_generations
    if size < 2:
        return "rollout.num_generations must be 2 or more: answers to the same prompt are compared with each other"
    if {"generation_batch_size", "steps_per_generation"} & set(config.objective.options or {}):
        return None  # TRL checks these
    batch, steps = config.training.batch_size, config.training.gradient_accumulation_steps
    answers = batch * steps * int(os.environ.get("WORLD_SIZE", "1"))
    if answers % size:
        fitting = -(-batch // size) * size
        return (
            f"a step samples {answers} answers (training.per_device_train_batch_size {batch} x "
            f"gradient_accumulation_steps {steps}), not a multiple of rollout.num_generations {size}; set "
            f"training.per_device_train_batch_size to {fitting}, or rollout.num_generations to a divisor of {answers}"
        )
    return None


def records() -> list[Trainer]:
    """The records, for `builtin.trainers`."""
    needs = "prompts, with columns for the reward functions, or conversations, without their last answers"
    return [
        Trainer(
            name="grpo",
            summary="learn from rewards: of several answers to a prompt, the better ones become more likely",
            train=train_grpo,
            defaults={"adapter.kind": "lora", "adapter.r": 16, "training.learning_rate": 2e-5},
            paper="https://arxiv.org/abs/2402.03300",
            scores=("weighted_reward",),
            needs=needs,
            kinds=("prompt", "conversation"),
            settings=("beta", "loss_type", "options", *ROLLOUT),
            options=partial(resolve_name, "trl:GRPOConfig"),
            refuses=refuses_grpo,
            use_for="answers that a program can check: the right number, code that runs, a format",
            memory="as sft with the same adapter; with objective.beta above 0 and no adapter, a second model",
            ranges={"objective.beta": "0 (no reference) to 0.04", **RANGES},
        ),
        Trainer(
            name="rloo",
            summary="learn from rewards: each answer is compared with the mean of the others to its prompt",
            train=train_rloo,
            defaults={"adapter.kind": "lora", "adapter.r": 16, "training.learning_rate": 2e-5, "objective.beta": 0.05},
            paper="https://arxiv.org/abs/2402.14740",
            scores=("weighted_reward",),
            needs=needs,
            kinds=("prompt", "conversation"),
            settings=("beta", "options", *ROLLOUT),
            options=partial(resolve_name, "trl:RLOOConfig"),
            refuses=refuses,
            use_for="a reward model's scores: it stays close to the starting model, and does not scale rewards",
            memory="as grpo, with a reference",
            ranges={"objective.beta": "0.01 to 0.1", **RANGES},
        ),
    ]

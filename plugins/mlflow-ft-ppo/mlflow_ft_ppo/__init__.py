"""The method `ppo`: sample answers, score them with rewards, and make them more or less likely within bounds.

mlflow-ft train ppo --model MODEL --data prompts.jsonl --reward_funcs rewards.py:helpful

The formulas are in `engine/objective.py`, each with its paper; `engine/ppo.py` is the loop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_ft import Adapter, Trainer, hookimpl

if TYPE_CHECKING:
    from mlflow_ft import Config, Data, Job, Model, Trained


def train(job: Job, data: Data, model: Model) -> Trained:
    """Sample, judge and learn, step by step."""
    from mlflow_ft_ppo.engine import ppo

    return ppo.train(job, data, model)


def refuses(config: Config, adapter: Adapter) -> str | None:
    """Why these settings cannot work; raises ConfigError for an option that PPO does not have."""
    from mlflow_ft_ppo.settings import read

    if not config.rollout.reward_funcs and not config.rollout.reward_model:
        return (
            "it learns from rewards, and none are given; name functions with --reward_funcs FILE.py:function, "
            "or a model with --reward_model"
        )
    if adapter.learned_prompt:
        return "it cannot sample with a learned prompt; use lora, or another adapter that changes weights"
    if adapter.name == "adalora":
        return "its rank allocation needs gradients that ppo does not keep; use lora, or another adapter"
    per_step = read(config).answers_per_step(config)
    if per_step % config.rollout.num_generations:
        return (
            f"a step has {per_step} answers (per_device_train_batch_size x gradient_accumulation_steps x "
            f"num_mini_batches), which is not a multiple of num_generations ({config.rollout.num_generations})"
        )
    return None


@hookimpl
def register_trainers() -> list[Trainer]:
    return [
        Trainer(
            name="ppo",
            summary="learns from rewards for its own answers, with a value head and a clipped objective",
            train=train,
            defaults={
                "adapter.kind": "lora",
                "adapter.r": 16,
                "training.learning_rate": 1e-5,
                "training.lr_scheduler_type": "linear",
                "rollout.num_generations": 1,
                "rollout.num_iterations": 4,
            },
            paper="https://arxiv.org/abs/1707.06347",
            scores=("weighted_reward",),
            needs="prompts, or conversations whose last answers are not learned but passed to the rewards as `answer`",
            kinds=("prompt", "conversation"),
            refuses=refuses,
            settings=(
                *("beta", "options", "reward_funcs", "reward_weights", "reward_model"),
                *("num_generations", "max_completion_length", "temperature", "top_p", "num_iterations", "epsilon"),
            ),
            use_for="a reward that a program or a reward model can compute, if answers differ much in length or "
            "single tokens should get the credit; grpo needs no value head and less memory",
            memory="as lora, plus a value head; with adapter.kind none, two copies of the weights",
            ranges={
                "training.learning_rate": "1e-6 to 1e-5 for all weights, 1e-6 to 1e-4 with an adapter",
                "objective.beta": "0.01 to 0.2",
                "rollout.num_iterations": "1 to 4",
            },
        )
    ]

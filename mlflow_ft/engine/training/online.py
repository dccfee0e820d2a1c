"""Learning from rewards for sampled answers: TRL's GRPO and RLOO, with prompts rendered as a server would."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from datasets import Dataset
from transformers import TrainerCallback, set_seed
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from mlflow_ft.engine.aside import aside
from mlflow_ft.engine.loss import causal_model
from mlflow_ft.engine.models import left_padding
from mlflow_ft.engine.models.routers import UnbalancedEvaluation
from mlflow_ft.engine.rewards import reward_judges
from mlflow_ft.engine.rewards.reward_judges import LoadedReward
from mlflow_ft.engine.rewards.reward_watch import RewardWatch
from mlflow_ft.engine.tokens import render
from mlflow_ft.engine.training import longest_batch, loop
from mlflow_ft.errors import ConfigError, DataError, Problem
from mlflow_ft.rows import Example
from mlflow_ft.values import Data, Job, Model, Split, Trained

EVALUATED = 32
"""At most so many held-out prompts are answered at every evaluation: one answer each, sampled as in training."""
TAKEN = {"prompt", "completion", "image", "images", "environment", *reward_judges.GIVEN}
"""Names that TRL uses itself: columns with these names are not passed to reward functions."""
OF_GROUPS = ("frac_reward_zero_std", "clip_ratio", "cispo_clip_ratio")
"""Metrics for which TRL compares the answers of a group, or two versions of the model."""
TOLD = 5
ROW = "row"


class Watched:
    """Shows every batch of answers to a `RewardWatch`."""

    watch: RewardWatch
    model: Any
    num_generations: Any
    reward_weights: Any
    _metrics: Any

    def _calculate_rewards(self, *args: Any, **options: Any) -> Any:
        """As in TRL's trainers: a tensor of shape (answers of all processes, rewards), with NaN for None."""
        rewards = super()._calculate_rewards(*args, **options)  # type: ignore[misc]  # a mixin
        if self.model.training:
            sums = (rewards * self.reward_weights.to(rewards.device)).nansum(dim=1)
            sums[rewards.isnan().all(dim=1)] = math.nan
            ratios = self._metrics["train"]["completions/clipped_ratio"][-1:]  # of this batch: it was just sampled
            self.watch.see(sums.view(-1, self.num_generations).tolist(), cut=[ratio >= 1 for ratio in ratios])
        return rewards


class AsideEvaluation:
    """Evaluates with the same random numbers each time, and restores those of the training."""

    args: Any
    _metrics: Any

    def log(self, logs: dict[str, float], *args: Any) -> None:
        """As in TRL's trainers, without metrics that are meaningless if each held-out prompt is answered once."""
        if self.args.num_generations_eval == 1:
            for name in list(self._metrics["eval"]):
                if name.startswith(OF_GROUPS):
                    del self._metrics["eval"][name]
        super().log(logs, *args)  # type: ignore[misc]  # a mixin

    def evaluate(self, *args: Any, **options: Any) -> dict[str, float]:
        """As in transformers' Trainer; the number of evaluations does not affect training."""
        with aside():
            set_seed(self.args.seed)
            metrics: dict[str, float] = super().evaluate(*args, **options)  # type: ignore[misc]  # a mixin
        return metrics


class GRPO(Watched, AsideEvaluation, UnbalancedEvaluation, GRPOTrainer):
    """Group relative policy optimisation: arXiv 2402.03300."""


class RLOO(Watched, AsideEvaluation, UnbalancedEvaluation, RLOOTrainer):
    """REINFORCE with a leave-one-out baseline: arXiv 2402.14740."""


def grpo(job: Job, data: Data, model: Model) -> Trained:
    """Train with GRPO on the rewards in `rollout`.

    Raises:
        ConfigError: TRL rejects the settings. DataError: prompts cannot be used. RefusedError: a reward function
        failed, or a NaN or infinite loss. StoppedError: a signal arrived; the current step was finished.
    """
    return _train(job, data, model, config=GRPOConfig, kind=GRPO)


def rloo(job: Job, data: Data, model: Model) -> Trained:
    """Train with RLOO on the rewards in `rollout`; raises as `grpo` does."""
    return _train(job, data, model, config=RLOOConfig, kind=RLOO)


def _train(job: Job, data: Data, model: Model, *, config: Any, kind: Any) -> Trained:
    judges = reward_judges.load(job.config, job.registry, model=job.reward_model)
    arguments: Any = loop.arguments(config, job, job.folder / "train", settings(job, judges))
    options = arguments.chat_template_kwargs or {}
    train = questions(job, data, data.train, options)
    held_out = questions(job, data, data.eval, options, most=EVALUATED)
    check_judges(judges, train.columns)
    longest_prompt = max(train.longest, held_out.longest)
    check_room(model, longest_prompt, arguments.max_completion_length)
    if arguments.use_vllm:
        for_vllm(arguments, longest_prompt, data.tokenizer.eos_token_id)
    groups = arguments.generation_batch_size // arguments.num_generations
    if len(train.rows) < groups:
        raise DataError(
            f"a step needs answers to {groups} prompts, but there are only {len(train.rows)} to train on",
            hint="lower training.per_device_train_batch_size or gradient_accumulation_steps, or raise "
            "rollout.num_generations",
        )

    watch = RewardWatch(job.config.rollout, job.progress)

    def make(callbacks: list[TrainerCallback]) -> Any:
        trainer = kind(
            model=model.module,
            reward_funcs=list(judges),
            args=arguments,
            train_dataset=train.dataset(),
            eval_dataset=held_out.dataset(),
            processing_class=data.tokenizer,
            callbacks=callbacks,
        )
        trainer.watch = watch
        return trainer

    temperature = job.config.rollout.temperature
    longest = partial(longest_batch.of_answers, prompt=train.longest, answer=arguments.max_completion_length)
    trained = loop.run(
        job, data, model, make, judges=judges, check=left_padding.proof, fused=temperature, longest=longest
    )
    return replace(trained, findings=watch.findings())


def settings(job: Job, judges: Sequence[LoadedReward]) -> dict[str, Any]:
    """The fields of TRL's config class that `rollout` and `objective` fill."""
    rollout, options = job.config.rollout, job.config.objective.options or {}
    own: dict[str, Any] = {
        "remove_unused_columns": False,
        "num_generations": rollout.num_generations,
        "max_completion_length": rollout.max_completion_length,
        "temperature": rollout.temperature,
        "top_p": rollout.top_p,
        "num_iterations": rollout.num_iterations,
        "epsilon": rollout.epsilon,
        "reward_weights": [judge.weight for judge in judges],
        "use_vllm": rollout.engine == "vllm",
        **loop.objective(job, "beta", "loss_type"),
    }
    return own | ({} if "num_generations_eval" in options else {"num_generations_eval": 1})


def for_vllm(arguments: Any, longest_prompt: int, end: int | None) -> None:
    """Complete TRL's settings for vLLM, which would otherwise follow the files of the base.

    It would take memory for the longest row that the model can read, and stop at the base's own end token, where TRL
    looks for the tokenizer's.
    """
    if arguments.vllm_max_model_length is None:
        arguments.vllm_max_model_length = longest_prompt + (arguments.max_completion_length or 0)
    ends = {} if end is None else {"stop_token_ids": [end]}
    arguments.generation_kwargs = ends | (arguments.generation_kwargs or {})


# --- the prompts


@dataclass(frozen=True, kw_only=True)
class Questions:
    """The prompts of one side of the split, with the columns for reward functions, as JSON, which keeps their types."""

    rows: list[str]
    columns: tuple[str, ...]
    longest: int
    """Tokens of the longest prompt."""

    def dataset(self) -> Dataset:
        """What TRL reads: `prompt`, as messages, and the columns."""
        return Dataset.from_dict({ROW: self.rows}).with_transform(unpacked)


def unpacked(batch: Mapping[str, Sequence[str]]) -> dict[str, list[Any]]:
    """Rows of JSON as columns; every row has the same keys."""
    rows = [json.loads(row) for row in batch[ROW]]
    return {name: [row[name] for row in rows] for name in rows[0]} if rows else {}


def questions(
    job: Job, data: Data, side: Split, template_options: Mapping[str, Any], *, most: int | None = None
) -> Questions:
    """The prompts to answer; for a conversation the turns before its last answer, which becomes a column `answer`.

    Prompts longer than `data.max_length` are skipped with a warning: a truncated prompt would lose its question.

    Raises:
        DataError: prompts offer tools, or TRL would render one differently from the server; or no prompts are left.
    """
    kept: list[dict[str, Any]] = []
    longest, left_out, problems = 0, 0, []
    for index, example in enumerate(itertools.islice(side.examples, most)):
        ids, problem = tokens(data.tokenizer, example, template_options)
        if problem:
            problems.append(Problem(place=side.rows[index].place, message=problem))
        elif len(ids) > job.config.data.max_length:
            left_out += 1
        else:
            longest = max(longest, len(ids))
            kept.append({"prompt": [dict(turn) for turn in example.prompt], **reward_judges.columns(example)})
    if problems:
        raise DataError(
            f"{len(problems):,} {side.name} prompts cannot be used for sampling",
            problems=problems[:TOLD],
            hint="remove these rows; describe tools in the system prompt instead",
        )
    if left_out:
        job.progress.warn(
            f"{side.name}: {left_out:,} prompts are longer than data.max_length ({job.config.data.max_length}) and "
            "are skipped"
        )
    if not kept:
        raise DataError(f"no {side.name} prompts are left", hint="raise data.max_length")
    return packed(job, kept, longest)


def packed(job: Job, kept: Sequence[Mapping[str, Any]], longest: int) -> Questions:
    """Rows with the same keys; missing columns become None."""
    columns = list(dict.fromkeys(name for row in kept for name in row if name != "prompt"))
    taken = sorted(TAKEN & set(columns))
    if taken:
        job.progress.warn(f"not passed to reward functions, because the names are reserved: {taken}")
    names = [name for name in columns if name not in TAKEN]
    rows = [{"prompt": row["prompt"], **{name: row.get(name) for name in names}} for row in kept]
    return Questions(rows=[json.dumps(row, default=str) for row in rows], columns=tuple(names), longest=longest)


def tokens(tokenizer: Any, example: Example, template_options: Mapping[str, Any]) -> tuple[list[int], str]:
    """A prompt's token ids, and its problem or "": TRL renders prompts itself, and must get the same ids."""
    if example.tools:
        return [], "it offers tools, which TRL's trainers would omit from the prompt"
    ours = render.prompt_ids(tokenizer, example)
    try:
        (theirs,) = tokenizer.apply_chat_template(
            [[dict(turn) for turn in example.prompt]],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            **template_options,
        )["input_ids"]
    except render.REFUSALS as error:
        return ours, f"the chat template rejects it: {error}"
    if theirs != ours:
        return ours, "TRL would render it differently from the server; check chat_template_kwargs and tool calls"
    return ours, ""


# --- what must hold before the first step


def check_judges(judges: Sequence[LoadedReward], columns: Sequence[str]) -> None:
    """Raise DataError if a reward function needs a column that the rows do not have."""
    for judge in judges:
        lacking = judge.lacks(columns)
        if lacking:
            raise DataError(
                f"the reward function {judge.name!r} needs columns that the rows do not have: {', '.join(lacking)}",
                hint=f"they have {', '.join(columns) or 'only the prompt column'}; give the argument a default, or "
                "name the column as the function does",
            )


def check_room(model: Model, longest: int, completion: int | None) -> None:
    """Raise ConfigError if the longest prompt and an answer exceed the model's positions."""
    room = getattr(causal_model(model.module).config.get_text_config(), "max_position_embeddings", None)
    if room and longest + (completion or 0) > room:
        raise ConfigError(
            f"a prompt of {longest} tokens and an answer of {completion} do not fit into the model's {room} positions",
            hint="lower data.max_length or rollout.max_completion_length",
        )

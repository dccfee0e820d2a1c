"""What sampled answers are judged by: reward functions and a reward model, called alike, each with its weight."""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from mlflow_ft.config.schema import Config
from mlflow_ft.engine import hardware
from mlflow_ft.engine.hub import quiet_transformers
from mlflow_ft.engine.rewards import reward_sources
from mlflow_ft.errors import ConfigError, ModelError, RefusedError, brief
from mlflow_ft.registry import Registry
from mlflow_ft.rows import Example, Message
from mlflow_ft.values import Answer

Prompts = Sequence[Sequence[Message]]
MODEL = "reward_model"
"""The name of the reward model among the rewards."""
ANSWER = "answer"
"""The column with what a conversation answers, where it is taken as a prompt."""
BATCH = 16
LOGGERS: Mapping[str, Any] = {"trainer_state": None, "log_extra": lambda *_: None, "log_metric": lambda *_: None}
"""What TRL gives reward functions besides, where there is no trainer: nothing is kept of what they log."""
GIVEN = ("prompts", "completions", "completion_ids", *LOGGERS)
"""What a reward function may take beside the rows' columns; `completion_ids` in training alone."""


@dataclass(frozen=True, kw_only=True)
class LoadedReward:
    """One judge, with its weight; called as TRL calls reward functions."""

    name: str
    weight: float
    function: Callable[..., Any]

    @property
    def __name__(self) -> str:
        """What TRL calls it in its metrics."""
        return self.name

    @cached_property
    def _takes(self) -> Mapping[str, inspect.Parameter] | None:
        return reward_sources.parameters(self.function)

    def lacks(self, columns: Sequence[str]) -> list[str]:
        """The arguments that it cannot do without, and that rows with these columns do not give it."""
        needed = [name for name, one in (self._takes or {}).items() if one.default is inspect.Parameter.empty]
        return [name for name in needed if name not in (*GIVEN, *columns)]

    def __call__(self, prompts: Prompts, completions: Prompts, **columns: Any) -> list[float | None]:
        """The reward of every completion; None where the judge has nothing to say of it.

        The function gets, by name, what it takes of them; it may be a coroutine.

        Raises:
            RefusedError: it raised, or returned another number of rewards, or what is no number.
        """
        given = {"prompts": prompts, "completions": completions, **columns}
        if self._takes is not None:
            given = {name: one for name, one in given.items() if name in self._takes}
        try:
            found = self.function(**given)
            values = [_number(value) for value in (_awaited(found) if inspect.isawaitable(found) else found)]
        except Exception as error:  # a stranger's function may raise anything
            raise RefusedError(
                f"the reward function {self.name!r} raised {type(error).__name__}: {error}",
                hint="it is called with prompts, completions and the rows' other columns, each a list, by name, and "
                "returns a number or None for each completion",
            ) from error
        if len(values) != len(completions):
            raise RefusedError(
                f"the reward function {self.name!r} returned {len(values)} rewards for {len(completions)} answers"
            )
        return values


def _number(value: Any) -> float | None:
    """A reward as a number; NaN says nothing, as None does."""
    number = math.nan if value is None else float(value)
    if math.isinf(number):
        raise ValueError(f"{number} is not a valid reward: the group's mean would be infinite too")
    return None if math.isnan(number) else number


def _awaited(found: Awaitable[Any]) -> Any:
    """What a coroutine returns; in a thread, since this one may have a loop that runs already (a notebook)."""

    async def waited() -> Any:
        return await found

    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(asyncio.run, waited()).result()


def load(config: Config, registry: Registry, *, model: Path | None = None) -> list[LoadedReward]:
    """Every reward that `rollout` names; `model` is the folder of the reward model, where there is one.

    Raises:
        ConfigError: none is named, a name is not known, or the weights are not as many. ModelError: the folder holds
        no reward model.
    """
    found: list[tuple[str, Callable[..., Any]]] = [
        (one.name, one.function) for one in reward_sources.find(config.rollout.reward_funcs or [], registry)
    ]
    if model:
        found.append((MODEL, RewardModel(model)))
    if not found:
        raise ConfigError(
            f"method {config.method} learns from rewards, but none was named",
            hint="name functions with --reward_funcs FILE.py:function, or a model with --reward_model",
        )
    weights = config.rollout.reward_weights or [1.0] * len(found)
    if len(weights) != len(found):
        raise ConfigError(
            f"rollout.reward_weights has {len(weights)} weights for {len(found)} rewards",
            hint=f"give one each, in this order: {', '.join(name for name, _ in found)}",
        )
    return [
        LoadedReward(name=name, weight=weight, function=one) for (name, one), weight in zip(found, weights, strict=True)
    ]


class RewardModel:
    """A sequence classifier with one output, as `mlflow-ft train reward` makes it; higher is better.

    Raises:
        ModelError: the folder holds another sort of model.
    """

    def __init__(self, folder: Path) -> None:
        options = {"dtype": hardware.compute_dtype("auto"), "device_map": {"": hardware.device()}}
        kind: Any = AutoModelForSequenceClassification
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
            with quiet_transformers():
                model, told = kind.from_pretrained(folder, num_labels=1, output_loading_info=True, **options)
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise ModelError(f"the reward model cannot be loaded from {folder}: {brief(error)}") from error
        if told["missing_keys"]:
            raise ModelError(
                f"{folder} is not a reward model: it has no weights for {', '.join(sorted(told['missing_keys']))}",
                hint="a reward model is a sequence classifier with one output, such as `mlflow-ft train reward` trains",
            )
        self.model: Any = model.eval()
        self.model.config.pad_token_id = self.tokenizer.pad_token_id

    @torch.no_grad()
    def __call__(self, prompts: Prompts, completions: Prompts, **_: Any) -> list[float | None]:
        """The score of every answer, in the reward model's own template."""
        texts = [
            self.tokenizer.apply_chat_template([*prompt, *answer], tokenize=False)
            for prompt, answer in zip(prompts, completions, strict=True)
        ]
        scores: list[float | None] = []
        for start in range(0, len(texts), BATCH):
            batch = self.tokenizer(
                texts[start : start + BATCH],
                add_special_tokens=False,
                padding=True,
                padding_side="right",
                return_tensors="pt",
            ).to(self.model.device)
            scores += self.model(**batch).logits[:, 0].float().tolist()
        return scores


def columns(example: Example) -> dict[str, Any]:
    """What reward functions are told of a row beside its prompt: its other columns, and what a conversation answers."""
    answer = {ANSWER: example.answer} if example.kind == "conversation" else {}
    return answer | dict(example.columns)


def of_answers(rewards: Sequence[LoadedReward], answers: Sequence[Answer]) -> dict[str, list[float | None]]:
    """What every reward says of answers, by its name."""
    if not answers:
        return {one.name: [] for one in rewards}
    names = list(dict.fromkeys(name for answer in answers for name in answer.columns))
    given = {name: [answer.columns.get(name) for answer in answers] for name in names if name not in GIVEN}
    prompts = [list(answer.prompt) for answer in answers]
    completions = [[{"role": "assistant", "content": answer.text}] for answer in answers]
    return {one.name: one(prompts, completions, **LOGGERS, **given) for one in rewards}


def weighted(rewards: Sequence[LoadedReward], values: Mapping[str, Sequence[float | None]]) -> list[float | None]:
    """The weighted sum of all rewards, answer by answer; None where none of them has anything to say."""
    found: list[float | None] = []
    for several in zip(*(values[one.name] for one in rewards), strict=True):
        said = [one.weight * value for one, value in zip(rewards, several, strict=True) if value is not None]
        found.append(sum(said) if said else None)
    return found

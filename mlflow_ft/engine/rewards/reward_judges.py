"""The rewards for sampled answers: functions and a reward model behind the same interface, each with its weight."""

from __future__ import annotations

import asyncio
import inspect
import math
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
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
"""The column with a conversation's answer, if the conversation is used as a prompt."""
BATCH = 16
LOGGERS: Mapping[str, Any] = {"trainer_state": None, "log_extra": lambda *_: None, "log_metric": lambda *_: None}
"""TRL's further arguments of reward functions, for use without a trainer: what they log is discarded."""
GIVEN = ("prompts", "completions", "completion_ids", *LOGGERS)
"""What a reward function may take besides the rows' columns; `completion_ids` in training only."""


@dataclass(frozen=True, kw_only=True)
class LoadedReward:
    """A reward with its weight; called as TRL calls reward functions."""

    name: str
    weight: float
    function: Callable[..., Any]

    @property
    def __name__(self) -> str:
        """Its name in TRL's metrics."""
        return self.name

    @cached_property
    def _takes(self) -> Mapping[str, inspect.Parameter] | None:
        return reward_sources.parameters(self.function)

    def lacks(self, columns: Sequence[str]) -> list[str]:
        """The required arguments that rows with these columns do not provide."""
        needed = [
            name for name, parameter in (self._takes or {}).items() if parameter.default is inspect.Parameter.empty
        ]
        return [name for name in needed if name not in (*GIVEN, *columns)]

    def __call__(self, prompts: Prompts, completions: Prompts, **columns: Any) -> list[float | None]:
        """The reward of every completion; None if the function has no opinion.

        The function gets the arguments that it takes, by name; it may be a coroutine.

        Raises:
            RefusedError: it raised, returned a wrong number of rewards, or something that is not a number.
        """
        arguments = {"prompts": prompts, "completions": completions, **columns}
        if self._takes is not None:
            arguments = {name: argument for name, argument in arguments.items() if name in self._takes}
        try:
            with redirect_stdout(sys.stderr):  # a program may read the command's own output
                result = self.function(**arguments)
                values = [_number(value) for value in (_awaited(result) if inspect.isawaitable(result) else result)]
        except (Exception, SystemExit) as error:  # a user's function may raise anything
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
    """A reward as a number; NaN means None."""
    number = math.nan if value is None else float(value)
    if math.isinf(number):
        raise ValueError(f"{number} is not a valid reward: the group's mean would be infinite too")
    return None if math.isnan(number) else number


def _awaited(result: Awaitable[Any]) -> Any:
    """What a coroutine returns; run in a new thread, because this one may have a running loop (a notebook)."""

    async def waited() -> Any:
        return await result

    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(asyncio.run, waited()).result()


def load(config: Config, registry: Registry, *, model: Path | None = None) -> list[LoadedReward]:
    """Every reward in `rollout`; `model` is the folder of the reward model, if there is one.

    Raises:
        ConfigError: none is named, a name is unknown, or the number of weights differs. ModelError: the folder is not
        a reward model.
    """
    functions: list[tuple[str, Callable[..., Any]]] = [
        (named.name, named.function) for named in reward_sources.find(config.rollout.reward_funcs or [], registry)
    ]
    if model:
        functions.append((MODEL, RewardModel(model)))
    if not functions:
        raise ConfigError(
            f"method {config.method} learns from rewards, but none was named",
            hint="name functions with --reward_funcs FILE.py:function, or a model with --reward_model",
        )
    weights = config.rollout.reward_weights or [1.0] * len(functions)
    if len(weights) != len(functions):
        raise ConfigError(
            f"rollout.reward_weights has {len(weights)} weights for {len(functions)} rewards",
            hint=f"give one each, in this order: {', '.join(name for name, _ in functions)}",
        )
    return [
        LoadedReward(name=name, weight=weight, function=function)
        for (name, function), weight in zip(functions, weights, strict=True)
    ]


class RewardModel:
    """A sequence classifier with one output, as trained by `mlflow-ft train reward`; higher is better.

    Raises:
        ModelError: the folder has another kind of model.
    """

    def __init__(self, folder: Path) -> None:
        options: dict[str, Any] = {"dtype": hardware.compute_dtype("auto"), "device_map": {"": hardware.device()}}
        options["trust_remote_code"] = False
        kind: Any = AutoModelForSequenceClassification
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            with quiet_transformers():
                model, loading_info = kind.from_pretrained(folder, num_labels=1, output_loading_info=True, **options)
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise ModelError(f"the reward model cannot be loaded from {folder}: {brief(error)}") from error
        if missing := sorted(loading_info["missing_keys"]):
            raise ModelError(
                f"{folder} is not a reward model: it has no weights for {', '.join(missing)}",
                hint="a reward model is a sequence classifier with one output, such as `mlflow-ft train reward` trains",
            )
        self.model: Any = model.eval()
        self.model.config.pad_token_id = self.tokenizer.pad_token_id

    @torch.no_grad()
    def __call__(self, prompts: Prompts, completions: Prompts, **_: Any) -> list[float | None]:
        """The score of every answer, rendered with the reward model's own template."""
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
    """What reward functions get of a row besides its prompt: its other columns, and a conversation's answer."""
    answer = {ANSWER: example.answer} if example.kind == "conversation" else {}
    return answer | dict(example.columns)


def of_answers(rewards: Sequence[LoadedReward], answers: Sequence[Answer]) -> dict[str, list[float | None]]:
    """Every reward's values for the answers, by its name."""
    if not answers:
        return {reward.name: [] for reward in rewards}
    names = list(dict.fromkeys(name for answer in answers for name in answer.columns))
    columns = {name: [answer.columns.get(name) for answer in answers] for name in names if name not in GIVEN}
    prompts = [list(answer.prompt) for answer in answers]
    completions = [[{"role": "assistant", "content": answer.text}] for answer in answers]
    return {reward.name: reward(prompts, completions, **LOGGERS, **columns) for reward in rewards}


def weighted(rewards: Sequence[LoadedReward], values: Mapping[str, Sequence[float | None]]) -> list[float | None]:
    """The weighted sum of all rewards for each answer; None if all of them are None."""
    sums: list[float | None] = []
    for several in zip(*(values[reward.name] for reward in rewards), strict=True):
        said = [reward.weight * value for reward, value in zip(rewards, several, strict=True) if value is not None]
        sums.append(sum(said) if said else None)
    return sums

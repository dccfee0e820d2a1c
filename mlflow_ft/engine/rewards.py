"""What sampled answers are judged by: reward functions by file, dotted name or plugin, and a reward model."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from mlflow_ft.config.schema import Config
from mlflow_ft.engine import hardware
from mlflow_ft.errors import ConfigError, RefusedError
from mlflow_ft.records import Answer
from mlflow_ft.registry import Registry
from mlflow_ft.rows import Message

Prompts = Sequence[Sequence[Message]]
MODEL = "reward_model"
"""The name of the reward model among the rewards."""
BATCH = 16


@dataclass(frozen=True, kw_only=True)
class LoadedReward:
    """One judge, with its weight; called as TRL calls reward functions."""

    name: str
    weight: float
    function: Callable[..., Sequence[float | None]]

    @property
    def __name__(self) -> str:
        """What TRL calls it in its metrics."""
        return self.name

    def __call__(self, prompts: Prompts, completions: Prompts, **columns: Sequence[Any]) -> list[float | None]:
        """The reward of every completion; None where the judge has nothing to say of it.

        Raises:
            RefusedError: the function raised, or returned another number of rewards, or what is no number.
        """
        try:
            found = list(self.function(prompts=prompts, completions=completions, **columns))
            values = [None if value is None else float(value) for value in found]
        except Exception as error:  # a stranger's function may raise anything
            raise RefusedError(
                f"the reward function {self.name!r} raised {type(error).__name__}: {error}",
                hint="it is called with prompts, completions and the rows' other columns, each a list, by name",
            ) from error
        if len(values) != len(completions):
            raise RefusedError(
                f"the reward function {self.name!r} returned {len(values)} rewards for {len(completions)} answers"
            )
        return values


def load(config: Config, registry: Registry, *, model: Path | None = None) -> list[LoadedReward]:
    """Every reward that `rollout` names; `model` is the folder of the reward model, where there is one.

    Raises:
        ConfigError: none is named, a name is not known, or the weights are not as many.
    """
    names = config.rollout.reward_funcs or []
    found: list[tuple[str, Callable[..., Sequence[float | None]]]] = [
        (short(name), function(name, registry)) for name in names
    ]
    if model:
        found.append((MODEL, RewardModel(model)))
    if not found:
        raise ConfigError(
            f"method {config.method} learns from rewards, and none was named",
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


def short(name: str) -> str:
    """The name that metrics carry: the function's own."""
    return name.rpartition(":")[2] if ":" in name else name.rpartition(".")[2]


def function(name: str, registry: Registry) -> Callable[..., Sequence[float | None]]:
    """The function of this name: `FILE.py:function`, `package.module.function`, or a registered one.

    Raises:
        ConfigError: there is no such file, module or function.
    """
    if name in registry.rewards:
        return registry.rewards[name].score
    file, colon, attribute = name.rpartition(":")
    if not colon and "." not in name:
        registry.rewards[name]  # raises, with the names that are known
    if not colon:
        file, _, attribute = name.rpartition(".")
    try:
        module = _from_file(Path(file).expanduser()) if file.endswith(".py") else importlib.import_module(file)
    except Exception as error:  # what a stranger's module raises when it is imported
        raise ConfigError(
            f"rollout.reward_funcs: {name!r} cannot be loaded: {type(error).__name__}: {error}",
            hint=f"looked in {Path.cwd()}; write FILE.py:function or package.module.function",
        ) from error
    found = getattr(module, attribute, None)
    if not callable(found):
        names = [key for key, one in vars(module).items() if callable(one) and not key.startswith("_")]
        raise ConfigError(
            f"rollout.reward_funcs: {file} has no function {attribute!r}", hint=f"it has {', '.join(sorted(names))}"
        )
    result: Callable[..., Sequence[float | None]] = found
    return result


def _from_file(file: Path) -> Any:
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}")
    name = f"mlflow_ft_reward_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


class RewardModel:
    """A sequence classifier with one output, as `mlflow-ft train reward` makes it; higher is better."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.model: Any = AutoModelForSequenceClassification.from_pretrained(
            folder, num_labels=1, dtype=hardware.compute_dtype("auto"), device_map={"": hardware.device()}
        ).eval()
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


def of_answers(rewards: Sequence[LoadedReward], answers: Sequence[Answer]) -> dict[str, list[float | None]]:
    """What every reward says of answers, by its name."""
    names = list(dict.fromkeys(name for answer in answers for name in answer.columns))
    columns = {name: [answer.columns.get(name) for answer in answers] for name in names}
    prompts = [list(answer.prompt) for answer in answers]
    completions = [[{"role": "assistant", "content": answer.text}] for answer in answers]
    return {one.name: one(prompts, completions, **columns) if answers else [] for one in rewards}


def weighted(rewards: Sequence[LoadedReward], values: Mapping[str, Sequence[float | None]]) -> list[float | None]:
    """The weighted sum of all rewards, answer by answer; None where none of them has anything to say."""
    found: list[float | None] = []
    for several in zip(*(values[one.name] for one in rewards), strict=True):
        said = [one.weight * value for one, value in zip(rewards, several, strict=True) if value is not None]
        found.append(sum(said) if said else None)
    return found

"""A job on a tiny model without MLflow, on prompts, whose training curves and tables are kept in lists."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from mlflow_ft import Example, plugins
from mlflow_ft.cli.asked import asked
from mlflow_ft.data.store import Column
from mlflow_ft.engine import hub
from mlflow_ft.engine.tokens import masking, tokenizers
from mlflow_ft.engine.training import trainable
from mlflow_ft.job import Job
from mlflow_ft.progress import Progress
from mlflow_ft.registry import Registry
from mlflow_ft.rows import Place
from mlflow_ft.testing import WORDS
from mlflow_ft.values import Data, Split

REWARDS = '''
def early(completions, **_):
    """Share of letters before n in the alphabet."""
    shares = []
    for turns in completions:
        letters = [letter for letter in turns[-1]["content"].lower() if "a" <= letter <= "z"]
        shares.append(sum(letter < "n" for letter in letters) / max(1, len(letters)))
    return shares

def picky(completions, word, **_):
    """No value if the row's word is red."""
    return [None if name == "red" else float(len(turns[-1]["content"])) for name, turns in zip(word, completions)]

def of_the_prompt(completions, word, **_):
    """Depends on the prompt only: the value head can predict it."""
    return [float(name < "l") for name in word]

def silent(completions, **_):
    return [None] * len(completions)

def raising(completions, **_):
    raise KeyError("no such column")

def endless(completions, **_):
    return [1e38] * len(completions)
'''


class ListedRun:
    """Records what training would log to MLflow; stops after `stop_after` steps, as after a signal."""

    def __init__(self) -> None:
        self.points: list[tuple[str, int, float]] = []
        self.tables: dict[str, Any] = {}
        self.stop_after: int | None = None

    @property
    def stopping(self) -> bool:
        return self.stop_after is not None and max((step for _, step, _ in self.points), default=0) >= self.stop_after

    def metric(self, key: str, value: float, *, step: int = 0, **_: Any) -> None:
        self.points.append((key, step, value))

    def table(self, rows: Any, path: str) -> None:
        self.tables[path] = rows

    def artifact_text(self, text: str, path: str) -> None:
        self.tables[path] = text

    def upload_checkpoint(self, folder: Path, *, beside: Path | None = None) -> None:
        pass

    def deferring_stop(self) -> Any:
        return nullcontext()


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A job, its base model, its rows, and what it logged."""

    job: Job
    data: Data
    base: Any
    run: ListedRun = field(default_factory=ListedRun)

    def prepare(self) -> Any:
        return trainable.prepare(self.job, self.data, self.base)

    def train(self) -> Any:
        from mlflow_ft_ppo.engine import ppo

        return ppo.train(self.job, self.data, self.prepare())

    def curve(self, key: str) -> list[float]:
        return [value for name, _, value in self.run.points if name == key]


def split(name: Any, rows: list[Example], tokenizer: Any, max_length: int) -> Split:
    return Split(
        name=name,
        sources=("rows",),
        source_type="local",
        rows=[Place(file="rows", line=number) for number in range(len(rows))],
        examples=rows,
        encoded=Column.of(masking.encode(tokenizer, rows, max_length=max_length)),
        columns=("prompt", "word"),
        counts={"rows": len(rows), "tokens": 0, "supervised_tokens": 0, "truncated": 0, "dropped": 0},
        digest="0" * 32,
    )


def questions() -> list[Example]:
    return [
        Example(messages=({"role": "user", "content": f"{first} {second}"},), columns={"word": first})
        for first in WORDS
        for second in WORDS[:3]
    ]


def lay(
    folder: Path,
    model: Path,
    *,
    reward: str = "early",
    rows: list[Example] | None = None,
    start: Path | None = None,
    reward_model: Path | None = None,
    **settings: Any,
) -> Bench:
    """Make a bench whose job is in `folder`; four rows are held out."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rewards.py").write_text(REWARDS)
    loaded = plugins.load({"MLFLOW_FT_PLUGINS": "ppo"})
    quick = {
        "model": model,
        "reward_funcs": f"{folder / 'rewards.py'}:{reward}",
        "max_steps": 2,
        "max_completion_length": 8,
        "eval_steps": 100,
        "evaluation.max_rows": 4,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-3,
        "warmup_steps": 0,
    }
    config = asked(["ppo", *(f"--{key}={value}" for key, value in (quick | settings).items())], loaded)
    progress, run = Progress(quiet=True), ListedRun()
    base = replace(hub.find(config.model, progress), start=start)
    tokenizer = tokenizers.load(config, base)
    rows = rows or questions()
    sides = {
        name: split(name, part, tokenizer, config.data.max_length)
        for name, part in (("train", rows[4:]), ("eval", rows[:4]))
    }
    data = Data(**sides, format="prompt-only", kind=rows[0].kind, tokenizer=tokenizer, stop_token_ids=())
    job = Job(
        config=config,
        plugins=loaded,
        registry=Registry(loaded),
        run=run,
        folder=folder,
        progress=progress,
        reward_model=reward_model,
    )
    return Bench(job=job, data=data, base=base, run=run)


@pytest.fixture
def bench(tiny_model: Path, tmp_path: Path) -> Callable[..., Bench]:
    """`bench(max_steps=3, **{"adapter.kind": "none"}).train()`: each bench has its own folder."""
    numbers = iter(range(100))
    return lambda **settings: lay(tmp_path / f"job{next(numbers)}", tiny_model, **settings)

"""A training that was stopped and resumed ends with the same bits as one that was not."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from mlflow_ft.engine.checkpoints import folder, keeper, tree
from mlflow_ft.rows import Example
from mlflow_ft.testing import WORDS, make_rows
from mlflow_ft.values import Resume
from tests.engine.conftest import Bench

STEPS = 10


class StopsAfter:
    """Pretends that a signal arrived in a step."""

    def __init__(self, bench: Bench, step: int) -> None:
        self._run, self._step = bench.job.run, step

    def __call__(self) -> bool:
        return max((at for _, at, _ in self._run.points), default=0) >= self._step


def weights(bench: Bench) -> dict[str, Any]:
    trained = bench.job.folder / "train"
    (file,) = [*trained.glob("adapter/*.safetensors"), *trained.glob("model/*.safetensors")]
    return load_file(file)


def curves(bench: Bench) -> list[tuple[str, int, float]]:
    return [point for point in bench.points if "per_second" not in point[0] and "step_time" not in point[0]]


def stopped(bench: Bench, step: int) -> Bench:
    """Train until a signal arrives in a step."""
    kind = type(bench.job.run)
    watched = type("Stopping", (kind,), {"stopping": property(lambda run: StopsAfter(bench, step)())})
    bench.job.run.__class__ = watched
    bench.train()
    bench.job.run.__class__ = kind
    shutil.rmtree(bench.job.folder / "train" / "adapter", ignore_errors=True)
    shutil.rmtree(bench.job.folder / "train" / "model", ignore_errors=True)
    return bench


def resumed(bench: Bench, checkpoint: Path | None = None) -> Bench:
    """Continue a bench from its last checkpoint."""
    last = checkpoint or folder.latest(keeper.place(bench.job), lambda text: None)
    assert last is not None
    again = replace(bench, job=replace(bench.job, resume=Resume(checkpoint=last)))
    again.train()
    return again


def turn(text: str, role: str = "assistant") -> tuple[dict[str, str], ...]:
    return ({"role": role, "content": text},)


def pairs(count: int = 24) -> list[Example]:
    draw = random.Random(0)
    rows = []
    for number in range(count):
        words = draw.sample(WORDS, 3)
        answers = [" ".join(reversed(words)), " ".join(words[: number % 3 + 1])]
        rows.append(
            Example(
                messages=turn(f"{' '.join(words)} {number}", "user"), chosen=turn(answers[0]), rejected=turn(answers[1])
            )
        )
    return rows


def prompts(count: int = 16) -> list[Example]:
    return [Example(messages=tuple(row["messages"][:1])) for row in make_rows(count)]


FULL = {"adapter.kind": "none"}
SAMPLED = {"max_completion_length": 6, "learning_rate": 1e-3, "num_generations": 2}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("lora", {"adapter.lora_dropout": 0.1}),
    "full": ("full", {}),
    "qlora": ("qlora", {}),
    "packed": ("lora", {"packing": True, "data.max_length": 64, "per_device_train_batch_size": 1}),
    "accumulated, logged every third step": ("full", {"gradient_accumulation_steps": 2, "logging_steps": 3}),
    "by length": ("lora", {"objective.options": "{train_sampling_strategy: group_by_length}"}),
    "pissa": ("lora", {"adapter.init_lora_weights": "pissa"}),
    "adalora": ("lora", {"adapter.kind": "adalora"}),
    "prompt": ("prompt", {}),
    "dpo": ("dpo", {}),
    "dpo full": ("dpo", FULL | {"precompute_ref_log_probs": True}),
    "kto": ("kto", {}),
    "kto full": ("kto", FULL),
    "orpo": ("orpo", {"logging_steps": 3}),
    "simpo": ("simpo", {}),
    "reward": ("reward", {}),
    "reward full": ("reward", FULL),
    "grpo": ("grpo", SAMPLED | {"num_iterations": 2}),
    "grpo full": ("grpo", SAMPLED | FULL | {"gradient_accumulation_steps": 2, "beta": 0.1}),
    "rloo": ("rloo", SAMPLED),
}
SHORT = ("lora", "packed", "kto", "grpo")
ALWAYS = ("lora", "full", "qlora", "dpo", "kto", "reward", "grpo full", "by length")
"""The cases of `make test`; `make faults` has all of them."""


def lay(bench: Callable[..., Bench], case: str, tmp_path: Path) -> Bench:
    method, settings = CASES[case]
    settings = {"max_steps": STEPS, "eval_steps": 2, "save_steps": 3} | settings
    rows = None
    if method in ("dpo", "kto", "orpo", "simpo", "reward"):
        rows = pairs()
    if method in ("grpo", "rloo"):
        rows = prompts()
        file = tmp_path / "rewards.py"
        file.write_text(
            "def length(completions, **_):\n    return [len(turns[-1]['content']) for turns in completions]\n"
        )
        settings["reward_funcs"] = f"[{file}:length]"
    setup = bench(method, rows=rows, **settings)
    return replace(setup, data=replace(setup.data, kind="prompt")) if method in ("grpo", "rloo") else setup


def cases() -> list[Any]:
    steps = [*((case, 6) for case in CASES), *((case, 10) for case in SHORT), ("lora", 4)]
    often = [(case, 6) for case in ALWAYS] + [("lora", 4), ("lora", 10)]
    return [pytest.param(*pair, marks=() if pair in often else pytest.mark.long) for pair in steps]


@pytest.mark.fault("a signal in a training step, for each method")
@pytest.mark.parametrize(("case", "step"), cases())
def test_the_same_bits(bench: Callable[..., Bench], case: str, step: int, tmp_path: Path) -> None:
    whole = lay(bench, case, tmp_path)
    whole.train()
    parts = resumed(stopped(lay(bench, case, tmp_path), step))
    assert tree.differences(weights(whole), weights(parts)) == []
    assert tree.differences(curves(whole), curves(parts)) == []
    (comparison,) = [json.loads(text) for path, text in parts.job.run.texts.items() if path.startswith("resume/")]
    assert comparison["equal"]

"""Prompts padded on the left: the effect on a model is measured, and answers do not change."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from mlflow_ft.engine.judging import judge
from mlflow_ft.engine.models import left_padding, row_isolation
from mlflow_ft.errors import ConfigError
from mlflow_ft.rows import Example
from mlflow_ft.testing import WORDS

Small = Callable[..., Path]
Bench = Callable[..., Any]
DRAW = random.Random(0)
ROWS = [[DRAW.randrange(3, 500) for _ in range(DRAW.randrange(9, 40))] for _ in range(12)]


PADDED = ("llama", "gpt2", "mamba", "qwen3_5", "qwen3_moe", "opt", "bloom", "jamba")


@pytest.fixture(autouse=True)
def _nothing_is_measured_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(left_padding, "_WAYS", {})


def loaded(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def collate(rows: Any) -> Any:
    return left_padding.padded(rows, pad_token_id=0)


@pytest.mark.parametrize(
    ("kind", "way"),
    [*((kind, "padded") for kind in PADDED), ("minimax", "alike"), ("rwkv", "alone")],
)
def test_how_several_prompts_are_answered_at_once(small: Small, kind: str, way: str) -> None:
    model = loaded(small(kind))
    assert left_padding.together(model, ROWS, pad_token_id=0) == way
    rows = [[5] * length for length in (9, 31, 9, 12, 31, 20)]
    batches = list(left_padding.batches(model, rows, batch_size=4, pad_token_id=0))
    assert sorted(index for batch in batches for index in batch) == list(range(len(rows)))
    lengths = [{len(rows[index]) for index in batch} for batch in batches]
    assert max(map(len, lengths)) == (3 if way == "padded" else 1)
    assert max(map(len, batches)) == {"padded": 4, "alike": 2, "alone": 1}[way]


def test_it_is_measured_once_and_only_where_there_are_several(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    model, again, calls = loaded(small("llama")), loaded(small("llama")), []
    monkeypatch.setattr(left_padding, "_way", lambda *_: calls.append(1) or "padded")
    for prompts, batch_size in ((ROWS, 1), (ROWS[:1], 8)):
        assert list(left_padding.batches(model, prompts, batch_size=batch_size, pad_token_id=0))
    assert not calls
    again.config.use_cache, again.config.pad_token_id = False, 7
    for one in (model, model, again):
        assert list(left_padding.batches(one, ROWS, batch_size=4, pad_token_id=0))
    assert len(calls) == 1
    assert list(left_padding.batches(loaded(small("gpt2")), ROWS, batch_size=4, pad_token_id=0))
    assert list(left_padding.batches(model.bfloat16(), ROWS, batch_size=4, pad_token_id=0))
    assert len(calls) == 3


def test_prompts_of_one_length_are_looked_at_too(small: Small) -> None:
    assert left_padding.together(loaded(small("rwkv")), [ROWS[0], ROWS[0]], pad_token_id=0) == "alone"
    assert left_padding.together(loaded(small("minimax")), [ROWS[0], ROWS[0]], pad_token_id=0) == "alike"


@pytest.mark.parametrize(
    ("kind", "without", "counted"),
    [("llama", True, True), ("gpt2", False, True), ("recurrent_gemma", False, False), ("rwkv", False, False)],
)
def test_positions_are_counted_from_the_text_on(small: Small, kind: str, *, without: bool, counted: bool) -> None:
    model = loaded(small(kind))
    assert (row_isolation.see_each_other(model, ROWS, collate) is None) is without
    hook = left_padding.counted(model)
    assert (row_isolation.see_each_other(model, ROWS, collate) is None) is counted
    hook.remove()
    assert (row_isolation.see_each_other(model, ROWS, collate) is None) is without


@pytest.mark.parametrize("kind", ["rwkv", "gpt2"])
def test_an_answer_is_the_same_in_any_batch(bench: Bench, small: Small, kind: str) -> None:
    setup = bench("full", model=small(kind))
    model = loaded(small(kind))
    model.generation_config.eos_token_id = [1]
    examples = [
        Example(messages=({"role": "user", "content": " ".join(WORDS[: 1 + n])}, {"role": "assistant", "content": "x"}))
        for n in (0, 5, 5, 9)
    ]
    alone = [judge.answers(model, setup.data, [row], max_new_tokens=6, batch_size=1)[0].text for row in examples]
    together = [answer.text for answer in judge.answers(model, setup.data, examples, max_new_tokens=6, batch_size=4)]
    assert together == alone


GRPO = {"rollout.max_completion_length": 4, "rollout.num_generations": 2, "max_steps": 1}


def reward(tmp_path: Path) -> str:
    (tmp_path / "reward.py").write_text(
        "def short(completions, **_):\n    return [-float(len(str(one))) for one in completions]\n"
    )
    return f"{tmp_path / 'reward.py'}:short"


def test_grpo_is_refused_where_padding_is_read_as_text(bench: Bench, small: Small, tmp_path: Path) -> None:
    setup = bench("grpo", model=small("rwkv"), reward_funcs=reward(tmp_path), **GRPO, **{"adapter.kind": "none"})
    with pytest.raises(ConfigError, match="pads prompts on the left"):
        setup.train()
    assert not setup.curve("train/loss")


def test_grpo_scores_answers_of_gpt2_at_the_positions_they_were_sampled_at(
    bench: Bench, small: Small, tmp_path: Path
) -> None:
    """TRL gives a padded batch no positions; the sampled answer must be as likely as it was when it was sampled."""
    options = {"objective.options": "importance_sampling_level=token", "rollout.temperature": 1.0}
    setup = bench("grpo", model=small("gpt2"), reward_funcs=reward(tmp_path), **GRPO, **options)
    hooked: list[Any] = []
    counted = left_padding.counted

    def seen(module: Any) -> Any:
        hooked.append(module)
        return counted(module)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(left_padding, "counted", seen)
        setup.train()
    assert len(hooked) == 1
    assert setup.curve("train/loss")

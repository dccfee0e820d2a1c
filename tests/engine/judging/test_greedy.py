"""Greedy answers to several prompts: those that each prompt gets alone, in batches of the right size."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from mlflow_ft.engine import hardware
from mlflow_ft.engine.judging import greedy, reference
from mlflow_ft.engine.memory import estimating, passes
from mlflow_ft.engine.memory.values import Setting

Small = Callable[..., Path]
DRAW = random.Random(1)
PROMPTS = [[DRAW.randrange(3, 500) for _ in range(length)] for length in (4, 11, 7, 11, 25)]
PAD = 0


def loaded(folder: Path) -> Any:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    return model


def answers(model: Any, prompts: list[list[int]] = PROMPTS, *, length: int = 8, batch_size: int = 5) -> dict[int, Any]:
    found: dict[int, Any] = {}
    for batch in greedy.batches(model, prompts, length=length, batch_size=batch_size, pad_token_id=PAD):
        found |= batch
    return found


def by_hand(model: Any, prompt: list[int], length: int) -> list[int]:
    ids = list(prompt)
    for _ in range(length):
        ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "rwkv"])
def test_they_are_the_most_probable_tokens_after_each_prompt(small: Small, kind: str) -> None:
    model = loaded(small(kind))
    found = answers(model)
    assert sorted(found) == list(range(len(PROMPTS)))
    assert [found[index] for index in range(len(PROMPTS))] == [by_hand(model, prompt, 8) for prompt in PROMPTS]


def test_an_answer_ends_with_its_end_token(small: Small) -> None:
    model = loaded(small("llama"))
    whole = answers(model)
    model.generation_config.eos_token_id = end = whole[1][3]
    found = answers(model)
    for index, tokens in whole.items():
        assert found[index] == (tokens[: tokens.index(end) + 1] if end in tokens else tokens)
    assert len(found[1]) <= 4


def test_a_prompt_leaves_the_positions_that_it_does_not_need_to_its_own_answer(small: Small) -> None:
    model = loaded(small("gpt2"))
    limit = model.config.max_position_embeddings
    prompts = [[5] * (limit - 3), [5] * 4, [6] * limit]
    assert {index: len(tokens) for index, tokens in answers(model, prompts).items()} == {0: 3, 1: 8, 2: 0}


@pytest.mark.parametrize(("longest", "size"), [(24, 3), (8, 5)])
def test_on_a_cpu_there_are_more_at_a_time(
    small: Small, monkeypatch: pytest.MonkeyPatch, longest: int, size: int
) -> None:
    monkeypatch.setattr(hardware, "ANSWER_TOKENS", 50)
    prompts = [prompt[:longest] for prompt in PROMPTS]
    sizes = [
        len(batch)
        for batch in greedy.batches(loaded(small("llama")), prompts, length=8, batch_size=2, pad_token_id=PAD)
    ]
    assert max(sizes) == size, "2 x 50 tokens are three rows of 24 + 8, or six of 8 + 8"
    assert hardware.answers_at_once(2, 32, gpu=True) == 2
    assert hardware.answers_at_once(7, 320, gpu=False) == 7, "at least as many as were asked for"
    assert hardware.answers_at_once(1, 25, gpu=False) == 2


def test_the_estimate_of_memory_has_as_many_answers(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []
    generated = passes.generated

    def counting(setting: Setting, model: Any, *, rows: int) -> Any:
        counted.append(rows)
        return generated(setting, model, rows=rows)

    monkeypatch.setattr(passes, "generated", counting)
    for gpu in (False, True):
        estimating.estimate(Setting(model=tiny_model, length=40, new_tokens=24, eval_batch=3, gpu=gpu))
    assert set(counted) == {3 * hardware.ANSWER_TOKENS // 64, 3}


def test_a_form_that_answers_one_prompt_at_a_time_is_asked_one_at_a_time(small: Small, tmp_path: Path) -> None:
    model = loaded(small("llama"))
    prompts = [torch.tensor(prompt) for prompt in PROMPTS]

    class Alone:
        def continued(self, input_ids: torch.Tensor, length: int) -> list[int]:
            return reference.Loaded(model).continued(input_ids, length)

    together = reference.all_continued(reference.Loaded(model), prompts, 8)
    form: Any = Alone()
    assert reference.all_continued(form, prompts, 8) == together == [by_hand(model, list(p), 8) for p in PROMPTS]

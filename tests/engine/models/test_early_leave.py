"""Rows that have ended leave the batch while the others are generated: the same tokens, from fewer rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.cache_utils import DynamicLayer

from mlflow_ft.engine.models import early_leave, left_padding
from mlflow_ft.engine.models.early_leave import leaving_early

Small = Callable[..., Path]
PROMPTS = [[5, 9, 11, 200], [7, 3], [300, 301, 302, 9, 8, 7, 6], [41], [5, 9, 11, 200, 4]]
KINDS = ("llama", "mistral", "qwen3", "qwen3_moe", "llama4", "gemma3_text", "gpt2", "gpt_neox", "phi3")
SAMPLED = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
GREEDY = {"do_sample": False}
ENDS = list(range(3, 503, 5))
"""A fifth of the vocabulary, so that rows end after one to twenty tokens."""


def loaded(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@contextmanager
def rows_computed(model: Any) -> Iterator[list[int]]:
    """How many rows each forward pass has."""
    counts: list[int] = []
    handle = model.get_input_embeddings().register_forward_hook(lambda _, given, __: counts.append(len(given[0])))
    try:
        yield counts
    finally:
        handle.remove()


def generated(model: Any, *, early: bool, more: Any = None, **settings: Any) -> tuple[torch.Tensor, list[int]]:
    torch.manual_seed(3)
    batch = left_padding.padded(PROMPTS, pad_token_id=0)
    with leaving_early(model) if early else nullcontext(), rows_computed(model) as counts, torch.no_grad():
        whole = {"max_new_tokens": 20, "eos_token_id": ENDS, "pad_token_id": 0, "use_cache": True, **settings}
        tokens = model.generate(**batch, **whole, **(more or {}))
    return tokens, counts


@pytest.mark.parametrize("kind", KINDS)
def test_every_row_is_continued_as_in_the_whole_batch(small: Small, kind: str) -> None:
    model = loaded(small(kind))
    for settings in (SAMPLED, GREEDY):
        expected, all_rows = generated(model, early=False, **settings)
        tokens, rows = generated(model, early=True, **settings)
        assert torch.equal(tokens, expected)
        assert all_rows == [len(PROMPTS)] * len(all_rows)
        assert len(rows) == len(all_rows)
    assert as_it_was(model)


def as_it_was(model: Any) -> bool:
    return early_leave.CRITERIA not in vars(model) and "forward" not in vars(model)


def test_rows_that_have_ended_are_not_computed(small: Small) -> None:
    model = loaded(small("llama"))
    tokens, rows = generated(model, early=True, **SAMPLED)
    new = tokens[:, max(map(len, PROMPTS)) :]
    ended = torch.isin(new, torch.tensor(ENDS)).int().cumsum(1).clamp(max=1)
    still = [len(PROMPTS), *(len(PROMPTS) - ended.sum(0)).tolist()][: len(rows)]
    assert rows == still
    assert rows[-1] < len(PROMPTS)


@pytest.mark.parametrize("adapter", [LoraConfig(target_modules=["q_proj"]), PrefixTuningConfig(num_virtual_tokens=4)])
def test_adapters_and_learned_prefixes_generate_as_before(small: Small, adapter: Any) -> None:
    adapter.task_type = "CAUSAL_LM"
    model = get_peft_model(loaded(small("llama")), adapter).eval()
    expected, _ = generated(model, early=False, **SAMPLED)
    tokens, rows = generated(model, early=True, **SAMPLED)
    assert torch.equal(tokens, expected)
    assert rows[-1] < rows[0]


def test_a_state_besides_keys_and_values_keeps_every_row(small: Small) -> None:
    model = loaded(small("mamba"))
    expected, _ = generated(model, early=False, **GREEDY)
    tokens, rows = generated(model, early=True, **GREEDY)
    assert torch.equal(tokens, expected)
    assert set(rows) == {len(PROMPTS)}


class Quantised(DynamicLayer):
    """A layer of a cache that holds more than it seems to."""


def test_rows_stay_in_a_cache_of_unknown_layers(small: Small) -> None:
    model = loaded(small("llama"))
    cache = DynamicCache(config=model.config)
    expected, _ = generated(model, early=False, more={"past_key_values": cache}, **GREEDY)
    unknown = DynamicCache(config=model.config)
    for layer in unknown.layers:
        layer.__class__ = Quantised
    tokens, rows = generated(model, early=True, more={"past_key_values": unknown}, **GREEDY)
    assert torch.equal(tokens, expected)
    assert set(rows) == {len(PROMPTS)}


def test_it_can_be_on_twice_and_ends_with_the_first(small: Small) -> None:
    model = loaded(small("llama"))
    expected, _ = generated(model, early=False, **SAMPLED)
    with leaving_early(model):
        tokens, rows = generated(model, early=True, **SAMPLED)
        again, _ = generated(model, early=False, **SAMPLED)
    assert torch.equal(tokens, expected)
    assert torch.equal(again, expected)
    assert rows[-1] < rows[0]
    assert as_it_was(model)


def test_training_passes_are_those_of_the_model(small: Small) -> None:
    """Also after answers were generated, and where they continue from a cache."""
    model = loaded(small("llama"))
    batch = left_padding.padded(PROMPTS, pad_token_id=0)
    last = torch.tensor([[ENDS[0]], *([[4]] * (len(PROMPTS) - 1))])
    mask = torch.cat([batch["attention_mask"], torch.ones_like(last)], dim=1)

    def passes() -> tuple[torch.Tensor, torch.Tensor]:
        first = model(**batch, use_cache=True)
        second = model(input_ids=last, attention_mask=mask, past_key_values=first.past_key_values)
        return first.logits, second.logits

    expected = passes()
    with leaving_early(model):
        with torch.no_grad():
            model.generate(**batch, max_new_tokens=4, eos_token_id=ENDS, pad_token_id=0)
        assert all(map(torch.equal, passes(), expected))

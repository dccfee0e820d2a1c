"""Generation settings: the repaired ones can be loaded, saved and used, and nothing else is removed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from mlflow_ft.engine.models import generation
from mlflow_ft.engine.models.generation import FILE
from tests.reports.small_models import with_settings

Small = Callable[..., Path]
IDS = torch.tensor([[5, 6, 7]])
WRONG: list[tuple[Mapping[str, Any], str]] = [
    ({"temperature": 0.6, "do_sample": False}, "temperature"),
    ({"top_p": 0.9}, "top_p"),
    ({"early_stopping": True}, "early_stopping"),
    ({"num_return_sequences": 3}, "num_return_sequences"),
    ({"do_sample": True, "top_p": 1.7}, "top_p"),
    ({"do_sample": True, "top_p": "0.9"}, "top_p"),
    ({"do_sample": "no"}, "do_sample"),
    ({"eos_token_id": "<|im_end|>"}, "eos_token_id"),
    ({"pad_token_id": -1}, "pad_token_id"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"do_sample": True, "temperature": -1.0}, "temperature"),
    ({"do_sample": True, "top_k": -1, "top_p": 0.9}, "top_k"),
    ({"bad_words_ids": [3]}, "bad_words_ids"),
    ({"suppress_tokens": [1, "x"]}, "suppress_tokens"),
    ({"exponential_decay_length_penalty": [1]}, "exponential_decay_length_penalty"),
    ({"watermarking_config": 3}, "watermarking_config"),
]
RIGHT: list[Mapping[str, Any]] = [
    {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 20, "repetition_penalty": 1.05},
    {"num_beams": 4, "early_stopping": True, "length_penalty": 0.8},
    {"do_sample": True, "min_p": 0.1, "bos_token_id": 1, "eos_token_id": [2, 3], "pad_token_id": 0},
    {"bad_words_ids": [[100_000, 5]], "begin_suppress_tokens": [220, 50_256], "guidance_scale": 1.5},
    {"cache_implementation": "hybrid", "max_length": 32_768, "stop_strings": ["\n"], "made_up": 4},
    {"do_sample": True, "temperature": 1, "typical_p": 1.0, "repetition_penalty": 1.2},
]


@pytest.mark.parametrize(("settings", "wrong"), WRONG, ids=str)
def test_what_is_wrong_is_left_out_and_nothing_else(
    small: Small, tmp_path: Path, settings: Mapping[str, Any], wrong: str
) -> None:
    folder = with_settings(small("llama"), tmp_path / "base", FILE, **settings)
    before = json.loads((folder / FILE).read_text())
    repairs = generation.read(folder)
    assert set(repairs.left_out) == {wrong}
    assert dict(repairs.settings) == {name: value for name, value in before.items() if name != wrong}
    repairs.config.validate(strict=True)
    model = AutoModelForCausalLM.from_pretrained(folder, **generation.for_loading(folder))
    model.save_pretrained(tmp_path / "saved")
    for call in (generation.GREEDY, generation.SAMPLED):
        model.generate(IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=2, **call)
    assert json.loads((folder / FILE).read_text()) == before
    assert wrong in generation.description(repairs, folder)


@pytest.mark.parametrize("settings", RIGHT, ids=str)
def test_what_is_right_stays(small: Small, tmp_path: Path, settings: Mapping[str, Any]) -> None:
    folder = with_settings(small("llama"), tmp_path / "base", FILE, **settings)
    before = json.loads((folder / FILE).read_text())
    repairs = generation.read(folder)
    assert not repairs.left_out
    assert dict(repairs.settings) == before
    assert generation.for_loading(folder) == {}
    assert generation.description(repairs, folder) == ""
    (tmp_path / "out").mkdir()
    generation.copy(folder, tmp_path / "out")
    assert (tmp_path / "out" / FILE).read_bytes() == (folder / FILE).read_bytes()


def test_the_trial_changes_no_random_numbers() -> None:
    state = torch.random.get_rng_state()
    assert generation.repaired({"repetition_penalty": -1.0}).left_out
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("text", ['{"temperature": 0.6,', "[1]", "null", ""])
def test_a_file_without_settings(small: Small, tmp_path: Path, text: str) -> None:
    folder = with_settings(small("llama"), tmp_path / "base", FILE)
    (folder / FILE).write_text(text)
    repairs = generation.read(folder)
    assert "all of it" in repairs.left_out
    model = AutoModelForCausalLM.from_pretrained(folder, **generation.for_loading(folder))
    assert model.generation_config.eos_token_id == model.config.eos_token_id
    model.save_pretrained(tmp_path / "saved")
    (tmp_path / "out").mkdir()
    generation.copy(folder, tmp_path / "out")
    assert GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id == model.config.eos_token_id


def test_settings_of_older_models_in_config_json(small: Small, tmp_path: Path) -> None:
    folder = with_settings(small("llama"), tmp_path / "base", repetition_penalty=0, num_beams=4)
    (folder / FILE).unlink()
    repairs = generation.read(folder)
    assert set(repairs.left_out) == {"repetition_penalty"}
    assert "config.json is not changed" in generation.description(repairs, folder)
    model = AutoModelForCausalLM.from_pretrained(folder, **generation.for_loading(folder))
    assert model.generation_config.num_beams == 4
    model.generate(IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=2, **generation.GREEDY)
    plain = with_settings(small("llama"), tmp_path / "plain", temperature=0.6)
    (plain / FILE).unlink()
    assert not generation.read(plain).left_out, "transformers saves it"


def test_a_temperature_of_zero_means_the_likeliest_token() -> None:
    repairs = generation.repaired({"do_sample": True, "temperature": 0.0, "eos_token_id": 2})
    assert set(repairs.left_out) == {"do_sample", "temperature"}
    assert dict(repairs.settings) == {"eos_token_id": 2}

"""generation_config.json: what transformers would refuse to load, save or follow is left out, and nothing else."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig

from mlflow_ft.engine import generation

SAMPLES = {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 20}


def folder(place: Path, text: str) -> Path:
    place.mkdir(exist_ok=True)
    (place / generation.FILE).write_text(text)
    return place


@pytest.mark.parametrize(
    "settings",
    [
        {},
        SAMPLES,
        {"eos_token_id": [2, 3], "pad_token_id": 0, "transformers_version": "4.41.0"},
        {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2},
        {"do_sample": False, "repetition_penalty": 1.05, "max_new_tokens": 2048},
        {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.1, "repetition_penalty": 1.0},
        {"do_sample": True, "temperature": 1, "no_repeat_ngram_size": 0, "typical_p": 1.0, "repetition_penalty": 1.2},
        {"num_beams": 4, "length_penalty": 0.8, "early_stopping": True},
    ],
    ids=["none", "samples", "ends", "of config", "greedy", "off", "off too", "beams"],
)
def test_settings_that_transformers_takes_stay(settings: dict[str, Any]) -> None:
    kept = generation.repaired(settings)
    assert kept.settings == settings
    assert list(kept.settings) == list(settings)
    assert not kept.left_out


@pytest.mark.parametrize(
    ("settings", "names", "reason"),
    [
        ({"temperature": 0.6, "top_p": 0.9, "do_sample": False}, {"temperature", "top_p"}, "only sampling reads it"),
        ({"temperature": 0.6}, {"temperature"}, "only sampling reads it"),
        ({"_from_model_config": True, "temperature": 0.6}, {"temperature"}, "only sampling reads it"),
        ({"do_sample": True, "temperature": -1.0}, {"temperature"}, "strictly positive float"),
        (
            {"do_sample": True, "temperature": 0.0, "eos_token_id": 2},
            {"do_sample", "temperature"},
            "the likeliest token",
        ),
        ({"do_sample": True, "top_k": -1, "top_p": 0.9}, {"top_k"}, "strictly positive integer"),
        ({"repetition_penalty": 0.0, "eos_token_id": 2}, {"repetition_penalty"}, "strictly positive float"),
        ({"do_sample": "yes", "eos_token_id": 2}, {"do_sample"}, "not true or false"),
        ({"length_penalty": 0.8, "eos_token_id": 2}, {"length_penalty"}, "only beam search reads it"),
        ({"pad_token_id": -1, "eos_token_id": 2}, {"pad_token_id"}, "not a token's id"),
        ({"eos_token_id": "</s>"}, {"eos_token_id"}, "or a list of them"),
        ({"max_new_tokens": "20", "eos_token_id": 2}, {"max_new_tokens"}, ""),
        ({"do_sample": True, "temperature": "0.6", "top_p": 0.9}, {"temperature"}, "'0.6'"),
        ({"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5}, {"num_beam_groups"}, ""),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_what_cannot_stand_is_left_out(settings: dict[str, Any], names: set[str], reason: str, tmp_path: Path) -> None:
    kept = generation.repaired(settings)
    assert names <= set(kept.left_out) <= names | {"diversity_penalty"}
    assert reason in kept.left_out[min(names)]
    assert kept.settings == {name: value for name, value in settings.items() if name not in kept.left_out}
    kept.config.save_pretrained(tmp_path)
    assert GenerationConfig.from_pretrained(tmp_path).eos_token_id == kept.settings.get("eos_token_id")


def test_transformers_still_refuses_to_save_them(tmp_path: Path) -> None:
    """Where this fails, transformers changed, and less needs a repair."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = GenerationConfig(temperature=0.6, do_sample=False)
    with pytest.raises(ValueError, match="temperature"):
        config.save_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("text", "reason"), [("{", "it is not JSON"), ("[1]", "it is not a JSON object"), ("", "it is not JSON")]
)
def test_a_file_that_holds_no_settings(tmp_path: Path, text: str, reason: str) -> None:
    source = folder(tmp_path / "source", text)
    found = generation.read(source)
    assert not found.readable
    assert not found.settings
    assert reason in generation.told(found, source)
    assert generation.for_loading(source) == {}
    (tmp_path / "copy").mkdir()
    generation.copy(source, tmp_path / "copy")
    assert not (tmp_path / "copy" / generation.FILE).exists()


def test_the_file_stays_and_its_copy_is_repaired(tmp_path: Path) -> None:
    text = json.dumps({"temperature": 0.6, "eos_token_id": 2})
    source, out = folder(tmp_path / "source", text), tmp_path / "copy"
    out.mkdir()
    generation.copy(source, out)
    assert json.loads((out / generation.FILE).read_text()) == {"eos_token_id": 2}
    assert (source / generation.FILE).read_text() == text
    assert "temperature (0.6" in generation.told(generation.read(source), source)
    assert generation.for_loading(source)["generation_config"].eos_token_id == 2
    folder(source, "{}")
    generation.copy(source, out)
    assert json.loads((out / generation.FILE).read_text()) == {"eos_token_id": 2}, "it has settings already"


def test_a_good_file_is_copied_as_it_is(tmp_path: Path) -> None:
    text = json.dumps(SAMPLES, indent=7)
    source, out = folder(tmp_path / "source", text), tmp_path / "copy"
    out.mkdir()
    generation.copy(source, out)
    assert (out / generation.FILE).read_text() == text
    assert generation.told(generation.read(source), source) == ""
    assert generation.for_loading(source) == {}


def test_a_folder_without_one(tmp_path: Path) -> None:
    assert generation.read(tmp_path) == generation.Repaired()
    assert generation.for_loading(tmp_path) == {}

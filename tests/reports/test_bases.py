"""Unusual bases: files in 4 bits, tokens without embeddings, too few positions, unsaveable generation settings."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from mlflow_ft.engine.models.generation import FILE
from mlflow_ft.testing import make_rows, write_jsonl
from tests.cli.conftest import Result, Run
from tests.engine.foreign import base_model, made, says
from tests.rarely import some_always
from tests.reports.small_models import TOKENS, with_settings, with_tokenizer

Small = Callable[..., Path]
pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning", "ignore:.*:FutureWarning")
QUICK = {"max_steps": 2, "max_new_tokens": 4, "evaluation.max_rows": 2, "package.round_trip": "false"}


@pytest.fixture
def rows(client: MlflowClient, tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "rows.jsonl", make_rows(16))


def trained(run: Run, method: str, model: Path, rows: Path, **settings: object) -> Result:
    given = QUICK | {"model": model, "data": rows} | settings
    return run("train", method, *(f"--{key}={value}" for key, value in given.items()), "--json")


def folder_of(result: Result) -> Path:
    assert result.code == 0, result.err
    return Path(json.loads(result.out)["folder"]) / "package"


def refused(result: Result, *words: str) -> None:
    """Refused as wrong input, before a step was trained."""
    assert result.code == 2, result.err
    assert "Traceback" not in result.err
    assert "train ..." not in result.err
    assert all(word in result.err for word in words), result.err


def runs(client: MlflowClient) -> int:
    return len(client.search_runs([experiment.experiment_id for experiment in client.search_experiments()]))


# --- files that are quantised


def stands_for(base: Path) -> Any:
    """The dequantised model of a base's quantised files, by transformers alone."""
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).dequantize().float()


def test_files_in_4_bits_are_trained_on_and_merged(run: Run, small: Small, rows: Path, tmp_path: Path) -> None:
    """unsloth-zoo#326, peft#2501: docs/merge.md promised it, and the training was lost."""
    base = small("llama", stored="nf4 twice")
    result = trained(run, "qlora", base, rows, learning_rate=5e-2)
    package = folder_of(result)
    assert "the base's files are in 4 bits by bitsandbytes (nf4, double quantisation)" in result.err
    before = says(stands_for(base))
    wanted = says(PeftModel.from_pretrained(stands_for(base), package / "adapter"))
    assert (wanted - before).abs().max() > 0.01
    torch.testing.assert_close(says(base_model(package / "merged")), wanted, rtol=1e-4, atol=1e-4)
    merged = run("merge", "--adapter", package / "adapter", "--out", tmp_path / "out")
    assert merged.code == 0, merged.err
    torch.testing.assert_close(says(base_model(tmp_path / "out")), wanted, rtol=1e-4, atol=1e-4)
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())


def test_an_adapter_of_others_on_files_in_4_bits(run: Run, small: Small, tmp_path: Path) -> None:
    """unsloth-zoo#326, peft#2501: the merged model was another one."""
    for stored in ("nf4", "fp4", "int8"):
        base = small("llama", stored=stored)
        made(small("llama"), tmp_path / f"adapter {stored}")
        wanted = says(PeftModel.from_pretrained(stands_for(base), tmp_path / f"adapter {stored}"))
        out = tmp_path / f"out {stored}"
        result = run("merge", "--adapter", tmp_path / f"adapter {stored}", "--base", base, "--out", out)
        assert result.code == 0, result.err
        torch.testing.assert_close(says(base_model(out)), wanted, rtol=1e-4, atol=1e-4)
        assert json.loads((out / "merge.json").read_text())["quantize"] == ("int8" if stored == "int8" else "nf4")
    asked = ["merge", "--adapter", tmp_path / "adapter int8", "--base", base, "--out", tmp_path / "other"]
    refused(run(*asked, "--quantize", "nf4"), "--quantize is nf4, but the base's own files are in 8 bits")
    refused(run(*asked, "--into", "original"), "there are no original weights to merge into")


@pytest.mark.parametrize(
    ("stored", "method", "settings", "words"),
    [
        ("nf4", "full", {}, ("so the weights cannot be trained", "qlora")),
        ("nf4", "lora", {}, ("model.quantize is none", "use qlora")),
        ("nf4", "qlora", {"model.quantize": "int8"}, ("model.quantize is int8", "use qlora")),
        ("nf4", "qlora", {"model.double_quant": "true"}, ("omit model.double_quant",)),
        ("nf4", "lora", {"model.quantize": "nf4", "adapter.init_lora_weights": "loftq"}, ("loftq needs the original",)),
        ("int8", "qlora", {}, ("8 bits", "--model.quantize int8")),
    ],
)
def test_files_in_4_bits_with_another_method(
    run: Run,
    client: MlflowClient,
    small: Small,
    rows: Path,
    stored: str,
    method: str,
    settings: dict[str, str],
    words: tuple[str, ...],
) -> None:
    """unsloth-zoo#326, peft#2501: found before a run is opened."""
    before = runs(client)
    result = trained(run, method, small("llama", stored=stored), rows, **settings)
    refused(result, "the base's own files are in", *words)
    assert runs(client) == before


@pytest.mark.parametrize("make", ["gptq", "awq"])
def test_files_that_are_quantised_otherwise(run: Run, small: Small, rows: Path, tmp_path: Path, make: str) -> None:
    """The same kind: refused by its name."""
    base = with_settings(small("llama"), tmp_path / make, quantization_config={"quant_method": make, "bits": 4})
    refused(trained(run, "lora", base, rows), f"quantised ({make}, 4 bits), which is not supported")
    made(small("llama"), tmp_path / "adapter")
    result = run("merge", "--adapter", tmp_path / "adapter", "--base", base, "--out", tmp_path / "out")
    refused(result, f"({make}, 4 bits)")


# --- tokens without an embedding


def test_a_pad_token_without_an_embedding(run: Run, small: Small, rows: Path, tmp_path: Path) -> None:
    """tokenizers#1609, llama-cookbook#189: a traceback after the weights were loaded."""
    whole = small("llama", vocab_size=TOKENS)
    base = with_tokenizer(
        whole, tmp_path / "base", lambda tokenizer: tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    )
    asked = ["--model", base, "--data", rows]
    words = (f"pads with '[PAD]' (id {TOKENS})", "--model.pad_token '<pad>'", "--model.add_tokens '\"[PAD]\"'")
    for command in (["data", "show"], ["data", "check"], ["train", "lora"]):
        result = run(*command, *asked)
        refused(result, *words)
        assert "load model" not in result.err
    refused(run("train", "lora", *asked, "--model.pad_token", "<padding>"), "has no token '<padding>'")
    package = folder_of(trained(run, "lora", base, rows, **{"model.pad_token": "<pad>"})) / "merged"
    assert AutoTokenizer.from_pretrained(package).pad_token == "<pad>"
    assert json.loads((package / FILE).read_text())["pad_token_id"] < TOKENS
    grown = folder_of(trained(run, "lora", base, rows, **{"model.add_tokens": '"[PAD]"'})) / "merged"
    assert len(base_model(grown).get_input_embeddings().weight) == TOKENS + 1


def test_a_merge_pads_with_a_token_that_has_an_embedding(run: Run, small: Small, tmp_path: Path) -> None:
    """tokenizers#1609, llama-cookbook#189: the same in a merge."""
    wanted = made(small("llama", vocab_size=TOKENS), tmp_path / "adapter")
    padded = AutoTokenizer.from_pretrained(small("llama"))
    padded.add_special_tokens({"pad_token": "[PAD]"})
    padded.save_pretrained(tmp_path / "adapter")
    asked = ["merge", "--adapter", tmp_path / "adapter", "--out", tmp_path / "out"]
    refused(run(*asked), f"pads with '[PAD]' (id {TOKENS})", "--pad_token TOKEN")
    refused(run(*asked, "--pad_token", "<padding>"), "has no token '<padding>'")
    result = run(*asked, "--pad_token", "<pad>")
    assert result.code == 0, result.err
    assert AutoTokenizer.from_pretrained(tmp_path / "out").pad_token == "<pad>"
    torch.testing.assert_close(says(base_model(tmp_path / "out")), wanted, rtol=1e-4, atol=1e-4)


def test_a_template_that_writes_a_token_without_an_embedding(
    run: Run, small: Small, rows: Path, tmp_path: Path
) -> None:
    """The same kind, of what is trained on."""

    def change(tokenizer: Any) -> None:
        tokenizer.add_tokens(["<|turn|>"], special_tokens=True)
        tokenizer.chat_template = tokenizer.chat_template.replace("<|im_start|>", "<|turn|>")

    base = with_tokenizer(small("llama", vocab_size=TOKENS), tmp_path / "base", change)
    for command in (["data", "show"], ["data", "check"], ["train", "lora"]):
        result = run(*command, "--model", base, "--data", rows)
        refused(result, f"'<|turn|>' (id {TOKENS})", "rows.jsonl:", "--model.add_tokens '<|turn|>'")
        assert "load model" not in result.err
    made(base, tmp_path / "adapter")
    result = run("merge", "--adapter", tmp_path / "adapter", "--out", tmp_path / "out")
    refused(result, f"the chat template writes '<|turn|>' (id {TOKENS})")


def test_tokens_of_an_adapter_whose_embeddings_were_not_saved(
    run: Run, client: MlflowClient, small: Small, tmp_path: Path
) -> None:
    """unsloth#3416: merged without the tokens, which the tokenizer still wrote."""
    base = small("llama", vocab_size=TOKENS)
    made(base, tmp_path / "adapter")
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.save_pretrained(tmp_path / "adapter")
    words = ("embeddings were not saved with it", f"'<think>' (id {TOKENS}), '</think>' (id {TOKENS + 1})")
    refused(run("merge", "--adapter", tmp_path / "adapter", "--out", tmp_path / "out"), *words)
    assert not (tmp_path / "out").exists()
    refused(run("chat", tmp_path / "adapter", "--prompt", "x"), *words)
    rows = write_jsonl(tmp_path / "rows.jsonl", make_rows(12))
    refused(run("train", "lora", "--model.init_from", tmp_path / "adapter", "--data", rows), *words)


# --- positions


def test_rows_longer_than_the_positions(run: Run, small: Small, rows: Path) -> None:
    """GPT-2 and its kin: a traceback in the training."""
    for kind, size in (("gpt2", "n_positions"), ("opt", "max_position_embeddings")):
        base = small(kind, **{size: 48})
        result = run("train", "lora", "--model", base, "--data", rows, "--data.max_length", 1024)
        refused(result, "data.max_length is 1,024, but the model has 48 positions", "--data.max_length 48")
        assert "prepare rows" not in result.err
        result = run("data", "check", "--model", base, "--data", rows)
        assert result.code == 0, result.err
        assert "data.max_length: 48 instead of" in result.err
    result = trained(run, "lora", base, rows)
    folder_of(result)
    assert "the model has 48 positions" in result.err
    rotary = small("llama", max_position_embeddings=16)
    result = run("data", "check", "--model", rotary, "--data", rows)
    assert result.code == 0, result.err
    assert "positions" not in result.err


# --- generation settings

SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "LlamaFactory#2545, Qwen3-ASR#210": ({"do_sample": False, "temperature": 0.6}, "temperature (0.6"),
    "LlamaFactory#2837, transformers#29988": ({"top_p": 0.9}, "top_p (0.9"),
    "beams": ({"early_stopping": True, "length_penalty": 0.8}, "early_stopping (True: only beam search reads it"),
    "a penalty of 0, found in the first answer": ({"repetition_penalty": 0}, "repetition_penalty (`penalty` has to be"),
    "outside": ({"do_sample": True, "top_p": 1.7, "temperature": 0.6}, "top_p (1.7 is not from 0 to 1)"),
}


@pytest.mark.parametrize("report", some_always(SETTINGS, "beams", "a penalty of 0, found in the first answer"))
def test_generation_settings_that_cannot_be_saved(
    run: Run, small: Small, rows: Path, tmp_path: Path, report: str
) -> None:
    """The training was lost when its model was to be saved."""
    settings, words = SETTINGS[report]
    base = with_settings(small("llama"), tmp_path / "base", FILE, **settings)
    before = (base / FILE).read_bytes()
    result = trained(run, "lora", base, rows)
    package = folder_of(result)
    assert result.err.index(words) < result.err.index("train ...")
    assert (base / FILE).read_bytes() == before
    kept = json.loads((package / "merged" / FILE).read_text())
    assert words.partition(" (")[0] not in kept
    assert kept.get("do_sample") == settings.get("do_sample")
    base_model(package / "merged").save_pretrained(tmp_path / "again")
    merged = run("merge", "--adapter", package / "adapter", "--base", base, "--out", tmp_path / "out")
    assert merged.code == 0, merged.err
    assert words in merged.err
    assert words.partition(" (")[0] not in json.loads((tmp_path / "out" / FILE).read_text())


def test_generation_settings_that_are_not_json(run: Run, small: Small, rows: Path, tmp_path: Path) -> None:
    """The same kind: a file that was cut off, and one that holds something else."""
    base = with_settings(small("llama"), tmp_path / "base", FILE)
    for text, words in (('{"temperature": 0.6,', "it is not JSON"), ("[1]", "it is not a JSON object")):
        (base / FILE).write_text(text)
        result = trained(run, "full", base, rows)
        assert words in result.err
        base_model(folder_of(result) / "model").save_pretrained(tmp_path / "again")

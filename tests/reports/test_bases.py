"""Bases of odd make, as public reports have them: files in 4 bits, tokens and positions without room, odd settings."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from mlflow import MlflowClient
from peft import PeftModel
from transformers import AutoTokenizer

from mlflow_ft.engine.models import quiet_peft
from mlflow_ft.testing import make_rows, write_jsonl
from tests.cli.conftest import Run, Told
from tests.engine.foreign import base_model, made, says
from tests.reports import small_models

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning", "ignore:.*:FutureWarning")
Small = Callable[..., Path]
QUICK = {"max_steps": 2, "max_new_tokens": 4, "evaluation.max_rows": 2, "package.round_trip": "false"}
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
INT8 = {"load_in_8bit": True}


@pytest.fixture(scope="session")
def four_bits(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base as `*-bnb-4bit` on the Hub are."""
    return small_models.quantised(small("llama"), tmp_path_factory.mktemp("four") / "llama-bnb-4bit", **NF4)


def train(run: Run, model: Path, folder: Path, method: str = "lora", **settings: Any) -> Told:
    rows = write_jsonl(folder / "rows.jsonl", make_rows(12))
    given = QUICK | {"model": model, "data": rows, "run.output_dir": folder / "outputs"} | settings
    return run("train", method, *(f"--{key}={value}" for key, value in given.items()))


def trained(told: Told, folder: Path) -> Path:
    """The package of the one run that was trained here."""
    assert told.code == 0, told.err
    (package,) = (folder / "outputs").glob("*/package")
    return package


def refused(told: Told, *words: str) -> None:
    assert told.code == 2, told.err
    assert "Traceback" not in told.err
    assert all(word in told.err for word in words), told.err
    assert "prepare rows" not in told.err, "it is found before the rows are prepared"


def with_tokens(base: Path, folder: Path, *tokens: str, pad: str | None = None) -> Path:
    """A copy of a model whose tokenizer knows more tokens than the model has embeddings for."""
    shutil.copytree(base, folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens([f"<spare {number}>" for number in range(512 - len(tokenizer))])  # the model has 512
    tokenizer.add_tokens(list(tokens))
    if pad:
        tokenizer.add_special_tokens({"pad_token": pad})
    tokenizer.save_pretrained(folder)
    return folder


def test_a_base_in_4_bits(run: Run, client: MlflowClient, four_bits: Path, tmp_path: Path) -> None:
    """unsloth-zoo#326, peft#2501: trained as it is, and merged into what its weights stand for."""
    package = trained(train(run, four_bits, tmp_path, "qlora", learning_rate=0.1), tmp_path)
    told = run("merge", "--adapter", package / "adapter", "--base", four_bits, "--out", tmp_path / "out")
    assert told.code == 0, told.err
    with quiet_peft():
        whole: Any = transformers.AutoModelForCausalLM.from_pretrained(four_bits, device_map="cpu").dequantize()
        before = says(whole.float())
        wanted = says(PeftModel.from_pretrained(whole.float(), package / "adapter"))
    assert (wanted - before).abs().max() > 0.05, "the training changed the model"
    assert "quantization_config" not in (tmp_path / "out" / "config.json").read_text()
    torch.testing.assert_close(says(base_model(tmp_path / "out")), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("method", "settings"),
    [("full", {}), ("lora", {}), ("qlora", {"model.quantize": "int8"}), ("qlora", {"model.double_quant": "false"})],
    ids=str,
)
def test_a_base_in_4_bits_by_another_method(
    run: Run, client: MlflowClient, four_bits: Path, tmp_path: Path, method: str, settings: dict[str, str]
) -> None:
    """unsloth-zoo#326, peft#2501."""
    told = train(run, four_bits, tmp_path, method, **settings)
    refused(told, "the base's own files are in 4 bits by bitsandbytes (nf4, double quantisation)")


def test_a_base_in_8_bits(run: Run, client: MlflowClient, small: Small, tmp_path: Path) -> None:
    """The same kind as unsloth-zoo#326, peft#2501."""
    base = small_models.quantised(small("llama"), tmp_path / "base", **INT8)
    refused(train(run, base, tmp_path, "qlora"), "8 bits by bitsandbytes", "--model.quantize int8")


def test_a_pad_token_without_an_embedding(run: Run, client: MlflowClient, small: Small, tmp_path: Path) -> None:
    """tokenizers#1609, llama-cookbook#189: refused with a remedy, which works."""
    base = with_tokens(small("llama"), tmp_path / "base", pad="<|new_pad|>")
    words = ("'<|new_pad|>' (id 512)", "embeddings for 512 tokens", "--model.pad_token '<unk>'")
    refused(train(run, base, tmp_path), *words)
    rows = tmp_path / "rows.jsonl"
    for command in ("show", "check"):
        refused(run("data", command, rows, "--model", base), *words)
    package = trained(train(run, base, tmp_path, **{"model.pad_token": "<unk>"}), tmp_path)
    assert AutoTokenizer.from_pretrained(package / "adapter").pad_token == "<unk>"


def test_the_pad_token_is_given_an_embedding(run: Run, client: MlflowClient, small: Small, tmp_path: Path) -> None:
    """The other remedy of tokenizers#1609, llama-cookbook#189."""
    base = with_tokens(small("llama"), tmp_path / "base", pad="<|new_pad|>")
    package = trained(train(run, base, tmp_path, **{"model.add_tokens": "<|new_pad|>"}), tmp_path)
    assert base_model(package / "merged").get_input_embeddings().num_embeddings >= 513


def test_an_adapter_with_tokens_but_no_embeddings(run: Run, small: Small, tmp_path: Path) -> None:
    """unsloth#3416: the merged model had a tokenizer with two tokens more than it had embeddings."""
    adapter = tmp_path / "adapter"
    made(small("llama"), adapter)
    with_two = with_tokens(small("llama"), tmp_path / "with", "<a>", "<b>")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(with_two / name, adapter)
    told = run("merge", "--adapter", adapter, "--base", small("llama"), "--out", tmp_path / "out")
    refused(told, "'<a>' (id 512), '<b>' (id 513)", "embeddings were not saved with it", "modules_to_save")
    assert not (tmp_path / "out").exists()


def test_a_pad_token_of_an_adapter_is_replaced(run: Run, small: Small, tmp_path: Path) -> None:
    """A relative of tokenizers#1609: an adapter whose tokenizer pads with what nobody has an embedding for."""
    adapter, out = tmp_path / "adapter", tmp_path / "out"
    made(small("llama"), adapter)
    with_pad = with_tokens(small("llama"), tmp_path / "with", pad="<|new_pad|>")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(with_pad / name, adapter)
    given = ("merge", "--adapter", adapter, "--base", small("llama"), "--out", out)
    refused(run(*given), "'<|new_pad|>' (id 512)", "--pad_token")
    assert run(*given, "--pad_token", "<unk>").code == 0
    assert AutoTokenizer.from_pretrained(out).pad_token_id < base_model(out).get_input_embeddings().num_embeddings


def test_generation_settings_that_nothing_reads(run: Run, client: MlflowClient, small: Small, tmp_path: Path) -> None:
    """LlamaFactory#2545, #2837, transformers#29988: transformers refused to save them, after the training."""
    base = Path(shutil.copytree(small("llama"), tmp_path / "base"))
    settings = {"do_sample": False, "temperature": 0.6, "top_p": 0.9, "eos_token_id": 3, "pad_token_id": 1}
    text = json.dumps(settings)
    (base / "generation_config.json").write_text(text)
    told = train(run, base, tmp_path, "full")
    package = trained(told, tmp_path)
    assert all(word in told.err for word in ("temperature (0.6", "top_p (0.9", "only sampling reads it")), told.err
    kept = json.loads((package / "model" / "generation_config.json").read_text())
    assert kept.get("temperature") is None
    assert kept.get("top_p") is None
    assert (base / "generation_config.json").read_text() == text, "the base is not changed"


def test_more_tokens_than_positions(run: Run, client: MlflowClient, small: Small, tmp_path: Path) -> None:
    """GPT-2 and relatives: 1,024 tokens on 48 positions was a traceback."""
    gpt2 = small("gpt2", n_positions=48)
    refused(
        train(run, gpt2, tmp_path, **{"data.max_length": 1024}),
        "data.max_length is 1,024, and the model has 48 positions",
        "--data.max_length 48",
    )


def test_a_default_is_lowered_to_the_positions(run: Run, client: MlflowClient, small: Small, tmp_path: Path) -> None:
    """GPT-2 and relatives: the default is fitted to the model, and that is reported."""
    told = train(run, small("gpt2", n_positions=128), tmp_path)
    trained(told, tmp_path)
    assert "data.max_length: 128, not 1,024: the model has 128 positions" in told.err

"""Bases whose files lack weights, or have others than config.json says: every command refuses them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from mlflow_ft.config.schema import Config
from mlflow_ft.engine.merging import fold
from mlflow_ft.engine.models import lacking, loading
from mlflow_ft.errors import ModelError
from mlflow_ft.rows import Task
from mlflow_ft.testing import make_rows, write_jsonl
from mlflow_ft.values import BaseModel
from tests.cli.conftest import Result, Run
from tests.engine.foreign import State, made
from tests.reports.small_models import with_settings

Small = Callable[..., Path]
UP = "model.layers.1.mlp.up_proj.weight"
HEAD = "lm_head.weight"
pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning")


def changed(base: Path, folder: Path, change: Callable[[State], State]) -> Path:
    """A copy of a model with other tensors."""
    shutil.copytree(base, folder)
    save_file(change(load_file(base / "model.safetensors")), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def without(base: Path, folder: Path, *names: str) -> Path:
    return changed(base, folder, lambda state: {name: state[name] for name in state if not name.startswith(names)})


def model(base: Path) -> BaseModel:
    return BaseModel(name="mine", path=base, name_or_path=str(base), revision="", origin="a folder")


def refused(result: Result, *words: str) -> None:
    assert result.code == 2, result.err
    assert all(word in result.out + result.err for word in words), result.out + result.err


def test_every_command_names_the_weights(run: Run, client: MlflowClient, small: Small, tmp_path: Path) -> None:
    """sglang#16235, transformers#46620: random weights were trained, merged, registered and served."""
    rows = write_jsonl(tmp_path / "rows.jsonl", make_rows(16))
    made(small("llama"), tmp_path / "adapter")
    base = without(small("llama"), tmp_path / "base", UP)
    words = ("lack 1 weight", UP, "copy or download the model again")
    for command in (["preflight", "lora"], ["train", "lora"], ["train", "full"]):
        result = run(*command, "--model", base, "--data", rows, "--quiet" if command[0] == "train" else "--json")
        refused(result, *words)
        assert "train ..." not in result.err
    adapter = tmp_path / "adapter"
    refused(run("merge", "--adapter", adapter, "--base", base, "--out", tmp_path / "merged"), *words)
    refused(run("chat", base, "--prompt", "a"), *words)
    refused(run("chat", adapter, "--base", base, "--prompt", "a"), *words)
    refused(run("serve", base), *words)
    refused(run("export", base, "--to", "int8", "--out", tmp_path / "int8"), *words)
    assert not (tmp_path / "merged").exists()


def test_a_missing_output_layer(small: Small, tmp_path: Path) -> None:
    base = without(small("llama"), tmp_path / "base", HEAD)
    with pytest.raises(ModelError, match=f"lack 1 weight: {HEAD}") as caught:
        lacking.check(base, "mine")
    assert "set tie_word_embeddings to true" in caught.value.hint
    lacking.check(with_settings(base, tmp_path / "tied", tie_word_embeddings=True), "mine")


def test_other_shapes_than_those_of_the_configuration(run: Run, small: Small, tmp_path: Path) -> None:
    """LlamaFactory#10186: transformers names a report that is not shown."""
    rows = write_jsonl(tmp_path / "rows.jsonl", make_rows(16))
    base = with_settings(small("llama"), tmp_path / "base", intermediate_size=96)
    name = "model.layers.0.mlp.down_proj.weight"
    words = (f"{name} is (64, 128) in its files, but (64, 96) by config.json (6 weights differ)", "use the config.json")
    result = run("preflight", "lora", "--model", base, "--data", rows, "--json")
    refused(result, *words)


@pytest.mark.parametrize("change", ["lacking", "other shapes"])
def test_loading_refuses_them_itself(small: Small, tmp_path: Path, change: str) -> None:
    """Whatever could not be judged from the headers."""
    base = without(small("llama"), tmp_path / "base", UP)
    if change == "other shapes":
        base = with_settings(small("llama"), tmp_path / "wide", intermediate_size=96)
    with pytest.raises(ModelError, match="lack 1 weight" if change == "lacking" else r"is \(64, 128\) in its files"):
        loading.load_base(Config(method="lora"), model(base))


@pytest.mark.parametrize("name", [UP, HEAD, "model.layers.0.self_attn.q_proj.weight"])
def test_a_merge_layer_by_layer_refuses_them(small: Small, tmp_path: Path, name: str) -> None:
    """Also a weight that the adapter changes."""
    base = without(small("llama"), tmp_path / "base", name)
    made(small("llama"), tmp_path / "adapter", target_modules=["q_proj"])
    with pytest.raises(ModelError, match=f"lack 1 weight: {name}"):
        fold.planned(Config(method="merge"), model(base), tmp_path / "adapter", dtype=torch.float32)


@pytest.mark.parametrize("task", [None, "score"])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3_moe", "gpt_oss", "deepseek_v3", "gemma3", "qwen3_5_pictures"])
def test_what_transformers_loads_completely_is_complete(small: Small, kind: str, task: Task | None) -> None:
    """Fused experts, tied weights, buffers, parts for pictures, and a new head."""
    lacking.check(small(kind), kind, task=task)


@pytest.mark.parametrize("stored", ["nf4", "int8"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_files_that_are_quantised(small: Small, tmp_path: Path, kind: str, stored: str) -> None:
    base = small(kind, stored=stored)
    lacking.check(base, kind)
    name = {"llama": "model.layers.1.mlp.up_proj", "gpt2": "transformer.h.1.mlp.c_fc"}[kind]
    with pytest.raises(ModelError, match=f"{name}.weight"):
        lacking.check(without(base, tmp_path / "base", f"{name}."), kind)


def test_experts_that_are_not_all_there(small: Small, tmp_path: Path) -> None:
    experts = "model.layers.1.mlp.experts"
    base = without(small("qwen3_moe"), tmp_path / "none", experts)
    with pytest.raises(ModelError, match=f"lack 2 weights: {experts}"):
        lacking.check(base, "mine")
    base = without(small("qwen3_moe"), tmp_path / "some", f"{experts}.3.")
    with pytest.raises(ModelError, match=rf"{experts}.* is \(3, .* but \(4, "):
        lacking.check(base, "mine")


def test_a_model_without_any_head(small: Small, tmp_path: Path) -> None:
    """It can be trained to score, not to write."""
    base: Any = AutoModel.from_pretrained(small("llama"))
    base.save_pretrained(tmp_path / "base")
    lacking.check(tmp_path / "base", "mine", task="score")
    with pytest.raises(ModelError, match=HEAD):
        lacking.check(tmp_path / "base", "mine", task="generate")

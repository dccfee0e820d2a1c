"""Weight files: complete, and refused by their names, sizes and headers where they are not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mlflow_ft.engine import weight_files
from mlflow_ft.errors import ModelError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two files of weights and their index."""
    names = {}
    for number in (1, 2):
        name = f"model-0000{number}-of-00002.safetensors"
        save_file({f"layer.{number}": torch.ones(4, 4), f"empty.{number}": torch.ones(0)}, tmp_path / name)
        names |= {f"layer.{number}": name, f"empty.{number}": name}
    (tmp_path / weight_files.INDEX).write_text(json.dumps({"weight_map": names}))
    return tmp_path


def refused(folder: Path) -> str:
    with pytest.raises(ModelError) as error:
        weight_files.check(folder, "mine")
    return str(error.value)


def test_what_safetensors_and_transformers_write_is_complete(folder: Path, tiny_model: Path) -> None:
    weight_files.check(folder, "mine")
    weight_files.check(tiny_model, "mine")


def test_a_file_that_the_index_names_is_missing(folder: Path) -> None:
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors  is missing; model.safetensors.index.json names it" in refused(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content[:-8], "is cut short"),
        (lambda content: content[:20], "is not a safetensors file"),
        (lambda content: b"", "is not a safetensors file"),
        (lambda content: content + b"more", "has 4 bytes after its last tensor"),
        (
            lambda content: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n",
            "is not a safetensors file",
        ),
        (lambda content: b"\xff" * 64, "is not a safetensors file"),
    ],
)
def test_a_file_that_is_not_whole(folder: Path, change: object, message: str) -> None:
    file = folder / "model-00001-of-00002.safetensors"
    file.write_bytes(change(file.read_bytes()))
    assert f"{file.name}  {message}" in refused(folder)


@pytest.mark.parametrize("text", ["{}", "[]", "not JSON", '{"weight_map": 1}'])
def test_an_index_that_is_none(folder: Path, text: str) -> None:
    (folder / weight_files.INDEX).write_text(text)
    assert f"{weight_files.INDEX}  is not an index of weights" in refused(folder)


def test_a_file_that_nothing_reads_is_not_looked_at(folder: Path, tiny_model: Path, tmp_path: Path) -> None:
    (folder / "consolidated.safetensors").write_bytes(b"cut")
    weight_files.check(folder, "mine")
    model = shutil.copytree(tiny_model, tmp_path / "model")
    (model / "consolidated.safetensors").write_bytes(b"cut")
    weight_files.check(model, "mine")


def test_a_single_file_is_read_in_preference_to_an_index(tiny_model: Path, tmp_path: Path) -> None:
    """As transformers does; an old index beside it refuses nothing."""
    model = shutil.copytree(tiny_model, tmp_path / "model")
    (model / weight_files.INDEX).write_text(json.dumps({"weight_map": {"layer.1": "gone.safetensors"}}))
    weight_files.check(model, "mine")
    assert weight_files.listed(model) == [model / "model.safetensors"]


def test_a_tensor_that_the_index_places_in_the_wrong_file(folder: Path) -> None:
    """transformers would load such a model, with random weights in its place."""
    index = json.loads((folder / weight_files.INDEX).read_text())
    index["weight_map"] |= {"head": "model-00002-of-00002.safetensors", "tail": "model-00002-of-00002.safetensors"}
    (folder / weight_files.INDEX).write_text(json.dumps(index))
    assert "model-00002-of-00002.safetensors  has no tensor head and 1 more; model.safetensors.index" in refused(folder)


def test_the_headers_are_read(folder: Path, tmp_path: Path) -> None:
    stored = weight_files.tensors(folder)
    assert stored["layer.1"] == weight_files.Stored(dtype="F32", shape=(4, 4))
    assert set(stored) == {"layer.1", "layer.2", "empty.1", "empty.2"}
    assert weight_files.size(folder) == sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def test_the_size_of_weights_that_are_not_here_yet(tmp_path: Path) -> None:
    assert weight_files.size(tmp_path) == 0
    (tmp_path / weight_files.INDEX).write_text(json.dumps({"metadata": {"total_size": 7}, "weight_map": {}}))
    assert weight_files.size(tmp_path) == 7

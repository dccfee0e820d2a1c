from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlflow_ft.errors import ModelError, RefusedError
from mlflow_ft.manifest import verify_manifest, write_manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(b"weights")
    (tmp_path / "tokenizer.json").write_text("{}")
    return tmp_path


def test_a_manifest_lists_every_file_but_itself_and_holds(folder: Path) -> None:
    manifest = write_manifest(folder)

    assert manifest["files"].keys() == {"adapter/adapter_model.safetensors", "tokenizer.json"}
    assert manifest["files"]["tokenizer.json"]["bytes"] == 2
    assert manifest == json.loads((folder / "manifest.json").read_text()) == verify_manifest(folder)
    assert write_manifest(folder) == manifest


def test_differences_are_reported_by_name(folder: Path) -> None:
    write_manifest(folder)
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(b"weighty")
    (folder / "tokenizer.json").unlink()
    (folder / "more.json").write_text("{}")

    with pytest.raises(RefusedError) as error:
        verify_manifest(folder)

    assert str(error.value).splitlines()[1:] == [
        "  tokenizer.json  is missing",
        "  more.json  is not in the manifest",
        "  adapter/adapter_model.safetensors  has changed",
    ]


@pytest.mark.parametrize("name", ["a.bin", "a.pt", "a.pkl", "a.pickle", "a.pth", "deep/modeling.py", "A.PT"])
def test_pickles_and_code_are_refused_when_written_and_when_verified(folder: Path, name: str) -> None:
    write_manifest(folder)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"")

    for action in (write_manifest, verify_manifest):
        with pytest.raises(RefusedError, match=name) as error:
            action(folder)
        assert ("remove the code" if name.endswith(".py") else "safetensors") in error.value.hint


@pytest.mark.parametrize("text", [None, "{", "[]", "{}"])
def test_a_folder_without_a_readable_manifest_is_reported(folder: Path, text: str | None) -> None:
    if text is not None:
        (folder / "manifest.json").write_text(text)

    with pytest.raises(ModelError, match="cannot be read"):
        verify_manifest(folder)

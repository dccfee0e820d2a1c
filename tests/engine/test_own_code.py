"""Python code that comes with a model runs only in training, and never because of a question on the terminal."""

from __future__ import annotations

import builtins
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mlflow_ft import plugins
from mlflow_ft.cli.asked import asked
from mlflow_ft.config.schema import Config
from mlflow_ft.engine import own_code
from mlflow_ft.engine.models import added_tokens, loading
from mlflow_ft.engine.tokens import tokenizers
from mlflow_ft.errors import ConfigError, ModelError
from mlflow_ft.operations.merging import merge_adapter
from mlflow_ft.operations.merging.adapters import MergeRequest
from mlflow_ft.operations.serving import served_models
from mlflow_ft.progress import Progress
from mlflow_ft.registry import Registry
from mlflow_ft.stages import preflight
from mlflow_ft.values import BaseModel
from tests.engine.conftest import Bench

CODE = """from transformers import LlamaConfig, LlamaForCausalLM

class OwnConfig(LlamaConfig):
    model_type = {kind!r}

class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""
MAP = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
ALLOWED = ("--model.trust_remote_code", "true")


@pytest.fixture(autouse=True)
def nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    questions: list[str] = []

    def asks(text: str = "") -> str:
        questions.append(text)
        return "n"

    monkeypatch.setattr(builtins, "input", asks)
    yield
    assert not questions


def with_code(model: Path, folder: Path, kind: str = "ownllama") -> Path:
    """A copy of a model that comes with code; it needs the code unless `kind` is a type of transformers."""
    shutil.copytree(model, folder)
    settings = json.loads((folder / "config.json").read_text())
    changed = {"model_type": kind, "auto_map": MAP, "architectures": ["OwnForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(settings | changed))
    (folder / "modeling_own.py").write_text(CODE.format(kind=kind))
    return folder


@pytest.fixture
def own(tiny_model: Path, tmp_path: Path) -> Path:
    return with_code(tiny_model, tmp_path / "own")


def base_of(folder: Path) -> BaseModel:
    return BaseModel(name="own", path=folder, name_or_path=str(folder), revision="", origin="a test")


def config_of(*arguments: object) -> Config:
    return asked(["lora", *map(str, arguments)], plugins.load({}))


def test_it_is_known_whether_a_model_needs_its_code(own: Path, tiny_model: Path, tmp_path: Path) -> None:
    known = with_code(tiny_model, tmp_path / "known", kind="llama")
    assert own_code.needs(own) == "its architecture"
    assert not own_code.needs(known)
    assert not own_code.needs(tiny_model)
    settings = json.loads((known / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": [None, "tokens_own.OwnTokenizer"]}}
    (known / "tokenizer_config.json").write_text(json.dumps(settings))
    assert own_code.needs(known) == "its tokenizer"
    with pytest.raises(ModelError, match="its tokenizer") as error:
        tokenizers.load(config_of("--model", known), base_of(known))
    assert "--model.trust_remote_code true" in str(error.value)


@pytest.mark.parametrize(
    ("more", "kind", "words"),
    [
        ((), ModelError, "--model.trust_remote_code true"),
        (ALLOWED, ConfigError, "cannot be packaged or served"),
        ((*ALLOWED, "--package.packagers", "[adapter]"), ConfigError, "--package.packagers '[]'"),
    ],
)
def test_a_training_that_would_be_lost_is_refused_before_its_run(
    own: Path, tiny_rows: Path, tmp_path: Path, more: tuple[str, ...], kind: Any, words: str
) -> None:
    loaded = plugins.load({})
    config = asked(["lora", "--model", str(own), "--data", str(tiny_rows), *more], loaded)
    with pytest.raises(kind) as error:
        preflight.check(config, plugins=loaded, registry=Registry(loaded), progress=Progress(quiet=True))
    assert words in str(error.value) + error.value.hint
    assert not (tmp_path / "outputs").exists()


def test_a_training_that_packages_nothing_may_use_the_code(own: Path) -> None:
    config = config_of("--model", own, *ALLOWED, "--package.packagers", "[]")
    own_code.check_training(config, base_of(own))
    assert type(loading.load_base(config, base_of(own))).__name__ == "OwnForCausalLM"


def test_other_commands_name_the_setting(own: Path, bench: Callable[..., Bench], tmp_path: Path, adapted: Any) -> None:
    adapter = adapted.trained.adapter
    progress = Progress(quiet=True)
    added_tokens.check(adapter, base_of(own), pads=False)
    actions: list[Callable[[], object]] = [
        lambda: served_models.found(str(own), base=None, progress=progress),
        lambda: loading.load_base(config_of("--model", own), base_of(own)),
        lambda: merge_adapter.merge(
            MergeRequest(adapter=str(adapter), base=str(own), out=tmp_path / "merged"), progress
        ),
    ]
    for action in actions:
        with pytest.raises(ModelError, match=r"--model\.trust_remote_code true"):
            action()


def test_code_that_is_saved_with_a_model_is_left_out(tiny_model: Path, tmp_path: Path) -> None:
    known = with_code(tiny_model, tmp_path / "known", kind="llama")
    own_code.leave_out(known)
    assert not list(known.glob("*.py"))
    assert "auto_map" not in json.loads((known / "config.json").read_text())
    config = config_of("--model", known, *ALLOWED)
    assert type(loading.load_base(config, base_of(known))).__name__ == "LlamaForCausalLM"

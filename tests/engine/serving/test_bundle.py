"""The saved tokenizer renders rows as in training, or nothing is registered."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mlflow_ft.engine.serving import bundle
from mlflow_ft.errors import RefusedError
from mlflow_ft.manifest import write_manifest
from tests.engine.conftest import Bench


@pytest.fixture
def saved(bench: Callable[..., Bench], tmp_path: Path) -> tuple[Bench, Path]:
    setup = bench("lora")
    folder = tmp_path / "saved"
    folder.mkdir()
    bundle.complete(setup.job, setup.data, folder)
    return setup, folder


def test_the_tokenizer_that_was_trained_passes(saved: tuple[Bench, Path]) -> None:
    setup, folder = saved
    bundle.check_tokenizer(setup.data, folder)


def test_another_template_is_refused(saved: tuple[Bench, Path]) -> None:
    setup, folder = saved
    file = folder / "chat_template.jinja"
    file.write_text(file.read_text().replace("<|im_end|>\n", "<|im_end|>"))
    with pytest.raises(RefusedError, match="does not render rows as they were trained"):
        bundle.check_tokenizer(setup.data, folder)


def test_another_vocabulary_is_refused(saved: tuple[Bench, Path]) -> None:
    setup, folder = saved
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    merges = content["model"]["merges"]
    content["model"]["merges"] = merges[: len(merges) // 2]
    file.write_text(json.dumps(content))
    with pytest.raises(RefusedError, match="does not render rows as they were trained"):
        bundle.check_tokenizer(setup.data, folder)


def test_a_configuration_that_needs_code_of_its_own_is_refused_before_the_training(tmp_path: Path) -> None:
    settings = {"model_type": "own", "auto_map": {"AutoConfig": "configuration_own.OwnConfig"}}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="trust_remote_code"):
        bundle.check_config(tmp_path)


def test_a_form_has_no_code_of_the_base(bench: Callable[..., Bench], tmp_path: Path, tiny_model: Path) -> None:
    """transformers saves it with the configuration and the weights of a model that comes with code."""
    setup = bench("lora")
    settings = json.loads((tiny_model / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | {"auto_map": {"AutoConfig": "own.OwnConfig"}}))
    (tmp_path / "own.py").write_text("")
    bundle.complete(setup.job, setup.data, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == settings
    write_manifest(tmp_path)

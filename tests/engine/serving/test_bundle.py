"""The saved tokenizer renders rows as in training, or nothing is registered."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mlflow_ft.engine.serving import bundle
from mlflow_ft.errors import RefusedError
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


def test_a_configuration_with_code_of_its_own_is_not_read_back_without_it(tmp_path: Path) -> None:
    settings = {"model_type": "own", "auto_map": {"AutoConfig": "configuration_own.OwnConfig"}}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    bundle.check_config(tmp_path, trust_remote_code=True)
    with pytest.raises(ValueError, match="trust_remote_code"):
        bundle.check_config(tmp_path, trust_remote_code=False)

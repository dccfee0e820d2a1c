"""How a base's own files are quantised: read from their headers, and checked against the settings."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlflow_ft import plugins
from mlflow_ft.cli.asked import asked
from mlflow_ft.config import Config
from mlflow_ft.engine.models import own_quantization
from mlflow_ft.engine.models.own_quantization import Own
from mlflow_ft.errors import ConfigError, ModelError
from tests.reports.small_models import with_settings

Small = Callable[..., Path]


@pytest.mark.parametrize(
    ("stored", "make", "held", "double"),
    [
        ("nf4", "nf4", "nf4", False),
        ("nf4 twice", "nf4", "nf4", True),
        ("fp4", "fp4", "nf4", False),
        ("int8", "int8", "int8", False),
    ],
)
def test_the_makes_of_bitsandbytes(small: Small, stored: str, make: str, held: str, *, double: bool) -> None:
    own = own_quantization.of(small("llama", stored=stored))
    assert own is not None
    assert (own.make, own.held, own.double) == (make, held, double)
    assert own.options() == {}
    assert own_quantization.whole_size(own.folder) > 1.5 * sum(
        file.stat().st_size for file in own.folder.glob("*.safetensors")
    )


def test_a_base_that_is_not_quantised(small: Small) -> None:
    assert own_quantization.of(small("llama")) is None


def labelled(folder: Path, settings: dict[str, Any], *, part: str | None = None) -> Path:
    """A folder whose config.json says how its weights are quantised, and which has none."""
    folder.mkdir(exist_ok=True)
    config = {"quantization_config": settings}
    (folder / "config.json").write_text(json.dumps({part: config} if part else config))
    return folder


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"quant_method": "gptq", "bits": 4}, "gptq, 4 bits"),
        ({"quant_method": "awq", "bits": 4}, "awq, 4 bits"),
        ({"quant_method": "compressed-tensors"}, "compressed-tensors"),
        ({"quant_method": "a_make_of_tomorrow"}, "a_make_of_tomorrow"),
        ({"bits": 3}, "an unnamed method, 3 bits"),
    ],
    ids=str,
)
def test_other_makes_are_refused_by_name(tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    for part in (None, "text_config"):
        own = own_quantization.of(labelled(tmp_path / "base", settings, part=part))
        assert own is not None
        with pytest.raises(ModelError, match=rf"are quantised \({words}\), which is not supported"):
            own_quantization.check(own)


@pytest.mark.parametrize("make", ["fp8", "mxfp4"])
def test_makes_that_are_read_as_plain_weights(tmp_path: Path, make: str) -> None:
    own = own_quantization.of(labelled(tmp_path / "base", {"quant_method": make}))
    assert own is not None
    assert own.held is None
    assert own.options()["quantization_config"].dequantize is True
    own_quantization.check_training(config("lora"), own)
    with pytest.raises(ConfigError, match="cannot be quantised again"):
        own_quantization.check_training(config("qlora"), own)


def test_config_and_files_must_agree(small: Small, tmp_path: Path) -> None:
    silent = shutil.copytree(small("llama", stored="nf4"), tmp_path / "silent")
    settings = json.loads((silent / "config.json").read_text())
    own = settings.pop("quantization_config")
    (silent / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match=r"in 4 bits by bitsandbytes .* config\.json does not say so"):
        own_quantization.of(silent)
    with pytest.raises(ModelError, match="says that the weights are quantised"):
        own_quantization.of(with_settings(small("llama"), tmp_path / "loud", quantization_config=own))


def config(method: str, **settings: object) -> Config:
    pairs = [f"--{name}={value}" for name, value in ({"model": "x", "data": "y"} | settings).items()]
    return asked([method, *pairs], plugins.load({"MLFLOW_FT_PLUGINS": ""}))


def test_what_can_be_trained_on_each_make(tmp_path: Path) -> None:
    four = Own(make="nf4", settings={"load_in_4bit": True}, folder=tmp_path)
    eight = Own(make="int8", settings={"load_in_8bit": True}, folder=tmp_path)
    own_quantization.check_training(config("full"), None)
    own_quantization.check_training(config("qlora"), four)
    own_quantization.check_training(config("dpo", **{"adapter.kind": "lora", "model.quantize": "nf4"}), four)
    own_quantization.check_training(config("lora", **{"model.quantize": "int8"}), eight)
    for method, own, words in (
        ("full", four, "so the weights cannot be trained"),
        ("lora", four, "but model.quantize is none"),
        ("qlora", eight, "but model.quantize is nf4"),
    ):
        with pytest.raises(ConfigError, match=words):
            own_quantization.check_training(config(method), own)
    for name, value in (("model.double_quant", "true"), ("adapter.init_lora_weights", "loftq")):
        with pytest.raises(ConfigError, match=r"double_quant|loftq"):
            own_quantization.check_training(config("qlora", **{name: value}), four)

"""What this machine cannot do is refused before a weight is loaded."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from mlflow_ft.config.schema import Config
from mlflow_ft.engine import capabilities
from mlflow_ft.errors import ConfigError
from mlflow_ft.values.inspected import Caution


def config(**model: object) -> Config:
    return Config.model_validate({"method": "lora", "model": model})


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU can do it")
@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"dtype": "float16"}, "a CPU cannot train in it"),
        ({"attn_implementation": "flash_attention_2"}, "needs a GPU"),
        ({"attn_implementation": "kernels-community/flash-attn3"}, "needs a GPU"),
        ({"attn_implementation": "sdpaa"}, "transformers has no 'sdpaa'"),
    ],
)
def test_a_cpu(model: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        capabilities.check_dtype(config(**model))
        capabilities.check_attention(config(**model))
    assert error.value.hint


@pytest.mark.parametrize("name", [None, "eager", "sdpa", "flex_attention"])
def test_attention_that_every_machine_has(name: str | None) -> None:
    assert capabilities.check_attention(config(attn_implementation=name))


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch can use the GPU")
def test_a_gpu_that_torch_cannot_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capabilities, "GPU_FILES", (str(tmp_path / "none"),))
    assert str(capabilities.check_device()).startswith("CPU")
    monkeypatch.setattr(capabilities, "GPU_FILES", (str(tmp_path),))
    caution = capabilities.check_device()
    assert isinstance(caution, Caution)
    assert "torch cannot use it" in caution.message
    assert f"torch {torch.__version__} was built" in caution.remedy


def test_vllm_needs_a_gpu_and_must_be_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert capabilities.check_rollout("transformers") == "transformers"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="vllm needs a GPU") as error:
        capabilities.check_rollout("vllm")
    assert error.value.hint
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(capabilities, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="vLLM is not installed") as error:
        capabilities.check_rollout("vllm")
    assert "pip install 'trl[vllm]'" in str(error.value.hint)
    monkeypatch.undo()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "__init__.py").touch()
    about = tmp_path / "vllm_cuda-0.31.0.dist-info"  # a build with a name of its own
    about.mkdir()
    (about / "METADATA").write_text("Name: vllm-cuda\nVersion: 0.31.0\n")
    (about / "RECORD").write_text("vllm/__init__.py,,\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert capabilities.check_rollout("vllm") == "vLLM 0.31.0"


def test_bitsandbytes_that_cannot_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert capabilities.check_quantization("nf4").startswith("nf4, by bitsandbytes ")
    before: dict[str, ModuleType] = {name: sys.modules[name] for name in sys.modules if name == "bitsandbytes"}
    monkeypatch.delitem(sys.modules, "bitsandbytes")
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "bitsandbytes.py").write_text("raise OSError('libcudart.so.12: cannot open shared object file')\n")
    with pytest.raises(ConfigError, match=r"nf4 needs bitsandbytes, .* OSError: libcudart\.so\.12"):
        capabilities.check_quantization("nf4")
    sys.modules.update(before)

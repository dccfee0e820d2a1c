"""Other kernels: layers that torch compiles have the gradients as written, and Liger changes only the trained model."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.llama import modeling_llama

from mlflow_ft import plugins
from mlflow_ft.cli.asked import asked
from mlflow_ft.engine import hardware
from mlflow_ft.engine.models import compiled, liger
from mlflow_ft.errors import ConfigError

ROOT = Path(__file__).parents[3]
LOADED = plugins.load({"MLFLOW_FT_PLUGINS": ""})


def config(*words: str) -> Any:
    return asked([*words, "--data=demo", "--model=smollm2-135m"], LOADED, method="lora")


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`tests/engine/compiling.py`, with warnings of torch's own ignored."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.engine.compiling", *arguments]
    whole = {**os.environ, **environment}
    return subprocess.run(command, cwd=ROOT, env=whole, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_gradients_are_those_of_the_layers_as_they_are_written(small: Callable[..., Path]) -> None:
    done = run(str(small("llama")))
    assert done.returncode == 0, done.stderr


def test_compiled_layers_are_not_fused_and_computed_again_by_this_project() -> None:
    plain, compiling = config(), config("--training.compile=true")
    assert hardware.fused(plain)
    assert hardware.recomputing(plain, gpu=False)
    assert not hardware.fused(compiling)
    assert not hardware.recomputing(compiling, gpu=False)


@pytest.mark.slow
def test_it_is_refused_where_torch_cannot_compile(tmp_path: Path) -> None:
    """Before anything is loaded."""
    done = run(CXX="/nowhere/g++", TORCHINDUCTOR_CACHE_DIR=str(tmp_path))
    assert "training.compile: torch cannot compile here" in done.stderr
    assert "No working C++ compiler found" in done.stderr
    assert "install a C++ compiler (g++)" in done.stderr


def test_it_is_refused_with_weights_in_shares() -> None:
    with pytest.raises(ConfigError, match=r"training.compile does not go with launch.strategy fsdp"):
        compiled.check(config("--training.compile=true", "--launch.strategy=fsdp"))


def test_liger_changes_only_the_model_that_is_trained(
    small: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As liger-kernel 0.8 does it: the classes of the architecture, and the layers of the model."""

    class Replaced(modeling_llama.LlamaMLP):  # type: ignore[misc]  # its annotations leave it open
        pass

    def replace(model: Any, kernels: dict[str, bool]) -> None:
        assert not kernels["cross_entropy"]
        modeling_llama.LlamaMLP = Replaced
        for layer in model.model.layers:
            layer.mlp.forward = MethodType(Replaced.forward, layer.mlp)

    monkeypatch.setattr(liger, "apply_liger_kernel", replace)
    own = modeling_llama.LlamaMLP
    model, folder = AutoModelForCausalLM.from_pretrained(small("llama")), small("llama")
    liger.apply(model)
    assert modeling_llama.LlamaMLP is own
    assert "forward" in vars(model.model.layers[0].mlp)
    assert type(AutoModelForCausalLM.from_pretrained(folder).model.layers[0].mlp) is own


def test_liger_is_used_only_where_it_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU is here, and the package is not installed."""
    assert not liger.wanted(config())
    assert not liger.wanted(config("--training.liger=false"))
    with pytest.raises(ConfigError, match=r"training.liger is true, but liger-kernel is not installed"):
        liger.check(config("--training.liger=true"))
    monkeypatch.setattr(liger.util, "find_spec", lambda _: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not liger.wanted(config())
    with pytest.raises(ConfigError, match=r"training.liger is true, but there is no GPU"):
        liger.check(config("--training.liger=true"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert liger.wanted(config())
    with pytest.raises(ConfigError, match=r"training.compile replaces the same layers"):
        liger.check(config("--training.liger=true", "--training.compile=true"))

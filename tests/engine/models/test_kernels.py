"""Other kernels: layers that torch compiles have the gradients as written, and Liger changes only the trained model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
from transformers.models.llama import modeling_llama

from mlflow_ft import plugins
from mlflow_ft.cli.asked import asked
from mlflow_ft.engine import hardware
from mlflow_ft.engine.models import compiled, lean, liger
from mlflow_ft.errors import ConfigError

# torch's compiler uses what torch and Python call deprecated; what it warns of depends on what was imported before
pytestmark = pytest.mark.filterwarnings("ignore")
LOADED = plugins.load({"MLFLOW_FT_PLUGINS": ""})


def config(*words: str) -> Any:
    return asked([*words, "--data=demo", "--model=smollm2-135m"], LOADED, method="lora")


def gradients(model: Any, length: int) -> torch.Tensor:
    model.zero_grad()
    ids = torch.arange(length)[None] % 400
    model(input_ids=ids, labels=ids).loss.backward()
    return torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None])


@pytest.mark.slow
def test_gradients_are_those_of_the_layers_as_they_are_written(small: Callable[..., Path]) -> None:
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(small("llama"), dtype=torch.float32)
    model = get_peft_model(base, LoraConfig(target_modules="all-linear", init_lora_weights=False))
    expected = {length: gradients(model, length) for length in (7, 30)}
    calls = torch._dynamo.utils.counters["frames"]
    calls.clear()
    with lean.passes(model, fused=False, recomputing=False, compiled=True):
        for length, wanted in expected.items():
            torch.testing.assert_close(gradients(model, length), wanted, rtol=1e-4, atol=1e-6)
        compilations = calls["ok"]
    assert compilations
    assert torch.equal(gradients(model, 7), expected[7])
    assert calls["ok"] == compilations, "afterwards nothing is compiled"


def test_compiled_layers_are_not_fused_and_computed_again_by_this_project() -> None:
    plain, compiling = config(), config("--training.compile=true")
    assert hardware.fused(plain)
    assert hardware.recomputing(plain, gpu=False)
    assert not hardware.fused(compiling)
    assert not hardware.recomputing(compiling, gpu=False)


def test_it_is_refused_where_torch_cannot_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nowhere/g++")
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("/nowhere/g++",))
    torch._dynamo.reset()
    monkeypatch.setattr(compiled, "_small", lambda x: torch.cos(x) * 3)  # not in a cache of earlier compilations
    with pytest.raises(ConfigError, match=r"torch cannot compile here: .*No working C\+\+ compiler found") as raised:
        compiled.check(config("--training.compile=true"))
    assert "g++" in str(raised.value)


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


def test_liger_is_used_only_where_it_can_be() -> None:
    """No GPU is here, and the package is not installed."""
    assert not liger.wanted(config())
    assert not liger.wanted(config("--training.liger=false"))
    with pytest.raises(ConfigError, match=r"training.liger is true, but liger-kernel is not installed"):
        liger.check(config("--training.liger=true"))

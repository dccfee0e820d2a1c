"""Mixtures of experts: what is trained, the loss that balances them, and what every form keeps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from mlflow_ft.engine.merging import fold
from mlflow_ft.engine.models import experts, linear, loading
from mlflow_ft.engine.training import trainable
from mlflow_ft.errors import ConfigError, ModelError
from mlflow_ft.stages import start

Small = Callable[..., Path]
Bench = Callable[..., Any]
KINDS = ("qwen3_moe", "mixtral", "gpt_oss", "olmoe", "deepseek_v3", "granitemoe", "jamba", "llama4", "qwen3_next")
FUSED = ["experts.down_proj", "experts.gate_up_proj"]


def loaded(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    state = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as content:
            state |= {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118  # it is not a mapping
    return state


def says(module: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = module.eval()(input_ids=torch.arange(20, 40)[None]).logits
    return logits


# ---- what trains


@pytest.mark.parametrize("kind", KINDS)
def test_experts_and_routers_are_found_by_their_shapes(small: Small, kind: str) -> None:
    module = loaded(small(kind))
    assert experts.parameters(module) == FUSED
    assert {name.rsplit(".", 2)[-1] for name in experts._routers(module)} <= {"gate", "router"}
    assert len(experts._routers(module)) == len(experts.fused(module)) / 2  # one for each layer that has experts
    assert not experts.summary(loaded(small("llama")), by_name=True, all_linear=True, quantize="none")


@pytest.mark.parametrize("kind", ["qwen3_moe", "gpt_oss", "deepseek_v3", "llama4"])
@pytest.mark.parametrize(
    ("method", "settings"),
    [("lora", {}), ("dora", {}), ("qlora", {}), ("lora", {"adapter.target_parameters": "experts"}), ("full", {})],
    ids=["lora", "dora", "qlora", "experts", "full"],
)
def test_what_trains_is_said(bench: Bench, small: Small, kind: str, method: str, settings: dict[str, Any]) -> None:
    setup = bench(method, model=small(kind), **settings)
    module = trainable.prepare(setup.job, setup.data, setup.base).module
    said = experts.summary(module, by_name=method == "lora", all_linear=True, quantize=setup.job.config.model.quantize)
    trained, _, left = said.rpartition(" are trained")
    named = f"the experts ({', '.join(FUSED)})"
    assert (named in trained) is bool(settings or method == "full")
    assert ("the routers" in trained) is (method == "full")
    assert ("--adapter.target_parameters experts" in left) is (method == "lora" and not settings)
    assert ("nf4 is for linear layers only: the experts are float32" in said) is (method == "qlora")
    changed = {name for name, weight in module.named_parameters() if weight.requires_grad}
    assert any("experts" in name for name in changed) is bool(settings or method == "full")
    assert not any(name.endswith(("gate.weight", "router.weight")) for name in changed) or method == "full"


def test_the_experts_of_some_layers(bench: Bench, small: Small) -> None:
    settings = {"adapter.target_parameters": "experts", "adapter.layers_to_transform": "[1]"}
    setup = bench("lora", model=small("qwen3_moe"), **settings)
    module = trainable.prepare(setup.job, setup.data, setup.base).module
    names = [name for name, weight in module.named_parameters() if weight.requires_grad]
    assert names
    assert all(".layers.1." in name for name in names)
    summary = experts.summary(module, by_name=True, all_linear=False, quantize="none")
    assert "experts.down_proj of 1 of 2 layers" in summary


@pytest.mark.parametrize(
    ("method", "settings", "words"),
    [
        ("dora", {}, "PEFT has no DoRA"),
        ("lora", {"adapter.use_dora": "true"}, "PEFT has no DoRA"),
        ("lora", {"adapter.lora_dropout": 0.1}, "no dropout"),
        ("lora", {"adapter.init_lora_weights": "pissa"}, "computed from the weights of layers"),
        ("lora", {"adapter.target_parameters": "[experts.down_proj]", "adapter.layers_to_transform": "[0]"}, "effect"),
        ("ia3", {}, "is not used by it"),
    ],
)
def test_what_cannot_be_done_with_experts_is_refused(
    bench: Bench, small: Small, method: str, settings: dict[str, Any], words: str
) -> None:
    setup = bench(method, model=small("qwen3_moe"), **({"adapter.target_parameters": "experts"} | settings))
    with pytest.raises(ConfigError, match=words):
        start.check_names(setup.job.config, setup.job.registry)


@pytest.mark.parametrize(
    ("kind", "words"),
    [("deepseek_v3", "mlp.down_proj, mlp.gate_proj, mlp.up_proj, shared_experts.down_proj"), ("qwen3_moe", "")],
)
def test_linear_layers_that_all_linear_does_not_reach_are_named(
    bench: Bench, small: Small, kind: str, words: str
) -> None:
    setup = bench("lora", model=small(kind))
    module = trainable.prepare(setup.job, setup.data, setup.base).module
    said = [
        experts.summary(module, by_name=True, all_linear=all_linear, quantize="none") for all_linear in (True, False)
    ]
    assert [("the linear layers" in sentence) for sentence in said] == [bool(words), False]
    assert words in said[0].partition("are not trained")[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("{rank_pattern: {q_prj: 4}}", "adapter.rank_pattern: 'q_prj' matches no adapted layer"),
        ("{alpha_pattern: {down_proj: 4}}", "adapter.alpha_pattern: 'down_proj' matches no adapted layer"),
        ("{target_parameters: [experts.up_proj]}", "adapter.target_parameters: 'experts.up_proj' matches no weight"),
    ],
)
def test_names_that_fit_nothing_are_refused(bench: Bench, small: Small, options: str, words: str) -> None:
    setup = bench("lora", model=small("qwen3_moe"), **{"adapter.options": options})
    with pytest.raises(ModelError) as caught:
        trainable.prepare(setup.job, setup.data, setup.base)
    assert words in str(caught.value)


def test_names_of_transformers_4_mean_the_experts_as_peft_reads_them(bench: Bench, small: Small) -> None:
    """PEFT writes a pattern for the fused weights itself, and warns of it; a pattern for them of the user's is kept."""
    options = "{alpha_pattern: {experts.down_proj: 4}}"
    settings = {"adapter.target_modules": "[q_proj, gate_proj, up_proj, down_proj]", "adapter.options": options}
    setup = bench("lora", model=small("qwen3_moe"), **settings)
    module = trainable.prepare(setup.job, setup.data, setup.base).module
    layers = {name: layer for name, layer in module.named_modules() if hasattr(layer, "parameter_name")}
    ranks = {layer.parameter_name: layer.r["default"] for layer in layers.values()}
    assert ranks == {"down_proj": 16, "gate_up_proj": 32}
    assert {layer.scaling["default"] for layer in layers.values() if layer.parameter_name == "down_proj"} == {4 / 16}


@pytest.mark.parametrize(
    ("kind", "left_out"), [("mamba", "out_proj"), ("llama4", "router"), ("deepseek_v3", "down_proj")]
)
def test_all_linear_leaves_out_what_takes_no_adapter(small: Small, kind: str, left_out: str) -> None:
    names = linear.for_lora(loaded(small(kind)))
    assert names
    assert left_out not in names
    assert linear.for_lora(loaded(small("llama"))) is None


@pytest.mark.parametrize("kind", ["ia3", "beft"])
def test_adapters_find_their_layers_on_models_that_peft_does_not_know(bench: Bench, small: Small, kind: str) -> None:
    for model, name in (("qwen3_moe", "v_proj"), ("deepseek_v3", "kv_b_proj")):
        setup = bench("lora", model=small(model), **{"adapter.kind": kind})
        module = trainable.prepare(setup.job, setup.data, setup.base).module
        names = [other for other, _ in module.named_parameters()]
        assert any(name in other and kind in other for other in names)


# ---- forms made from them


@pytest.mark.parametrize(
    ("kind", "method"), [*((kind, "lora") for kind in KINDS), ("qwen3_moe", "qlora"), ("mixtral", "qlora")]
)
def test_a_merge_tensor_by_tensor_is_that_of_peft(
    bench: Bench, small: Small, tmp_path: Path, kind: str, method: str
) -> None:
    """Bit for bit, under the names of the base's own files, in their own type where transformers keeps it."""
    setup = bench(method, model=small(kind), max_steps=1, learning_rate=1e-2)
    trained = setup.train()
    folder = tmp_path / "merged"
    for dtype in (torch.float32, torch.bfloat16):
        told = fold.fold(setup.job.config, setup.base, trained.adapter, folder=folder / "a", dtype=dtype)
        fold._whole(setup.job.config, setup.base, trained.adapter, folder=folder / "b", dtype=dtype)
        ours, theirs = tensors(folder / "a"), tensors(folder / "b")
        assert told["way"] == "stream", told
        assert ours.keys() == theirs.keys()
        assert ours.keys() == tensors(setup.base.path).keys()
        for name, weight in ours.items():
            assert weight.dtype == theirs[name].dtype, name
            assert torch.equal(weight, theirs[name]), name
        fold.journal_files.clear(folder / "a")
    exact = {name for name, weight in ours.items() if weight.dtype == torch.float32}
    assert bool(exact) is (kind == "deepseek_v3")
    assert all(name.endswith("e_score_correction_bias") for name in exact)


@pytest.mark.parametrize(
    ("kind", "method"), [("qwen3_moe", "lora"), ("mixtral", "qlora"), ("gpt_oss", "lora"), ("granitemoe", "lora")]
)
def test_adapted_experts_come_back_and_are_merged(
    bench: Bench, small: Small, tmp_path: Path, kind: str, method: str
) -> None:
    settings = {"adapter.target_parameters": "experts", "package.dtype": "float32"}
    setup = bench(method, model=small(kind), max_steps=3, learning_rate=3e-2, **settings)
    model = trainable.prepare(setup.job, setup.data, setup.base)
    trained = setup.job.registry.trainers[method].train(setup.job, setup.data, model)
    wanted, bare = says(model.module), says(loading.load_base(setup.job.config, setup.base))
    assert not torch.allclose(wanted, bare, atol=1e-3)
    assert torch.allclose(says(loading.load_trained(setup.job, setup.data, trained)), wanted, atol=1e-5)
    fold.merge(setup.job, trained, tmp_path / "merged")
    assert torch.allclose(says(loaded(tmp_path / "merged")), wanted, atol=1e-5)
    assert json.loads((tmp_path / "merged" / "config.json").read_text()).get("output_router_logits") is not True

"""The streaming merge: PEFT's bits if PEFT is right, else the trained model's, and never half a file."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from mlflow_ft.engine.merging import fold, journal_files, stream_merge
from mlflow_ft.engine.merging.rounding import Rounding
from mlflow_ft.engine.merging.stream_merge import Merge
from mlflow_ft.engine.merging.tensor_files import Entry, ModelFiles, shards, write
from mlflow_ft.engine.models import loading
from mlflow_ft.engine.models.skeleton import LAYERWISE, UnsuitedError
from mlflow_ft.engine.training import sft, trainable
from mlflow_ft.errors import ModelError, RefusedError
from tests.engine.conftest import lay
from tests.rarely import some_always
from tests.test_adapters import ADAPTERS, NEEDED

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning", "ignore:.*:FutureWarning")
IDS = torch.arange(20)[None]
EXACT = torch.float32


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random models of two layers in bfloat16: output layer apart, tied, with biases, and with transposed weights."""
    root = tmp_path_factory.mktemp("bases")
    size = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    llama: dict[str, Any] = size | {"num_attention_heads": 4, "num_key_value_heads": 2}
    torch.manual_seed(1)
    made: dict[str, Any] = {
        "plain": LlamaForCausalLM(LlamaConfig(**llama)),
        "tied": LlamaForCausalLM(LlamaConfig(**llama, tie_word_embeddings=True)),
        "biased": LlamaForCausalLM(LlamaConfig(**llama, attention_bias=True, mlp_bias=True)),
        "gpt2": GPT2LMHeadModel(GPT2Config(vocab_size=300, n_embd=64, n_layer=2, n_head=4, n_positions=64)),
    }
    for name, model in made.items():
        model.to(torch.bfloat16).save_pretrained(root / name)
    return {name: root / name for name in made}


def load(base: Path, *, rows: int = 0) -> Any:
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if rows:
        model.resize_token_embeddings(rows, mean_resizing=False)
    return model


def adapter(base: Path, folder: Path, *, rows: int = 0, seed: int = 0, **settings: Any) -> torch.Tensor:
    """Write an adapter with PEFT alone, with random weights; return the model's output with it."""
    torch.manual_seed(seed)
    usual = {"r": 4, "target_modules": "all-linear", "init_lora_weights": False, "task_type": "CAUSAL_LM"}
    wrapped: Any = get_peft_model(load(base, rows=rows), LoraConfig(**(usual | settings)))
    with torch.no_grad():
        for name, weight in wrapped.named_parameters():
            if weight.requires_grad and "lora_A" not in name and "lora_B" not in name:
                weight.add_(0.05 * torch.randn_like(weight))
    wrapped.save_pretrained(folder)
    return says(wrapped)


@torch.no_grad()
def says(model: Any) -> torch.Tensor:
    logits: torch.Tensor = model.eval()(input_ids=IDS).logits
    return logits


def by_peft(base: Path, folder: Path, out: Path, *, dtype: torch.dtype = EXACT, rows: int = 0) -> dict[str, Any]:
    merged: Any = PeftModel.from_pretrained(load(base, rows=rows), folder).merge_and_unload(safe_merge=True)
    merged.to(dtype).save_pretrained(out)
    return load_file(out / "model.safetensors")


def by_stream(base: Path, folder: Path, out: Path, *, dtype: torch.dtype = EXACT, **more: Any) -> dict[str, Any]:
    stream_merge.write(stream_merge.plan(Merge(base=base, adapter=folder, dtype=dtype, **more)), out)
    return load_file(out / "model.safetensors")


def same(first: dict[str, Any], second: dict[str, Any]) -> None:
    assert set(first) == set(second)
    for name, weight in first.items():
        assert weight.dtype == second[name].dtype, name
        assert torch.equal(weight, second[name]), name


PATTERNS = {"rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 8}, "alpha_pattern": {"k_proj": 3}}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("plain", {}),
    ("plain", {"use_rslora": True}),
    ("plain", {"use_dora": True}),
    ("plain", PATTERNS),
    ("plain", {"modules_to_save": ["lm_head"]}),
    ("plain", {"modules_to_save": ["embed_tokens", "lm_head"]}),
    ("plain", {"trainable_token_indices": [2, 3]}),
    ("plain", {"target_modules": ["embed_tokens", "lm_head", "q_proj"]}),
    ("plain", {"target_modules": ["embed_tokens"], "use_dora": True}),
    ("plain", {"layers_to_transform": [1], "target_modules": ["q_proj"]}),
    ("plain", {"init_lora_weights": "orthogonal"}),
    ("tied", {}),
    ("tied", {"modules_to_save": ["model.embed_tokens"], "ensure_weight_tying": True}),
    ("tied", {"modules_to_save": ["lm_head"]}),
    ("tied", {"trainable_token_indices": [2, 3]}),
    ("biased", {"bias": "all"}),
    ("biased", {"bias": "lora_only"}),
    ("biased", {"lora_bias": True}),
    ("gpt2", {"fan_in_fan_out": True, "target_modules": ["c_attn", "c_fc", "c_proj"]}),
    ("gpt2", {"fan_in_fan_out": True, "target_modules": ["c_attn"], "use_dora": True}),
]


@pytest.mark.parametrize(("name", "settings"), CASES, ids=str)
def test_an_adapter_of_pefts_own_is_merged_to_the_same_bits(
    bases: dict[str, Path], tmp_path: Path, name: str, settings: dict[str, Any]
) -> None:
    said = adapter(bases[name], tmp_path / "adapter", **settings)
    merged = by_stream(bases[name], tmp_path / "adapter", tmp_path / "out")
    same(merged, by_peft(bases[name], tmp_path / "adapter", tmp_path / "peft"))
    torch.testing.assert_close(says(load(tmp_path / "out")), said, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("settings", [{}, {"use_dora": True}], ids=str)
def test_rounding_comes_once_at_the_end(
    bases: dict[str, Path], tmp_path: Path, dtype: torch.dtype, settings: dict[str, Any]
) -> None:
    adapter(bases["plain"], tmp_path / "adapter", **settings)
    merged = by_stream(bases["plain"], tmp_path / "adapter", tmp_path / "out", dtype=dtype)
    same(merged, by_peft(bases["plain"], tmp_path / "adapter", tmp_path / "peft", dtype=dtype))
    assert {weight.dtype for weight in merged.values()} == {dtype}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == config["torch_dtype"] == str(dtype).removeprefix("torch.")


@pytest.mark.parametrize("name", ["plain", "tied"])
@pytest.mark.parametrize("settings", [{}, {"modules_to_save": ["embed_tokens"]}, {"trainable_token_indices": [305]}])
def test_resized_embeddings_come_from_the_adapter(
    bases: dict[str, Path], tmp_path: Path, name: str, settings: dict[str, Any]
) -> None:
    """PEFT itself cannot load such an adapter onto the base."""
    said = adapter(bases[name], tmp_path / "adapter", rows=310, **settings)
    merged = by_stream(bases[name], tmp_path / "adapter", tmp_path / "out")
    assert len(merged["model.embed_tokens.weight"]) == 310
    torch.testing.assert_close(says(load(tmp_path / "out")), said, rtol=1e-4, atol=1e-4)


TORN = [
    {"target_modules": ["embed_tokens", "q_proj"]},
    {"target_modules": ["lm_head", "q_proj"]},
    {"target_modules": ["embed_tokens", "lm_head"]},
    {"target_modules": ["embed_tokens"], "use_dora": True},
]


@pytest.mark.parametrize("settings", TORN, ids=str)
def test_an_adapter_over_one_of_two_tied_layers_unties_them(
    bases: dict[str, Path], tmp_path: Path, settings: dict[str, Any]
) -> None:
    """PEFT applies the change of one layer to the other, so its merged model differs from the trained one."""
    said = adapter(bases["tied"], tmp_path / "adapter", **settings)
    by_stream(bases["tied"], tmp_path / "adapter", tmp_path / "out")
    merged = load(tmp_path / "out")
    assert merged.lm_head.weight is not merged.model.embed_tokens.weight
    torch.testing.assert_close(says(merged), said, rtol=1e-4, atol=1e-4)
    by_peft(bases["tied"], tmp_path / "adapter", tmp_path / "peft")
    assert (says(load(tmp_path / "peft")) - said).abs().max() > 1


@pytest.mark.parametrize(
    "kind",
    some_always(
        [name for name in ADAPTERS if ADAPTERS[name].merges],
        *("lora", "dora", "adalora", "loha", "oft", "ia3", "trainable-tokens"),
    ),
)
def test_every_kind_that_streams_gives_pefts_bits(tiny_model: Path, tmp_path: Path, kind: str) -> None:
    given = {"max_steps": 2, "learning_rate": 1e-2, "adapter.kind": kind} | NEEDED.get(kind, {})
    setup = lay(tmp_path / "job", "lora", **({"model": tiny_model} | given))
    left = sft.train(setup.job, setup.data, trainable.prepare(setup.job, setup.data, setup.base))
    assert left.adapter is not None
    wanted = Merge(base=setup.base.path, adapter=left.adapter, dtype=EXACT)
    type_of = json.loads((left.adapter / "adapter_config.json").read_text())["peft_type"]
    if type_of not in LAYERWISE:
        with pytest.raises(UnsuitedError, match=type_of):
            stream_merge.plan(wanted)
        return
    stream_merge.write(stream_merge.plan(wanted), tmp_path / "out")
    fold._whole(setup.job.config, setup.base, left.adapter, folder=tmp_path / "peft", dtype=EXACT)
    merged = load_file(tmp_path / "out" / "model.safetensors")
    same(merged, load_file(tmp_path / "peft" / "model.safetensors"))
    before = load_file(tiny_model / "model.safetensors")
    assert any(not torch.equal(merged[name], weight) for name, weight in before.items())


@pytest.mark.parametrize("begin", ["pissa", "olora"])
def test_an_adapter_that_has_changed_its_base_is_left_to_peft(
    bases: dict[str, Path], tmp_path: Path, begin: str
) -> None:
    adapter(bases["plain"], tmp_path / "adapter", init_lora_weights=begin)
    with pytest.raises(UnsuitedError, match=begin):
        stream_merge.plan(Merge(base=bases["plain"], adapter=tmp_path / "adapter", dtype=EXACT))


def rename(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda w: {name.replace("q_proj", "query"): weight for name, weight in w.items()},
            "has another name in the model",
        ),
        (
            lambda w: {name: weight[:, :32].contiguous() if "down" in name else weight for name, weight in w.items()},
            "in the model",
        ),
    ],
    ids=["another name", "another shape"],
)
def test_a_base_whose_names_are_not_the_models_is_left_to_peft(
    tmp_path: Path, bases: dict[str, Path], change: Any, words: str
) -> None:
    load(bases["plain"]).to(torch.bfloat16).save_pretrained(tmp_path / "base")
    adapter(bases["plain"], tmp_path / "adapter")
    rename(tmp_path / "base", change)
    with pytest.raises(UnsuitedError, match=words):
        stream_merge.plan(Merge(base=tmp_path / "base", adapter=tmp_path / "adapter", dtype=EXACT))


def test_an_adapter_without_some_of_its_weights_is_noticed(bases: dict[str, Path], tmp_path: Path) -> None:
    adapter(bases["plain"], tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    weights = load_file(file)
    weights.pop(next(name for name in weights if "lora_B" in name))
    save_file(weights, file)
    with pytest.raises(ModelError, match="1 of the 28 weights that its config requires are not in the file"):
        stream_merge.plan(Merge(base=bases["plain"], adapter=tmp_path / "adapter", dtype=EXACT))


def test_weights_that_are_not_finite_are_refused(bases: dict[str, Path], tmp_path: Path) -> None:
    adapter(bases["plain"], tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    weights = load_file(file)
    name = next(name for name in weights if "lora_B" in name)
    save_file(weights | {name: torch.full_like(weights[name], torch.inf)}, file)
    with pytest.raises(ModelError, match=r"NaN or infinite values in 1 of 28 tensors"):
        by_stream(bases["plain"], tmp_path / "adapter", tmp_path / "out")


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.q_proj.weight", "model.norm.weight"])
def test_values_of_the_base_that_are_not_finite_are_not_blamed_on_the_adapter(
    bases: dict[str, Path], tmp_path: Path, name: str
) -> None:
    base = shutil.copytree(bases["plain"], tmp_path / "base")
    rename(base, lambda w: w | {name: torch.full_like(w[name], torch.nan)})
    adapter(bases["plain"], tmp_path / "adapter")
    with pytest.raises(ModelError, match=f"{name} in the base's files contains NaN") as caught:
        by_stream(base, tmp_path / "adapter", tmp_path / "out")
    assert "download the base again" in caught.value.hint


def test_an_overflow_in_a_narrower_type_is_one_of_the_adapter(bases: dict[str, Path], tmp_path: Path) -> None:
    adapter(bases["plain"], tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    weights = load_file(file)
    name = next(name for name in weights if "lora_B" in name)
    save_file(weights | {name: torch.full_like(weights[name], 1e6)}, file)
    with pytest.raises(RefusedError, match=r"NaN or infinite values in torch\.float16") as caught:
        by_stream(bases["plain"], tmp_path / "adapter", tmp_path / "out", dtype=torch.float16)
    assert caught.value.hint == "the adapter may be damaged; --dtype float32 rules out an overflow"


@pytest.mark.parametrize("quantize", ["nf4", "nf4 single", "int8"])
@pytest.mark.parametrize("held", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["plain", "tied", "biased", "gpt2"])
def test_a_tensor_alone_is_rounded_as_in_the_whole_model(
    bench: Callable[..., Any], bases: dict[str, Path], name: str, held: torch.dtype, quantize: str
) -> None:
    setup = bench("lora", **{"model.quantize": quantize[:4].strip(), "model.double_quant": "single" not in quantize})
    quantiser = loading.quantization(setup.job.config, held)
    assert quantiser is not None
    model: Any = AutoModelForCausalLM.from_pretrained(
        bases[name], quantization_config=quantiser, dtype=held, device_map={"": "cpu"}
    )
    whole = {key: weight.float() for key, weight in model.dequantize(dtype=torch.float32).state_dict().items()}
    files, rounding = ModelFiles(bases[name]), Rounding(bases[name], quantiser, held=held)
    rounded = 0
    for key in files.places:
        weight = rounding(key, files.read(key))
        turned = name == "gpt2" and key in rounding  # transformers leaves those the other way round
        assert torch.equal(weight.T if turned else weight, whole[key]), key
        rounded += not torch.equal(weight, files.read(key).float())
    assert rounded == sum(key in rounding for key in files.places) == (8 if name == "gpt2" else 14)


@pytest.mark.parametrize("quantize", ["nf4", "int8"])
def test_both_ways_of_merging_beside_a_quantised_base_agree(
    bench: Callable[..., Any], tmp_path: Path, quantize: str
) -> None:
    setup = bench("lora", **{"model.quantize": quantize, "max_steps": 2, "learning_rate": 1e-2})
    trained = setup.train()
    merged = {}
    for original in (False, True):
        folder = tmp_path / str(original)
        report = fold.fold(setup.job.config, setup.base, trained.adapter, folder=folder, dtype=EXACT, original=original)
        assert report["way"] == "stream"
        merged[original] = load_file(folder / "model.safetensors")
    fold._whole(setup.job.config, setup.base, trained.adapter, folder=tmp_path / "peft", dtype=EXACT)
    same(merged[False], load_file(tmp_path / "peft" / "model.safetensors"))
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(merged[True][name], merged[False][name])


def test_shards_are_what_transformers_reads(bases: dict[str, Path], tmp_path: Path) -> None:
    said = adapter(bases["plain"], tmp_path / "adapter")
    plan = stream_merge.plan(Merge(base=bases["plain"], adapter=tmp_path / "adapter", dtype=EXACT))
    report = stream_merge.write(plan, tmp_path / "out", shard=60_000)
    files = sorted(file.name for file in (tmp_path / "out").glob("*.safetensors"))
    assert len(files) == report["shards"] > 3
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    torch.testing.assert_close(says(load(tmp_path / "out")), said, rtol=1e-4, atol=1e-4)
    again = stream_merge.write(plan, tmp_path / "out", shard=60_000)
    assert again["resumed"] == report["shards"]
    (tmp_path / "out" / files[1]).write_bytes(b"something else")
    assert stream_merge.write(plan, tmp_path / "out", shard=60_000)["resumed"] == report["shards"] - 1
    journal_files.clear(tmp_path / "out")
    assert stream_merge.write(plan, tmp_path / "out", shard=60_000)["resumed"] == 0


def test_a_base_in_several_files_is_read(bases: dict[str, Path], tmp_path: Path) -> None:
    load(bases["plain"]).to(torch.bfloat16).save_pretrained(tmp_path / "base", max_shard_size="40KB")
    assert len(list((tmp_path / "base").glob("*.safetensors"))) > 2
    adapter(bases["plain"], tmp_path / "adapter")
    merged = by_stream(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    same(merged, by_stream(bases["plain"], tmp_path / "adapter", tmp_path / "whole"))


def test_a_written_file_is_what_safetensors_reads(tmp_path: Path) -> None:
    weights = {
        "a": torch.randn(3, 5).to(torch.bfloat16),
        "b": torch.randn(7),
        "c": torch.tensor([1, 2, 3]),
        "d": torch.empty(0, 4),
        "e": torch.tensor(2.5),
        "f": torch.randn(4, 6).T,
    }
    entries = [Entry(name=name, shape=tuple(weight.shape), dtype=weight.dtype) for name, weight in weights.items()]
    write(tmp_path / "file.safetensors", entries, lambda entry: weights[entry.name])
    same(load_file(tmp_path / "file.safetensors"), weights)


def test_a_tensor_larger_than_a_file_may_be_has_one_of_its_own() -> None:
    entries = [Entry(name=str(number), shape=(size,), dtype=torch.int8) for number, size in enumerate((4, 20, 4, 4))]
    files = shards(entries, limit=10)
    assert [[entry.size for entry in group] for group in files.values()] == [[4], [20], [4, 4]]
    assert list(shards(entries, limit=100)) == ["model.safetensors"]


PROGRAM = """
import sys, torch
from pathlib import Path
from mlflow_ft.engine.merging import stream_merge
from mlflow_ft.engine.merging.stream_merge import Merge
folder, base = Path(sys.argv[1]), Path(sys.argv[2])
plan = stream_merge.plan(Merge(base=folder / "small", adapter=folder / "small-adapter", dtype=torch.bfloat16))
stream_merge.write(plan, folder / "small-out")
def held(kind):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(kind + ":"))
before = held("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
plan = stream_merge.plan(Merge(base=base, adapter=folder / "adapter", dtype=torch.bfloat16))
stream_merge.write(plan, folder / "out", shard=10**8)
print(held("VmHWM") - before)
"""


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """A model of 300 MB whose largest weight is 6 MB in float32: a small part of it is ever there.

    `getrusage` would tell the peak of the process that started this one, too.
    """
    config: dict[str, Any] = {"vocab_size": 300, "hidden_size": 768, "intermediate_size": 2048}
    config |= {"num_attention_heads": 12, "num_key_value_heads": 12}
    for layers, name in ((1, "small"), (21, "base")):
        with torch.device("meta"):
            model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=layers, **config)).to(torch.bfloat16)
        model = model.to_empty(device="cpu")
        for weight in model.parameters():
            weight.data.normal_(0, 0.02)
        model.save_pretrained(tmp_path / name)
        wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=["down_proj"], task_type="CAUSAL_LM"))
        wrapped.save_pretrained(tmp_path / ("adapter" if name == "base" else "small-adapter"))
    size = (tmp_path / "base" / "model.safetensors").stat().st_size
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), str(tmp_path / "base")]
    process = subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=300)
    grown = int(process.stdout.split()[-1]) * 1024
    assert size > 250 * 10**6
    assert grown < size / 3, "a whole model in memory, or a half of it, would show"


def test_the_package_stage_never_takes_over_shards_of_another_training(
    bench: Callable[..., Any], tmp_path: Path
) -> None:
    first = bench("lora", max_steps=1, learning_rate=1e-2)
    trained = first.train()
    folder = tmp_path / "package"
    fold.merge(first.job, trained, folder)
    weights = load_file(folder / "model.safetensors")
    second = bench("lora", max_steps=3, learning_rate=1e-2)
    fold.merge(second.job, replace(second.train(), base=first.base), folder)
    other = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(weights[name], other[name])
    assert not list(tmp_path.glob("*.journal"))

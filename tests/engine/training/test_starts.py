"""Initialisation of adapters: LoftQ's correction of rounding, a text's embeddings, EVA's batches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from mlflow_ft.engine.judging import parity
from mlflow_ft.engine.judging import reference as model_reference
from mlflow_ft.engine.models import loading
from mlflow_ft.engine.training import starts, trainable
from mlflow_ft.errors import ConfigError, ModelError

Bencher = Callable[..., Any]


def prepared(setup: Any) -> Any:
    return trainable.prepare(setup.job, setup.data, setup.base)


def test_loftq_of_full_rank_takes_all_of_the_rounding_back(bench: Bencher, tmp_path: Path) -> None:
    """W - Q(W) has at most 64 dimensions here: the nf4 base with its adapter must be the float model again."""
    exact, plain = bench("lora"), bench("lora", **{"model.quantize": "nf4"})
    settings = {"model.quantize": "nf4", "adapter.init_lora_weights": "loftq"}
    reference = tmp_path / "exact.safetensors"
    model_reference.keep(loading.load_base(exact.job.config, exact.base), exact.data, reference)
    rounded = parity.compare(loading.load_base(plain.job.config, plain.base), reference)["kl_mean"]
    half = parity.compare(prepared(bench("lora", **settings, **{"adapter.r": 32})).module.eval(), reference)["kl_mean"]
    whole = parity.compare(prepared(bench("lora", **settings, **{"adapter.r": 64})).module.eval(), reference)["kl_mean"]
    assert whole < 1e-9 < half < rounded


def test_loftq_and_weights_of_other_names(bench: Bencher, tmp_path: Path) -> None:
    setup = bench("lora", **{"model.quantize": "nf4", "adapter.init_lora_weights": "loftq"})
    wrapped = prepared(setup).module
    with pytest.raises(ModelError, match="has no weight"):
        starts._correct_rounding(wrapped, tmp_path)


BEGINNINGS = ("pissa", "olora", "corda", "lora_ga", "eva", "mica", "orthogonal")


@pytest.mark.parametrize(
    ("kind", "begin"),
    [*(("llama", begin) for begin in BEGINNINGS), *(("gpt2", begin) for begin in BEGINNINGS if begin != "olora")],
)
def test_before_the_first_step_the_model_is_the_base(
    bench: Bencher, tmp_path: Path, small: Callable[..., Path], kind: str, begin: str
) -> None:
    setup = bench("lora", model=small(kind), **{"adapter.init_lora_weights": begin, "adapter.r": 4})
    reference = tmp_path / "base.safetensors"
    model_reference.keep(loading.load_base(setup.job.config, setup.base), setup.data, reference)
    assert parity.compare(prepared(setup).module.eval(), reference)["kl_max"] < 1e-6


def test_a_prompt_begins_with_the_texts_embeddings(bench: Bencher) -> None:
    setup = bench("prompt", **{"adapter.init_text": "red green", "adapter.num_virtual_tokens": 5})
    module = prepared(setup).module
    ids = setup.data.tokenizer("red green", add_special_tokens=False)["input_ids"]
    tiled = torch.tensor((ids * 5)[:5])
    base = AutoModelForCausalLM.from_pretrained(setup.base.path)
    wanted = base.get_input_embeddings().weight[tiled]
    torch.testing.assert_close(module.prompt_encoder["default"].embedding.weight, wanted)


def test_without_a_text_it_begins_with_tokens_of_the_vocabulary(bench: Bencher) -> None:
    module = prepared(bench("prompt")).module
    known = module.word_embeddings.weight
    prompt = module.prompt_encoder["default"].embedding.weight
    assert all(bool((known == row).all(dim=1).any()) for row in prompt)
    assert module.peft_config["default"].tokenizer_name_or_path is None  # nothing to look for when it is loaded


def test_eva_of_more_components_than_learned_tokens_is_refused_not_endless(bench: Bencher) -> None:
    setup = bench("lora", **{"adapter.init_lora_weights": "eva", "adapter.r": 48})
    with pytest.raises(ConfigError, match="96 components"):
        prepared(setup)


def test_the_first_weights_are_kept_only_while_they_are_needed(bench: Bencher) -> None:
    setup = bench("lora", **{"adapter.init_lora_weights": "pissa"})
    module = prepared(setup)
    assert (setup.job.folder / starts.BEGINNING).is_file()
    starts.save(module.module, setup.job.folder / "adapter", beginning=setup.job.folder)
    assert not (setup.job.folder / starts.BEGINNING).exists()


@pytest.mark.parametrize(
    ("kind", "setting", "words", "hint"),
    [
        ("lora", {"target_modules": "[q_proj, gate_porj]"}, "'gate_porj' matches no layer", "gate_proj"),
        ("ia3", {"target_modules": "[q_proj, gate_porj]"}, "'gate_porj' matches no layer", "gate_proj"),
        ("lora", {"layers_to_transform": "[0, 2]"}, "the model has no layer 2", "0 to 1"),
        ("lora", {"modules_to_save": "[lm_head, lm_haed]"}, "'lm_haed' matches no module", "lm_head"),
        ("lora", {"options": "exclude_modules=[gate_porj]"}, "'gate_porj' matches no layer", "gate_proj"),
        ("lora", {"options": '{rank_pattern: {"*": 2}}'}, "nothing to repeat", "adapter.options"),
    ],
)
def test_what_the_model_lacks_is_refused_beside_what_it_has(
    bench: Bencher, kind: str, setting: dict[str, str], words: str, hint: str
) -> None:
    setup = bench("sft", **{"adapter.kind": kind} | {f"adapter.{name}": value for name, value in setting.items()})
    with pytest.raises(ModelError, match=words) as error:
        prepared(setup)
    assert hint in str(error.value.hint)


def test_a_layer_that_is_trained_in_full_needs_no_adapter(bench: Bencher) -> None:
    settings = {"adapter.target_modules": "[q_proj, lm_head]", "adapter.modules_to_save": "[lm_head]"}
    names = [name for name, weight in prepared(bench("lora", **settings)).module.named_parameters()]
    assert any("lm_head.modules_to_save" in name for name in names)


def test_numbers_of_layers_on_a_model_whose_layers_are_transposed(bench: Bencher, small: Callable[..., Path]) -> None:
    """GPT-2's linear layers are transformers' own."""
    module = prepared(bench("lora", model=small("gpt2"), **{"adapter.layers_to_transform": "[1]"})).module
    adapted = {name.partition(".lora_A")[0] for name, _ in module.named_parameters() if ".lora_A." in name}
    assert {name.rpartition(".")[2] for name in adapted} == {"c_attn", "c_fc", "c_proj"}
    assert all(".h.1." in name for name in adapted)


def test_an_initialisation_that_peft_computes_wrongly_is_refused(bench: Bencher, small: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match="olora: PEFT takes the weights"):
        prepared(bench("lora", model=small("gpt2"), **{"adapter.init_lora_weights": "olora"}))

"""The PEFT config that is made is the one that was asked for; what means nothing to a kind is refused with a reason."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import peft
import pytest

from mlflow_ft import plugins
from mlflow_ft.builtin.adapters.tuners import OF_PEFT, Tuner
from mlflow_ft.config.methods import AdapterSection
from mlflow_ft.engine.models import loading
from mlflow_ft.engine.training import trainable
from mlflow_ft.errors import ConfigError, FineTuneError
from mlflow_ft.registry import Registry
from mlflow_ft.stages import start
from mlflow_ft.values import Model
from tests.engine.conftest import Bench, lay

REGISTRY = Registry(plugins.load({"MLFLOW_FT_PLUGINS": ""}))
TUNERS: dict[str, Tuner] = {
    adapter.name: adapter.configure.args[0] for adapter in REGISTRY.adapters if adapter.name != "none"
}  # type: ignore[attr-defined]  # a partial
Bencher = Callable[..., Bench]


@pytest.fixture
def bench(tiny_model: Any, tmp_path: Any) -> Bencher:
    return lambda method, **settings: lay(tmp_path / "job", method, model=tiny_model, **settings)


def made(setup: Bench) -> Any:
    """The PEFT config for a bench's settings."""
    base = loading.load_base(setup.job.config, setup.base)
    adapter = setup.job.registry.adapters[setup.job.config.adapter.kind]
    return adapter.configure(setup.job, Model(base=setup.base, module=base, trainable=0, total=0))


def refused(setup: Bench) -> str:
    with pytest.raises(ConfigError) as caught:
        start.check_method(setup.job.config, setup.job.registry)
    return str(caught.value)


@pytest.mark.parametrize("kind", TUNERS)
def test_settings_are_fields_of_the_sections_on_both_sides(kind: str) -> None:
    tuner = TUNERS[kind]
    fields = {field.name for field in dataclasses.fields(getattr(peft, tuner.config))}
    assert set(tuner.settings) <= set(AdapterSection.model_fields)
    assert {name for name in tuner.settings.values() if name} <= fields
    assert {*tuner.fixed, *OF_PEFT} <= fields | {"auto_mapping"}


@pytest.mark.parametrize("kind", ["none", *TUNERS])
def test_every_adapter_says_what_it_is_for(kind: str) -> None:
    record = REGISTRY.adapters[kind]
    assert record.use_for
    assert record.memory
    assert any(name.startswith(("training.", "adapter.")) for name in record.ranges)
    assert not record.learned_prompt or not record.merges


@pytest.mark.parametrize(("given", "alpha"), [({"r": 8}, 16), ({"r": 8, "lora_alpha": 5}, 5), ({}, 32)])
def test_alpha_is_twice_the_rank_where_it_is_not_given(bench: Bencher, given: dict[str, Any], alpha: float) -> None:
    assert made(bench("lora", **{f"adapter.{name}": value for name, value in given.items()})).lora_alpha == alpha


def test_every_setting_reaches_peft(bench: Bencher) -> None:
    config = made(
        bench(
            "lora",
            **{
                "adapter.r": 3,
                "adapter.lora_dropout": 0.25,
                "adapter.target_modules": "[q_proj]",
                "adapter.layers_to_transform": "[1]",
                "adapter.use_rslora": "true",
                "adapter.use_dora": "true",
                "adapter.options": "bias=lora_only",
            },
        )
    )
    assert (config.r, config.lora_dropout, set(config.target_modules)) == (3, 0.25, {"q_proj"})
    assert (config.use_rslora, config.use_dora, config.bias) == (True, True, "lora_only")
    assert config.layers_to_transform == [1]
    assert config.task_type == "CAUSAL_LM"


def test_all_linear_layers_by_name_where_only_some_layers_get_an_adapter(bench: Bencher) -> None:
    assert made(bench("lora")).target_modules == "all-linear"
    config = made(bench("lora", **{"adapter.layers_to_transform": "[1]"}))
    assert {"q_proj", "down_proj"} < set(config.target_modules)
    assert "lm_head" not in config.target_modules


def test_none_makes_no_adapter(bench: Bencher) -> None:
    assert made(bench("full")) is None


@pytest.mark.parametrize(
    ("kind", "setting", "value"),
    [
        ("prompt", "use_dora", "true"),
        ("ia3", "r", 8),
        ("lora", "num_virtual_tokens", 8),
        ("lora", "init_text", "be kind"),
        ("oft", "lora_alpha", 8),
        ("dora", "use_dora", "true"),
        ("none", "r", 8),
    ],
)
def test_a_setting_that_means_nothing_to_a_kind_is_refused(bench: Bencher, kind: str, setting: str, value: Any) -> None:
    words = refused(bench("lora", **{"adapter.kind": kind, f"adapter.{setting}": value}))
    assert f"adapter.{setting} is not used" in words


def test_the_methods_own_settings_are_not_the_users_mistake(bench: Bencher) -> None:
    setup = bench("lora", **{"adapter.kind": "prompt"})  # lora sets adapter.r
    start.check_method(setup.job.config, setup.job.registry)


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        ("lora", {"adapter.options": "rr=4"}, "did you mean r"),
        ("lora", {"adapter.options": "r=4"}, "has its own setting"),
        ("lora", {"adapter.init_lora_weights": "pisa"}, "did you mean pissa"),
        ("lora", {"adapter.init_lora_weights": "pissa_niter_x"}, "is not one of"),
        ("lora", {"adapter.init_lora_weights": "pissa", "model.quantize": "nf4"}, "nf4 has rounded"),
        ("lora", {"adapter.init_lora_weights": "olora", "adapter.use_dora": "true"}, "leave one of them out"),
        ("lora", {"adapter.init_lora_weights": "loftq"}, "--model.quantize nf4"),
        ("dora", {"model.quantize": "int8"}, "int8"),
        ("lora", {"adapter.use_dora": "true", "model.quantize": "int8"}, "int8"),
        ("hra", {"model.quantize": "nf4"}, "on a base in nf4"),
        ("vera", {"model.add_tokens": "[<a>]"}, "model.add_tokens"),
        ("trainable-tokens", {}, "name the tokens"),
        ("cpt", {}, "adapter.init_text"),
        ("ia3", {"adapter.target_modules": ".*_proj"}, "as a list"),
        ("prefix", {"gradient_checkpointing": "true"}, "--training.gradient_checkpointing false"),
        ("prompt", {"objective.packing": "true"}, "objective.packing"),
        ("prompt", {"package.packagers": "[merged]"}, "cannot be merged"),
        ("lily", {"package.packagers": "[adapter, merged]"}, "cannot be merged"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_loaded(
    bench: Bencher, kind: str, settings: dict[str, Any], words: str
) -> None:
    assert words in refused(bench("lora", **{"adapter.kind": kind}, **settings))


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        ("lora", {"adapter.options": "rank_pattern={qq_proj: 4}"}, "qq_proj"),
        ("lora", {"adapter.target_modules": "no_such_layer"}, "no_such_layer"),
        ("lora", {"adapter.layers_to_transform": "[7]"}, "has no layer 7"),
        ("prompt", {"adapter.init_text": "red green blue", "adapter.num_virtual_tokens": 1}, "num_virtual_tokens"),
        ("oft", {"adapter.options": "oft_block_size=7"}, "oft_block_size"),
        ("gralora", {"adapter.r": 3}, "divisible"),
    ],
)
def test_what_the_model_cannot_take_is_an_error_with_a_remedy(
    bench: Bencher, kind: str, settings: dict[str, Any], words: str
) -> None:
    setup = bench("lora", **{"adapter.kind": kind}, **settings)
    with pytest.raises(FineTuneError) as caught:
        trainable.prepare(setup.job, setup.data, setup.base)
    assert words in str(caught.value)
    assert caught.value.hint


def test_blocks_that_do_not_divide_the_layers_become_smaller(bench: Bencher) -> None:
    """The tiny model's sides are 32, 64 and 128."""
    assert made(bench("lora", **{"adapter.kind": "c3a"})).block_size == 32  # 256 for others
    given = {"adapter.kind": "c3a", "adapter.options": "block_size=16"}
    assert made(bench("lora", **given)).block_size == 16


def test_ia3_knows_the_feedforward_part_of_named_layers(bench: Bencher) -> None:
    config = made(bench("ia3", **{"adapter.target_modules": "[k_proj, down_proj]"}))
    assert set(config.feedforward_modules) == {"down_proj"}
    assert made(bench("ia3")).target_modules is None  # PEFT knows the architecture

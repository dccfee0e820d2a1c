"""Every kind of adapter, tried: it trains, comes back from its files the same, merges exactly where it says it does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mlflow_ft import plugins
from mlflow_ft.cli.asked import asked
from mlflow_ft.engine.judging import judge
from mlflow_ft.engine.merging import fold
from mlflow_ft.engine.models import loading
from mlflow_ft.engine.serving import bundle
from mlflow_ft.engine.training import sft, trainable
from mlflow_ft.registry import Registry
from mlflow_ft.stages import start
from tests.combinations import distances
from tests.engine.conftest import Bench, lay
from tests.rarely import some_always

LOADED = plugins.load({"MLFLOW_FT_PLUGINS": ""})
ADAPTERS = {adapter.name: adapter for adapter in Registry(LOADED).adapters if adapter.name != "none"}
OFTEN = ("lora", "dora", "adalora", "ia3", "lokr", "oft", "vera", "prompt", "prefix", "ptuning", "adaption-prompt")
NEEDED: dict[str, dict[str, Any]] = {
    "trainable-tokens": {"adapter.trainable_token_indices": "[2, 3]"},
    "cpt": {"adapter.init_text": "red green blue"},
    "adaption-prompt": {"learning_rate": 0.3},  # its gate begins shut
    "unilora": {"learning_rate": 0.3},
}
"""What a kind cannot do without, or shows nothing without in three steps."""
OFTEN = ("lora", "oft", "ia3", "prompt")
"""What `make test` trains on a quantised base; `make combinations` trains the others too."""
SAME = 1e-9
"""Largest KL divergence (nats) of what came back from the files: rounding in float32 gives 1e-15."""
ROUNDED = 1e-4
"""The same beside an int8 base, whose products are rounded and those of the merged model are not."""
Bencher = Callable[..., Bench]


@pytest.fixture
def trying(tiny_model: Path, tmp_path: Path) -> Bencher:
    """`trying("vera")` lays a bench for an adapter."""

    def make(kind: str, **settings: Any) -> Bench:
        given = {"max_steps": 3, "learning_rate": 1e-2, "adapter.kind": kind} | NEEDED.get(kind, {}) | settings
        return lay(tmp_path / "job", "lora", **({"model": tiny_model} | given))

    return make


def trained(setup: Bench) -> Any:
    """Train, and keep what the model in memory says beside what it left."""
    model = trainable.prepare(setup.job, setup.data, setup.base)
    left = sft.train(setup.job, setup.data, model)
    return SimpleNamespace(left=left, said=said(model.module, setup), reference=left.folder / "reference.safetensors")


def said(module: Any, setup: Bench) -> list[str]:
    examples = list(setup.data.eval.examples)[:3]
    return [answer.text for answer in judge.answers(module, setup.data, examples, max_new_tokens=6, batch_size=3)]


def check(setup: Bench, folder: Path, *, exact: float = SAME) -> None:
    """Train it; what comes back must be what was trained, and not what the base is."""
    start.check_method(setup.job.config, setup.job.registry)
    result = trained(setup)
    back = loading.load_trained(setup.job, setup.data, result.left)
    assert distances(back, result.reference)["kl_max"] < SAME
    assert said(back, setup) == result.said
    base = loading.load_base(setup.job.config, setup.base)
    assert distances(base, result.reference)["kl_max"] > 100 * SAME, "it did not train"
    if ADAPTERS[setup.job.config.adapter.kind].merges:
        folder.mkdir()
        fold.merge(setup.job, result.left, folder)
        bundle.complete(setup.job, setup.data, folder)
        merged = loading.load_saved(setup.job.config, setup.base, folder)
        assert not hasattr(merged, "peft_config")
        assert distances(merged, result.reference)["kl_max"] < exact


@pytest.mark.parametrize("kind", some_always(ADAPTERS, *OFTEN))
def test_it_comes_back_as_it_was_trained(trying: Bencher, tmp_path: Path, kind: str) -> None:
    check(trying(kind), tmp_path / "merged")


def quantised() -> Iterator[Any]:
    """Every kind with its quantised base; the trainings are mostly long ones."""
    for kind in ADAPTERS:
        needed = [f"--{key}={value}" for key, value in NEEDED.get(kind, {}).items()]
        for quantize in ("nf4", "int8"):
            given = ["lora", "--model=any", f"--model.quantize={quantize}", f"--adapter.kind={kind}", *needed]
            often = kind in OFTEN or ADAPTERS[kind].refuses(asked(given, LOADED))
            yield pytest.param(kind, quantize, marks=() if often else pytest.mark.long)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:MatMul8bitLt:UserWarning")
@pytest.mark.parametrize(("kind", "quantize"), tuple(quantised()))
def test_it_is_loaded_again_on_a_quantised_base_or_is_refused(
    trying: Bencher, tmp_path: Path, kind: str, quantize: str
) -> None:
    setup = trying(kind, **{"model.quantize": quantize})
    if reason := ADAPTERS[kind].refuses(setup.job.config):
        assert quantize in reason
        assert "--model.quantize" in reason
        return
    check(setup, tmp_path / "merged", exact=ROUNDED if quantize == "int8" else SAME)


BEGINNINGS = ("pissa", "pissa_niter_4", "olora", "corda", "lora_ga", "eva", "gaussian", "orthogonal", "mica")


@pytest.mark.parametrize("begin", some_always(BEGINNINGS, "pissa", "corda", "eva", "orthogonal"))
def test_however_a_lora_begins_it_belongs_to_the_untouched_base(trying: Bencher, tmp_path: Path, begin: str) -> None:
    check(trying("lora", **{"adapter.init_lora_weights": begin, "adapter.r": 4}), tmp_path / "merged")


@pytest.mark.parametrize(
    "settings",
    [
        {"adapter.use_rslora": "true"},
        {"adapter.options": "rank_pattern={q_proj: 2}"},
        {"adapter.options": "alpha_pattern={q_proj: 3}"},
        {"adapter.modules_to_save": "[lm_head]"},
        {"model.add_tokens": "[<a>]"},
    ],
    ids=str,
)
def test_a_beginning_that_changes_the_base_goes_with_other_settings(
    trying: Bencher, tmp_path: Path, settings: dict[str, Any]
) -> None:
    check(trying("lora", **{"adapter.init_lora_weights": "pissa", "adapter.r": 4}, **settings), tmp_path / "merged")


@pytest.mark.parametrize(
    "settings",
    some_always(
        [
            {"adapter.use_dora": "true"},
            {"adapter.use_rslora": "true"},
            {"adapter.layers_to_transform": "[1]"},
            {"adapter.target_modules": ".*(q|v)_proj"},
            {"adapter.target_modules": "[q_proj, lm_head]"},
            {"adapter.modules_to_save": "[lm_head]"},
            {"adapter.trainable_token_indices": "[2, 20]"},
            {"adapter.options": "rank_pattern={q_proj: 2}"},
            {"adapter.options": "bias=all"},
            {"gradient_checkpointing": "true"},
        ],
        {"adapter.use_dora": "true"},
        {"adapter.target_modules": "[q_proj, lm_head]"},
        {"adapter.trainable_token_indices": "[2, 20]"},
        {"adapter.options": "rank_pattern={q_proj: 2}"},
        {"gradient_checkpointing": "true"},
    ),
    ids=str,
)
def test_settings_of_lora(trying: Bencher, tmp_path: Path, settings: dict[str, Any]) -> None:
    check(trying("lora", **settings), tmp_path / "merged")


@pytest.mark.parametrize("kind", some_always(["prompt", "ptuning", "adaption-prompt"], "ptuning"))
def test_learned_prompts_with_recomputed_activations_train_the_same(
    tiny_model: Path, tmp_path: Path, kind: str
) -> None:
    losses = []
    for number, recompute in enumerate(("true", "false")):
        settings = {"adapter.kind": kind, "gradient_checkpointing": recompute, "learning_rate": 0.1}
        setup = lay(tmp_path / str(number), "lora", model=tiny_model, **settings)
        setup.train()
        losses.append(setup.curve("train/loss"))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert len(losses[0]) == 4

"""Several adapters combined: the sum of their updates, for any ranks and scales; TIES and DARE as in PEFT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import merge_utils
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from mlflow_ft.engine.merging import stream_merge
from mlflow_ft.engine.merging.combine import METHODS, How, combine
from mlflow_ft.engine.merging.stream_merge import Merge
from mlflow_ft.errors import ConfigError

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning", "ignore:.*:FutureWarning")
WEIGHTS = (0.7, -0.4)


def load(base: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)


def made(base: Path, folder: Path, *, seed: int, **settings: Any) -> Path:
    torch.manual_seed(seed)
    usual = {"r": 4, "target_modules": ["q_proj", "down_proj"], "init_lora_weights": False, "task_type": "CAUSAL_LM"}
    get_peft_model(load(base), LoraConfig(**(usual | settings))).save_pretrained(folder)
    return folder


def updates(base: Path, adapter: Path) -> dict[str, Tensor]:
    """How much a merge of the adapter changes each weight."""
    plan = stream_merge.plan(Merge(base=base, adapter=adapter, dtype=torch.float32))
    before = load_file(base / "model.safetensors")
    return {name: plan.merged(name) - weight for name, weight in before.items()}


PAIRS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"r": 2, "lora_alpha": 32}, {"r": 8}),
    ({"use_rslora": True}, {"use_rslora": True, "r": 8}),
    ({"use_rslora": True, "r": 8}, {"alpha_pattern": {"q_proj": 5}, "rank_pattern": {"layers.1.mlp.down_proj": 3}}),
    ({"target_modules": ["q_proj"]}, {"target_modules": ["v_proj", "down_proj"], "layers_to_transform": [1]}),
    ({"target_modules": ["embed_tokens", "q_proj"]}, {"target_modules": ["embed_tokens", "lm_head"]}),
]


@pytest.mark.parametrize("method", ["cat", "svd"])
@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_the_sum_of_the_updates(
    tiny_model: Path, tmp_path: Path, pair: tuple[dict[str, Any], dict[str, Any]], method: str
) -> None:
    adapters = [made(tiny_model, tmp_path / str(seed), seed=seed, **settings) for seed, settings in enumerate(pair)]
    lost = combine(adapters, How(method=method, weights=WEIGHTS), tmp_path / "both")
    assert lost == 0
    first, second = (updates(tiny_model, adapter) for adapter in adapters)
    for name, update in updates(tiny_model, tmp_path / "both").items():
        torch.testing.assert_close(
            update, WEIGHTS[0] * first[name] + WEIGHTS[1] * second[name], rtol=1e-4, atol=2e-5, msg=name
        )
    assert sum(bool(change.any()) for change in first.values()) >= 2


def test_peft_has_the_scale_of_rslora_wrong_and_we_do_not(tiny_model: Path, tmp_path: Path) -> None:
    """If this fails, PEFT has fixed it: remove the note from the docs."""
    adapter = made(tiny_model, tmp_path / "one", seed=0, use_rslora=True)
    model: Any = PeftModel.from_pretrained(load(tiny_model), adapter, adapter_name="one")
    model.load_adapter(adapter, "two")
    model.add_weighted_adapter(["one", "two"], [0.5, 0.5], "both", combination_type="cat")
    model.set_adapter("both")
    theirs = model.merge_and_unload().state_dict()
    combine([adapter, adapter], How(method="cat", weights=(0.5, 0.5)), tmp_path / "both")
    name = "model.layers.0.mlp.down_proj.weight"
    before = load_file(tiny_model / "model.safetensors")[name]
    wanted = updates(tiny_model, adapter)[name]
    torch.testing.assert_close(updates(tiny_model, tmp_path / "both")[name], wanted, rtol=1e-4, atol=1e-5)
    assert (theirs[name] - before - wanted).abs().max() > 0.1 * wanted.abs().max()


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("cat", "svd")])
def test_the_other_methods_are_pefts_on_the_whole_updates(tiny_model: Path, tmp_path: Path, method: str) -> None:
    adapters = [made(tiny_model, tmp_path / str(seed), seed=seed, target_modules=["q_proj"]) for seed in (0, 1)]
    how = How(method=method, weights=(0.7, 0.4), rank=64, density=0.3, seed=7)
    assert combine(adapters, how, tmp_path / "both") < 1e-5, "at the full rank nothing is lost"
    first, second = (updates(tiny_model, adapter) for adapter in adapters)
    combined = updates(tiny_model, tmp_path / "both")
    torch.manual_seed(7)
    for name in sorted(name for name, change in first.items() if change.any()):
        function = getattr(merge_utils, method.removesuffix("_svd"))
        wanted = function([first[name], second[name]], torch.tensor([0.7, 0.4]), 0.3)
        # where an update is near 0 in the difference of two weights, pruning may decide otherwise
        close = torch.isclose(combined[name], wanted, rtol=1e-3, atol=1e-4)
        assert close.float().mean() > 0.999, name


def test_a_lower_rank_is_the_best_approximation_and_tells_what_is_lost(tiny_model: Path, tmp_path: Path) -> None:
    adapters = [made(tiny_model, tmp_path / str(seed), seed=seed) for seed in (0, 1)]
    lost = combine(adapters, How(method="svd", weights=(1, 1), rank=3), tmp_path / "both")
    first, second = (updates(tiny_model, adapter) for adapter in adapters)
    shares = []
    for name, update in updates(tiny_model, tmp_path / "both").items():
        whole = first[name] + second[name]
        if not whole.any():
            continue
        left, sizes, right = torch.linalg.svd(whole, full_matrices=False)
        torch.testing.assert_close(update, left[:, :3] * sizes[:3] @ right[:3], rtol=1e-3, atol=1e-4)
        shares.append(float(sizes[3:].norm() / sizes.norm()))
    assert lost == pytest.approx(max(shares), rel=1e-3)
    assert json.loads((tmp_path / "both" / "adapter_config.json").read_text())["r"] == 3


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"init_lora_weights": "olora"}, "modified base"),
    ],
)
def test_what_does_not_add_up_is_refused(
    tiny_model: Path, tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    adapters = [made(tiny_model, tmp_path / "0", seed=0), made(tiny_model, tmp_path / "1", seed=1, **settings)]
    with pytest.raises(ConfigError, match=words):
        combine(adapters, How(method="cat", weights=(1, 1)), tmp_path / "both")


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (How(method="linear", weights=(1, 1)), "linear"),
        (How(method="cat", weights=(1,)), "1 weights"),
        (How(method="cat", weights=(float("nan"), 1)), "the weight nan of an adapter is not a finite number"),
        (How(method="cat", weights=(0, 0)), "all adapters have the weight 0"),
        (How(method="svd", weights=(1, float("inf"))), "the weight inf"),
        (How(method="cat", weights=(1, 1), rank=4), "sum of the ranks"),
        (How(method="ties_svd", weights=(1, 1), density=0), "density"),
    ],
)
def test_settings_that_cannot_work(tiny_model: Path, tmp_path: Path, how: How, words: str) -> None:
    adapters = [made(tiny_model, tmp_path / str(seed), seed=seed) for seed in (0, 1)]
    with pytest.raises(ConfigError, match=words):
        combine(adapters, how, tmp_path / "both")

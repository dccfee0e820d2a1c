"""How far one model is from another, by numbers worked out by hand and by models that are known to differ."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file

from mlflow_ft.config.schema import PackageSection
from mlflow_ft.engine import bundle, merge, models, parity

LIMIT = PackageSection().max_kl


def reference(run: SimpleNamespace) -> Path:
    return run.trained.folder / "reference.safetensors"


def adapted_model(run: SimpleNamespace) -> Any:
    return models.load_trained(run.bench.job, run.bench.data, run.trained)


def test_kl_by_hand() -> None:
    trained = torch.tensor([[0.0, math.log(3)], [0.0, 0.0], [5.0, 5.0]])  # 1/4 3/4, 1/2 1/2, the same shifted
    found = torch.tensor([[0.0, 0.0], [0.0, math.log(3)], [1.0, 1.0]])
    wanted = [
        0.25 * math.log(0.5) + 0.75 * math.log(1.5),
        0.5 * math.log(2) + 0.5 * math.log(2 / 3),
        0.0,
    ]
    torch.testing.assert_close(parity.kl(trained, found), torch.tensor(wanted, dtype=torch.float64), rtol=0, atol=1e-7)


def test_kl_of_far_logits_is_finite_and_never_negative() -> None:
    near = torch.randn(50, 7, generator=torch.Generator().manual_seed(0))
    assert (parity.kl(near, near + 1e-7) >= 0).all()
    assert parity.kl(torch.tensor([[1e4, -1e4]]), torch.tensor([[-1e4, 1e4]])).item() == pytest.approx(2e4)


def test_the_trained_model_read_back_is_the_trained_model(adapted: SimpleNamespace) -> None:
    found = parity.compare(adapted_model(adapted), reference(adapted))
    assert found["kl_max"] <= 1e-9
    assert found["top1_agreement"] == 1.0
    kept = load_file(reference(adapted))
    assert found["tokens"] == sum(len(value) for name, value in kept.items() if name.endswith("positions"))
    assert 0 < found["tokens"] <= parity.POSITIONS


def test_only_learned_tokens_are_compared(adapted: SimpleNamespace) -> None:
    kept = load_file(reference(adapted))
    first = next(row for row in adapted.bench.data.eval.encoded if row.supervised > 1)
    assert kept["0.input_ids"].tolist() == list(first.input_ids)
    assert [first.labels[place + 1] for place in kept["0.positions"].tolist()] == [
        label for label in first.labels if label != -100
    ]


@pytest.mark.parametrize("form", ["adapter", "merged"])
def test_the_packaged_forms_are_the_trained_model(adapted: SimpleNamespace, tmp_path: Path, form: str) -> None:
    job, trained = adapted.bench.job, adapted.trained
    {"adapter": bundle.copy_adapter, "merged": merge.merge}[form](job, trained, tmp_path)
    found = parity.compare(models.load_saved(job.config, trained.base, tmp_path), reference(adapted))
    assert found["kl_mean"] < 1e-6
    assert found["top1_agreement"] == 1.0


def drop(model: Any) -> Any:
    return model.unload()


def double(model: Any) -> Any:
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            layer.set_scale("default", 2)
    return model


def lose_the_mlp(model: Any) -> Any:
    for name, weight in model.named_parameters():
        if "mlp" in name and "lora_B" in name:
            weight.data.zero_()
    return model


@pytest.mark.parametrize("harm", [drop, double, lose_the_mlp])
def test_another_model_is_beyond_the_limit(adapted: SimpleNamespace, harm: Any) -> None:
    found = parity.compare(harm(adapted_model(adapted)), reference(adapted))
    assert found["kl_mean"] > LIMIT
    assert found["kl_max"] >= found["kl_mean"]

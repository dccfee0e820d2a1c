"""The LoRA that is made is the one that was asked for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from mlflow_ft.builtin import adapters
from mlflow_ft.config.schema import AdapterSection


def made(**settings: Any) -> Any:
    job = SimpleNamespace(config=SimpleNamespace(adapter=AdapterSection(kind="lora", **settings)))
    return adapters.lora(job, SimpleNamespace())  # type: ignore[arg-type]


@pytest.mark.parametrize(("given", "alpha"), [({"r": 8}, 16), ({"r": 8, "lora_alpha": 5}, 5), ({}, 32)])
def test_alpha_is_twice_the_rank_where_it_is_not_given(given: dict[str, Any], alpha: float) -> None:
    assert made(**given).lora_alpha == alpha


def test_every_setting_reaches_peft() -> None:
    config = made(r=3, lora_dropout=0.25, target_modules=["q_proj"], use_rslora=True)
    assert (config.r, config.lora_dropout, set(config.target_modules), config.use_rslora) == (3, 0.25, {"q_proj"}, True)
    assert config.task_type == "CAUSAL_LM"
    assert made().target_modules == "all-linear"


def test_none_makes_no_adapter() -> None:
    assert adapters.no_adapter(SimpleNamespace(), SimpleNamespace()) is None  # type: ignore[arg-type,func-returns-value]

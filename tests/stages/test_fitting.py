"""`data.max_length` is fitted to the positions of the base."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlflow_ft import plugins
from mlflow_ft.cli.asked import asked
from mlflow_ft.config.schema import Config
from mlflow_ft.errors import ConfigError
from mlflow_ft.progress import Progress
from mlflow_ft.registry import Registry
from mlflow_ft.stages.fitting import fitted
from mlflow_ft.values import BaseModel
from tests.reports.conftest import small as small

Small = Callable[..., Path]
PROMPT = {"adapter.kind": "prompt", "adapter.num_virtual_tokens": 8}


def fit(base: Path, method: str = "lora", **settings: Any) -> tuple[Config, Config]:
    """The configuration as it was asked for, and as it is fitted."""
    loaded = plugins.load({})
    given = asked(
        [method, *(f"--{key}={value}" for key, value in ({"model": base, "data": "rows.jsonl"} | settings).items())],
        loaded,
    )
    model = BaseModel(name="base", path=base, name_or_path=str(base), revision="", origin="")
    return given, fitted(given, model, Registry(loaded), Progress(quiet=True))


@pytest.mark.parametrize("kind", ["gpt2", "opt"])
def test_a_default_is_lowered(small: Small, kind: str) -> None:
    given, after = fit(small(kind))
    assert (given.data.max_length, after.data.max_length) == (1024, 256)
    assert "positions" in after.origins["data.max_length"]


@pytest.mark.parametrize("kind", ["gpt2", "opt"])
def test_what_was_given_is_refused(small: Small, kind: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.max_length is 257, but the model has 256 positions"):
        fit(small(kind), **{"data.max_length": 257})
    given, after = fit(small(kind), **{"data.max_length": 256})
    assert given == after


@pytest.mark.parametrize("kind", ["llama", "bloom", "mamba"])
def test_models_that_read_on_are_left_alone(small: Small, kind: str) -> None:
    given, after = fit(small(kind), **{"data.max_length": 5000})
    assert given == after


def test_a_learned_prompt_takes_its_part(small: Small) -> None:
    assert fit(small("gpt2"), "sft", **PROMPT)[1].data.max_length == 248
    with pytest.raises(ConfigError, match="of which the learned prompt takes 8") as raised:
        fit(small("gpt2"), "sft", **PROMPT, **{"data.max_length": 256})
    assert "--data.max_length 248" in str(raised.value.hint)
    with pytest.raises(ConfigError, match="there is no room for a row"):
        fit(small("gpt2"), "sft", **PROMPT | {"adapter.num_virtual_tokens": 250})


def test_the_length_that_comes_with_the_built_in_data_is_lowered(small: Small) -> None:
    given, after = fit(small("gpt2", n_positions=48), data="demo")
    assert given.data.max_length > 48
    assert after.data.max_length == 48

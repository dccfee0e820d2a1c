"""`data.max_length` fitted to the positions of a base: a default is lowered, a value that was given is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mlflow_ft import plugins
from mlflow_ft.cli.asked import asked
from mlflow_ft.config import Config
from mlflow_ft.engine import hub
from mlflow_ft.errors import ConfigError
from mlflow_ft.progress import Progress
from mlflow_ft.registry import Registry
from mlflow_ft.stages import fitting
from tests.reports.conftest import small as small

Small = Callable[..., Path]


def fitted(model: Path, method: str = "lora", **settings: object) -> tuple[Config, Config]:
    """The configuration before and after."""
    loaded = plugins.load({"MLFLOW_FT_PLUGINS": ""})
    pairs = [f"--{name}={value}" for name, value in ({"model": model, "data": "rows"} | settings).items()]
    config, progress = asked([method, *pairs], loaded), Progress()
    return config, fitting.fitted(config, hub.find(config.model, progress), Registry(loaded), progress)


def test_a_default_is_lowered_and_that_is_said(small: Small, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = fitted(small("gpt2", n_positions=48))
    assert before.data.max_length > after.data.max_length == 48
    assert "positions" in after.origins["data.max_length"]
    assert f"data.max_length: 48, not {before.data.max_length:,}: the model has 48 positions" in capsys.readouterr().err


def test_a_value_that_was_given_is_refused(small: Small) -> None:
    base = small("gpt2", n_positions=48)
    assert fitted(base, **{"data.max_length": 48})[1].data.max_length == 48
    with pytest.raises(ConfigError, match=r"data\.max_length is 49, and the model has 48 positions") as refused:
        fitted(base, **{"data.max_length": 49})
    assert "--data.max_length 48" in str(refused.value.hint)


def test_a_learned_prompt_takes_positions(small: Small) -> None:
    base = small("gpt2", n_positions=48)
    assert fitted(base, "prompt", **{"adapter.num_virtual_tokens": 10})[1].data.max_length == 38
    with pytest.raises(ConfigError, match="no row fits beside it"):
        fitted(base, "prompt", **{"adapter.num_virtual_tokens": 44})


@pytest.mark.parametrize(
    ("kind", "settings"), [("llama", {"max_position_embeddings": 16}), ("bloom", {}), ("mamba", {})]
)
def test_a_base_that_reads_on_is_left_alone(small: Small, kind: str, settings: dict[str, int]) -> None:
    before, after = fitted(small(kind, **settings))
    assert before is after

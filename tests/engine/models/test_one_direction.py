"""Models that do not read from left to right are refused by their config.json."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import BartConfig, BertConfig, RobertaConfig, T5Config

from mlflow_ft.engine.models import one_direction
from mlflow_ft.errors import ModelError
from tests.engine.conftest import Bench
from tests.reports import small_models


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (T5Config(), "an encoder with a decoder"),
        (BartConfig(), "an encoder with a decoder"),
        (BertConfig(), "each position sees the tokens that it is to learn"),
        (RobertaConfig(), "each position sees the tokens that it is to learn"),
    ],
)
def test_encoders_are_refused(tmp_path: Path, config: T5Config | BartConfig | BertConfig, reason: str) -> None:
    config.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=reason) as error:
        one_direction.check(tmp_path, "it")
    assert "choose a decoder" in str(error.value.hint)


def test_decoders_are_not(tmp_path: Path) -> None:
    BertConfig(is_decoder=True).save_pretrained(tmp_path)
    assert one_direction.check(tmp_path, "it") == "bert"
    for kind, (config, _, given) in small_models.KINDS.items():
        getattr(small_models.transformers, config)(**given).save_pretrained(tmp_path / kind)
        assert one_direction.check(tmp_path / kind, kind)


def test_an_encoder_is_not_trained(bench: Callable[..., Bench], small: Callable[..., Path], tmp_path: Path) -> None:
    folder = small_models.with_settings(small("llama"), tmp_path / "encoder", is_encoder_decoder=True)
    with pytest.raises(ModelError, match="an encoder with a decoder"):
        bench("lora", model=folder).train()

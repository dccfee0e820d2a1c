"""With a learned prompt, rows get the same scores in a padded batch as alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from mlflow_ft.engine import batches
from mlflow_ft.engine.models import loading
from mlflow_ft.engine.training import trainable
from mlflow_ft.rows import Encoded
from tests.engine.conftest import Bench
from tests.engine.training.test_preference import pairs


@torch.no_grad()
def scores(module: Any, rows: list[list[int]], pad: int) -> torch.Tensor:
    batch = batches.padded([Encoded(input_ids=tuple(row), labels=tuple(row)) for row in rows], pad_token_id=pad)
    return module(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0]


@pytest.mark.parametrize("kind", ["prompt", "ptuning", "prefix", "lora"])
def test_padding_is_not_read(bench: Callable[..., Bench], kind: str) -> None:
    setup = bench("reward", rows=pairs(8), **{"adapter.kind": kind})
    made = trainable.prepare(setup.job, setup.data, setup.base).module.eval()
    made.save_pretrained(setup.job.folder / "adapter")
    saved = loading.load_saved(setup.job.config, setup.base, setup.job.folder / "adapter")
    loading.agree(saved.get_base_model(), setup.data)
    rows = [list(setup.data.train.encoded[0].input_ids)]
    rows += [rows[0][: len(rows[0]) // 2]]
    pad = setup.data.tokenizer.pad_token_id
    for module in (made, saved):
        alone = torch.cat([scores(module, [row], pad) for row in rows])
        torch.testing.assert_close(scores(module, rows, pad), alone, rtol=1e-4, atol=1e-5)

"""A batch in parts: every row once and in order, and what is learned is what the whole batch teaches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlflow_ft.engine import batches, hardware
from mlflow_ft.engine.memory import configured
from mlflow_ft.engine.models.unpadding import Unpadding
from mlflow_ft.engine.training import parts
from mlflow_ft.rows import Encoded
from tests.engine.training.test_batching import trained

Bench = Callable[..., Any]
OWN = list(range(100, 200))


def batch_of(*rows: list[int]) -> dict[str, torch.Tensor]:
    return batches.padded([Encoded(input_ids=tuple(ids), labels=tuple(ids)) for ids in rows], pad_token_id=0)


def lengths(part: Any) -> list[int]:
    return part["attention_mask"].sum(dim=1).tolist()


def test_rows_stay_whole_and_in_order() -> None:
    batch = batch_of(OWN[:30], OWN[:50], OWN[:90], OWN[:10], OWN[:20])
    assert [lengths(part) for part in parts.of(batch, 80)] == [[30, 50], [90], [10, 20]]
    assert [part["labels"].shape[1] for part in parts.of(batch, 80)] == [50, 90, 20], "padded to its own longest row"
    assert parts.of(batch, 200) == [batch]
    assert len(parts.of(batch, 1)) == 5


@given(
    st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=60), min_size=1, max_size=9),
    st.integers(1, 150),
    st.booleans(),
)
def test_every_row_is_in_one_part(rows: list[list[int]], tokens: int, shares: bool) -> None:  # noqa: FBT001  # given
    several = parts.of(batch_of(*rows), tokens, shares=shares)
    found = [
        ids[:length].tolist() for part in several for ids, length in zip(part["input_ids"], lengths(part), strict=True)
    ]
    assert found == rows
    if not shares:
        assert all(len(lengths(part)) == 1 or sum(lengths(part)) <= tokens for part in several)


def test_a_common_beginning_counts_once() -> None:
    batch = batch_of(*(OWN[:40] + [number] * 10 for number in range(7)))
    assert [lengths(part) for part in parts.of(batch, 110, shares=True)] == [[50] * 7]
    assert [lengths(part) for part in parts.of(batch, 70, shares=True)] == [[50] * 3, [50] * 3, [50]], "once a part"
    assert [lengths(part) for part in parts.of(batch, 80)] == [[50]] * 7


def test_other_batches_are_one_part() -> None:
    """Packed rows have no mask, and what else a batch has may not belong to its rows."""
    batch = batch_of(OWN[:30], OWN[:50])
    without = {name: values for name, values in batch.items() if name != "attention_mask"}
    for other in (without, batch | {"pixel_values": torch.zeros(7)}):
        assert parts.of(other, 40) == [other]


@pytest.mark.parametrize("method", ["lora", "full", "prompt"])
@pytest.mark.parametrize("how", ["auto", "padded"])
def test_it_learns_the_same(bench: Bench, monkeypatch: pytest.MonkeyPatch, method: str, how: str) -> None:
    passes: list[int] = []
    shares: set[bool] = set()
    of = parts.of

    def counted(*given: Any, **more: Any) -> Any:
        several = of(*given, **more)
        passes.append(len(several))
        shares.add(more["shares"])
        return several

    monkeypatch.setattr(parts, "of", counted)
    settings: dict[str, Any] = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 6}
    whole, weights = trained(bench, method, how, **settings)
    assert set(passes) == {1}
    monkeypatch.setattr(hardware, "AT_ONCE", 60)
    split, others = trained(bench, method, how, **settings)
    assert max(passes) > 1
    assert shares == {how == "auto" and method != "prompt"}
    for key in ("train/loss", "train/grad_norm", "train/mean_token_accuracy", "train/num_tokens", "eval/loss"):
        assert split.curve(key) == pytest.approx(whole.curve(key), rel=1e-4, abs=1e-6), key
    assert len(whole.curve("train/loss")) == 3
    apart = [float((others[name] - weight).abs().max()) for name, weight in weights.items()]
    assert max(apart) < 2e-3, "less than half a step of the optimizer, whose steps have the sign of gradients near 0"


def test_a_pass_has_no_more_tokens(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    run = Unpadding._run

    def record(self: Unpadding, *given: Any, **inputs: Any) -> Any:
        if torch.is_grad_enabled():
            seen.append(int(inputs["attention_mask"].sum()))
        return run(self, *given, **inputs)

    monkeypatch.setattr(Unpadding, "_run", record)
    monkeypatch.setattr(hardware, "AT_ONCE", 150)
    trained(bench, "lora", "tokens", per_device_train_batch_size=8)
    assert 100 < max(seen) <= 150


NOT_IN_PARTS = {
    "packed": ("lora", {"objective.packing": True}),
    "neftune": ("lora", {"objective.options": "neftune_noise_alpha=5"}),
    "dpo": ("dpo", {}),
}


@pytest.mark.parametrize("case", NOT_IN_PARTS)
def test_what_is_computed_as_a_whole_is_estimated_so(bench: Bench, case: str) -> None:
    method, more = NOT_IN_PARTS[case]
    setup, usual = bench(method, **more), bench("lora")
    assert configured.setting_of(setup.job.config, setup.job.registry, setup.base).at_once is None
    assert configured.setting_of(usual.job.config, usual.job.registry, usual.base).at_once == hardware.AT_ONCE


def test_one_of_several_processes_computes_its_batch_as_a_whole(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """They exchange gradients after each pass, and may not have the same number of passes."""
    config = bench("lora").job.config
    assert hardware.tokens_at_once(config) == hardware.AT_ONCE
    assert hardware.tokens_at_once(config, gpu=True) is None
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert hardware.tokens_at_once(config) is None

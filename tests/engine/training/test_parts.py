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
from mlflow_ft.engine.training import parts, preference
from mlflow_ft.rows import Encoded
from tests.engine.training.test_batching import trained

Bench = Callable[..., Any]
OWN = list(range(100, 200))
TIMES = {"train/step_time", "train/tokens_per_second"}


def batch_of(*rows: list[int]) -> dict[str, torch.Tensor]:
    return batches.padded([Encoded(input_ids=tuple(ids), labels=tuple(ids)) for ids in rows], pad_token_id=0)


def lengths(part: Any) -> list[int]:
    return part["attention_mask"].sum(dim=1).tolist()


def test_rows_stay_whole_and_in_order() -> None:
    batch = batch_of(OWN[:30], OWN[:50], OWN[:90], OWN[:10], OWN[:20])
    assert [lengths(part) for part in parts.of_rows(batch, 80)] == [[30, 50], [90], [10, 20]]
    assert [part["labels"].shape[1] for part in parts.of_rows(batch, 80)] == [50, 90, 20], (
        "padded to its own longest row"
    )
    assert parts.of_rows(batch, 200) == [batch]
    assert len(parts.of_rows(batch, 1)) == 5


@given(
    rows=st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=60), min_size=1, max_size=9),
    tokens=st.integers(1, 150),
    shares=st.booleans(),
)
def test_every_row_is_in_one_part(rows: list[list[int]], tokens: int, *, shares: bool) -> None:
    several = parts.of_rows(batch_of(*rows), tokens, shares=shares)
    found = [
        ids[:length].tolist() for part in several for ids, length in zip(part["input_ids"], lengths(part), strict=True)
    ]
    assert found == rows
    if not shares:
        assert all(len(lengths(part)) == 1 or sum(lengths(part)) <= tokens for part in several)


def test_a_common_beginning_counts_once() -> None:
    batch = batch_of(*(OWN[:40] + [number] * 10 for number in range(7)))
    assert [lengths(part) for part in parts.of_rows(batch, 110, shares=True)] == [[50] * 7]
    assert [lengths(part) for part in parts.of_rows(batch, 70, shares=True)] == [[50] * 3, [50] * 3, [50]], (
        "once a part"
    )
    assert [lengths(part) for part in parts.of_rows(batch, 80)] == [[50]] * 7


def test_other_batches_are_one_part() -> None:
    """Packed rows have no mask, and what else a batch has may not belong to its rows."""
    batch = batch_of(OWN[:30], OWN[:50])
    without = {name: values for name, values in batch.items() if name != "attention_mask"}
    for other in (without, batch | {"pixel_values": torch.zeros(7)}):
        [one] = parts.of_rows(other, 40)
        assert one is other


def pairs_of(chosen: list[list[int]], rejected: list[list[int]]) -> dict[str, torch.Tensor]:
    batch = batch_of(*chosen, *rejected)
    batch["completion_mask"] = batch.pop("labels").ne(-100).long()
    return batch


def test_a_pair_is_in_one_part() -> None:
    batch = pairs_of([OWN[:30], OWN[:10], OWN[:20]], [OWN[50:60], OWN[50:90], OWN[50:55]])
    numbered = batch | {"ref_chosen_logps": torch.arange(3)}
    several = parts.of_pairs(numbered, 60)
    assert [lengths(part) for part in several] == [[30, 10], [10, 40], [20, 5]]
    assert [len(part["completion_mask"][0]) for part in several] == [30, 40, 20]
    assert torch.cat([part["ref_chosen_logps"] for part in several]).tolist() == [0, 1, 2]
    for other, tokens in ((batch, 200), (batch | {"pixel_values": torch.zeros(7)}, 60)):
        [one] = parts.of_pairs(other, tokens)
        assert one is other


def test_a_prompt_counts_once_a_pair() -> None:
    ends = [[number] * 5 for number in range(6)]
    batch = pairs_of([OWN[:40] + end for end in ends[:3]], [OWN[:40] + end for end in ends[3:]])
    assert len(parts.of_pairs(batch, 150)) == 3
    assert [lengths(part) for part in parts.of_pairs(batch, 100, shares=True)] == [[45] * 4, [45] * 2]


def test_a_metric_counts_by_the_tokens_that_it_is_a_mean_of() -> None:
    batch = pairs_of([OWN[:30]], [OWN[:10]])
    weights = preference.PreparedDPOTrainer._weights(batch)
    assert weights == {"entropy": 38, "logits/chosen": 29, "logits/rejected": 9, "mean_token_accuracy": 29}


METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("lora", {}),
    "full": ("full", {}),
    "prompt": ("prompt", {}),
    "dpo": ("dpo", {}),
    "dpo, reference first": ("dpo", {"objective.precompute_ref_log_probs": True}),
    "dpo, two losses": ("dpo", {"objective.loss_type": '["ipo", "bco_pair"]'}),
}


@pytest.mark.parametrize("case", METHODS)
@pytest.mark.parametrize("how", ["auto", "padded"])
def test_it_learns_the_same(bench: Bench, monkeypatch: pytest.MonkeyPatch, case: str, how: str) -> None:
    method, more = METHODS[case]
    passes: list[int] = []
    shares: set[bool] = set()
    name = "of_pairs" if method == "dpo" else "of_rows"
    split = getattr(parts, name)

    def counted(*given: Any, **options: Any) -> Any:
        several = split(*given, **options)
        passes.append(len(several))
        shares.add(options["shares"])
        return several

    monkeypatch.setattr(parts, name, counted)
    settings: dict[str, Any] = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 6, **more}
    whole, weights = trained(bench, method, how, **settings)
    assert set(passes) == {1}
    monkeypatch.setattr(hardware, "AT_ONCE", 120 if method == "dpo" else 60)
    in_parts, others = trained(bench, method, how, **settings)
    assert max(passes) > 1
    assert shares == {how == "auto" and method != "prompt"}
    curves = {name for name, *_ in whole.points if name.startswith(("train/", "eval/"))} - TIMES
    assert {"train/loss", "train/grad_norm", "train/mean_token_accuracy", "eval/loss"} <= curves
    assert ("train/rewards/margins" in curves) is (method == "dpo")
    for key in curves:
        assert in_parts.curve(key) == pytest.approx(whole.curve(key), rel=1e-4, abs=1e-5), key
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
    "a loss that sorts the pairs of a batch": ("dpo", {"objective.loss_type": '["sigmoid", "aot"]'}),
    "kto": ("kto", {}),
}


@pytest.mark.parametrize("case", NOT_IN_PARTS)
def test_what_is_computed_as_a_whole_is_estimated_so(bench: Bench, case: str) -> None:
    method, more = NOT_IN_PARTS[case]
    setup = bench(method, **more)
    assert configured.setting_of(setup.job.config, setup.job.registry, setup.base).at_once is None


@pytest.mark.parametrize("method", ["lora", "qlora", "full", "dpo"])
def test_the_estimate_of_memory_knows_the_parts(bench: Bench, method: str) -> None:
    setup = bench(method)
    assert configured.setting_of(setup.job.config, setup.job.registry, setup.base).at_once == hardware.AT_ONCE


@pytest.mark.parametrize("strategy", ["fsdp", "deepspeed-zero2", "deepspeed-zero3"])
def test_a_backward_pass_that_does_more_is_one(bench: Bench, strategy: str) -> None:
    """Of DeepSpeed it is a step, and of shares of weights an exchange."""
    job = bench("lora", **{"launch.strategy": strategy}).job
    assert hardware.tokens_at_once(job.config, job.registry.trainers["lora"]) is None


def test_one_of_several_processes_computes_its_batch_as_a_whole(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """They exchange gradients after each pass, and may not have the same number of passes."""
    job = bench("lora").job
    config, trainer = job.config, job.registry.trainers["lora"]
    assert hardware.tokens_at_once(config, trainer) == hardware.AT_ONCE
    assert hardware.tokens_at_once(config, trainer, gpu=True) is None
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert hardware.tokens_at_once(config, trainer) is None

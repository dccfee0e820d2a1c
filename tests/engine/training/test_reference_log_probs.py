"""What the reference gave an answer is computed once, for the same base only, and is what it would be computed as."""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from mlflow_ft.engine.training import preference, reference_log_probs, unpaired
from mlflow_ft.engine.training.reference_log_probs import FILE, RECORD, Kept
from tests.engine.training.test_batching import rows
from tests.rarely import some_always

Bench = Callable[..., Any]
LEARNS = {"learning_rate": 1e-2, "max_steps": 10, "eval_steps": 5, "per_device_train_batch_size": 4}
"""Two passes over 18 rows (36 answers of kto: one and a step), and three held-out losses."""


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One word for each batch that the reference computed: `train` or `eval`."""
    batches: list[str] = []
    for trainer in (preference.PreparedDPOTrainer, unpaired.PreparedKTOTrainer):
        compute = trainer.compute_ref_log_probs

        def counting(self: Any, *given: Any, compute: Any = compute) -> Any:
            batches.append("train" if self.model.training else "eval")
            return compute(self, *given)

        monkeypatch.setattr(trainer, "compute_ref_log_probs", counting)
    return batches


def trained(bench: Bench, cache: Path, method: str = "dpo", **more: Any) -> Any:
    setup = bench(method, cache=cache, rows=rows(preferences=True), **LEARNS | more)
    setup.train()
    return setup


def files(cache: Path) -> list[Path]:
    return sorted(cache.glob(f"reference-*/{FILE}"))


METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "dpo": ("dpo", {}),
    "dpo in nf4": ("dpo", {"model.quantize": "nf4"}),
    "dpo with every weight": ("dpo", {"adapter.kind": "none", "learning_rate": 1e-3}),
    "kto": ("kto", {}),
    "kto without KL": ("kto", {"objective.loss_type": "apo_zero_unpaired"}),
}


@pytest.mark.parametrize("case", METHODS)
def test_it_is_computed_once_and_learns_the_same(bench: Bench, tmp_path: Path, computed: list[str], case: str) -> None:
    method, more = METHODS[case]
    plain = trained(bench, tmp_path / "none", method, remember_ref_log_probs=False, **more)
    assert not computed
    assert not files(tmp_path / "none")
    first = trained(bench, tmp_path / "cache", method, **more)
    assert computed.count("eval") == 1, "for the first of three held-out losses"
    assert computed.count("train") == (9 if method == "kto" else 5), "in the first pass over the rows"
    before = len(computed)
    again = trained(bench, tmp_path / "cache", method, **more)
    assert len(computed) == before + 1, "the first batch, to compare it"
    for other in (first, again):
        for name in ("train/loss", "eval/loss", "train/rewards/margins", "train/grad_norm"):
            wanted = [value for value in plain.curve(name) if not math.isnan(value)]
            found = [value for value in other.curve(name) if not math.isnan(value)]
            assert found == pytest.approx(wanted, rel=1e-4, abs=1e-6), name
    assert plain.curve("train/loss")[-1] < plain.curve("train/loss")[0]


def test_an_adapter_that_is_trained_further_is_held_to_what_it_was(
    bench: Bench, tiny_model: Path, tmp_path: Path, computed: list[str]
) -> None:
    losses, starts = {}, [tmp_path / "a", tmp_path / "b"]
    for number, folder in enumerate(starts):
        torch.manual_seed(number)
        base = AutoModelForCausalLM.from_pretrained(tiny_model)
        config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
        get_peft_model(base, config).save_pretrained(folder)
    for start in (*starts, *starts):
        setup = trained(bench, tmp_path / "cache", start=start)
        losses.setdefault(start, []).append(setup.curve("train/loss"))
        assert setup.curve("train/loss")[0] == pytest.approx(math.log(2), abs=1e-6)
    assert all(one == pytest.approx(other, rel=1e-5) for one, other in losses.values())
    assert len(files(tmp_path / "cache")) == 2
    assert (computed.count("train"), computed.count("eval")) == (5 + 5, 1 + 1 + 1 + 1), "once more to compare each"


def test_only_rows_that_are_new_are_computed(bench: Bench, tmp_path: Path, computed: list[str]) -> None:
    for seed, steps, new in ((1, 1, ["eval", "train"]), (1, 5, ["eval", *["train"] * 4]), (3, 5, ["eval"])):
        computed.clear()
        trained(bench, tmp_path / "cache", max_steps=steps, eval_steps=50, **{"run.seed": seed})
        assert computed == new, "held-out rows that are known are computed to compare them"


@pytest.mark.parametrize(
    "more",
    some_always(
        [
            {"model.quantize": "nf4"},
            {"model.attn_implementation": "eager"},
            {"model.dtype": "bfloat16"},
            {"adapter.kind": "none"},
        ],
        {"adapter.kind": "none"},
    ),
    ids=str,
)
def test_another_reference_has_a_file_of_its_own(bench: Bench, tmp_path: Path, more: dict[str, Any]) -> None:
    quick = {"max_steps": 1, "eval_steps": 50}
    trained(bench, tmp_path / "cache", **quick)
    trained(bench, tmp_path / "cache", **quick, learning_rate=1e-3, **{"adapter.r": 2, "objective.beta": 0.3})
    assert len(files(tmp_path / "cache")) == 1
    trained(bench, tmp_path / "cache", **quick, **more)
    assert len(files(tmp_path / "cache")) == 2
    if "model.quantize" in more:
        trained(bench, tmp_path / "cache", **quick, **more, **{"model.double_quant": False})
        assert len(files(tmp_path / "cache")) == 3


def test_values_of_another_base_are_found_out(
    bench: Bench, tmp_path: Path, computed: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    right = trained(bench, tmp_path / "cache")
    [file] = files(tmp_path / "cache")
    whole = file.read_bytes()
    harmed = reference_log_probs.np.fromfile(file, dtype=RECORD)
    harmed["value"] *= 1.01
    harmed.tofile(file)
    computed.clear()
    with caplog.at_level(logging.WARNING, logger=reference_log_probs.log.name):
        again = trained(bench, tmp_path / "cache")
    assert "are not those of this base" in caplog.text
    assert again.curve("train/loss") == right.curve("train/loss")
    assert computed.count("train") == 5
    assert sorted(file.read_bytes()) == sorted(whole)


@pytest.mark.parametrize(
    "more",
    [
        {"adapter.init_lora_weights": "pissa"},
        {"objective.options": "sync_ref_model=true,ref_model_sync_steps=1", "adapter.kind": "none"},
        {"objective.options": "ld_alpha=0.5"},
        {"precompute_ref_log_probs": True},
        {"objective.options": "neftune_noise_alpha=5"},
    ],
    ids=str,
)
def test_a_reference_that_may_change_is_not_remembered(bench: Bench, tmp_path: Path, more: dict[str, Any]) -> None:
    trained(bench, tmp_path / "cache", **LEARNS | {"max_steps": 1} | more)
    assert not files(tmp_path / "cache")


LEFT_ON = {"objective.options": "disable_dropout=false", "max_steps": 1}
"""TRL turns dropout layers off unless this setting is false."""


@pytest.mark.parametrize(
    ("kind", "rate", "more"),
    [("gpt2", "resid_pdrop", LEFT_ON), ("gpt2", "attn_pdrop", LEFT_ON), ("llama", "attention_dropout", {})],
)
def test_a_base_with_dropout_is_not_remembered(
    bench: Bench, small: Callable[..., Path], tmp_path: Path, kind: str, rate: str, more: dict[str, Any]
) -> None:
    none = {"resid_pdrop": 0.0, "attn_pdrop": 0.0, "embd_pdrop": 0.0}
    for value, remembered in ((0.0, 1), (0.1, 0)):
        cache = tmp_path / str(value)
        trained(bench, cache, model=small(kind, **none | {rate: value}), **{"max_steps": 1} | more)
        assert len(files(cache)) == remembered


@pytest.mark.parametrize(("further", "remembered"), [(False, 1), (True, 0)])
def test_dropout_of_an_adapter_is_off_in_the_reference_unless_that_is_its_copy(
    bench: Bench, tiny_model: Path, tmp_path: Path, *, further: bool, remembered: int
) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", lora_dropout=0.1)
    get_peft_model(base, config).save_pretrained(tmp_path / "start")
    start = tmp_path / "start" if further else None
    trained(bench, tmp_path / "cache", start=start, **LEFT_ON, **{"adapter.lora_dropout": 0.1})
    assert len(files(tmp_path / "cache")) == remembered


def test_padding_is_no_part_of_a_row_and_the_answer_is() -> None:
    ids, mask = torch.tensor([[5, 6, 7, 0, 0]]), torch.tensor([[1, 1, 1, 0, 0]])
    answer = torch.tensor([[0, 0, 1, 0, 0]])
    [key] = reference_log_probs.keys_of(ids, mask, answer)
    assert reference_log_probs.keys_of(ids[:, :3], mask[:, :3], answer[:, :3]) == [key]
    left = ids.roll(2), mask.roll(2), answer.roll(2)
    assert reference_log_probs.keys_of(*left) == [key]
    others = [(ids, mask, torch.tensor([[0, 1, 1, 0, 0]])), (ids.roll(1), mask, answer), (ids, mask * 0 + 1, answer)]
    assert key not in {reference_log_probs.keys_of(*other)[0] for other in others}


def test_records_are_read_again(tmp_path: Path) -> None:
    keys = [bytes([number]) * 15 + b"\0" for number in range(3)]
    kept = Kept(tmp_path / FILE)
    kept.add(keys, [-1.5, -math.pi, math.nan])
    kept.add(keys[:1], [-9.0])
    assert (kept.of(keys[:2]), kept.of(keys), kept.earlier) == ([-1.5, -math.pi], None, 0)
    again = Kept(tmp_path / FILE)
    assert (again.of(keys[:2]), again.of(keys), again.earlier) == ([-1.5, -math.pi], None, 2)
    with (tmp_path / FILE).open("ab") as stream:
        stream.write(b"half a record")
    assert Kept(tmp_path / FILE).of(keys[:1]) is None
    assert not (tmp_path / FILE).exists()


def test_a_cache_that_is_cleared_does_not_end_a_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "reference"
    folder.mkdir()
    kept = Kept(folder / FILE)
    kept.add([b"a" * 16], [-1.0])
    shutil.rmtree(folder)
    for number in (b"b", b"c"):
        kept.add([number * 16], [-2.0])
    assert kept.of([b"a" * 16, b"b" * 16, b"c" * 16]) == [-1.0, -2.0, -2.0]
    assert caplog.text.count("not kept for later runs") == 1


def test_two_processes_add_to_one_file(tmp_path: Path) -> None:
    one, two = Kept(tmp_path / FILE), Kept(tmp_path / FILE)
    one.add([b"a" * 16], [-1.0])
    two.add([b"b" * 16, b"a" * 16], [-2.0, -1.0])
    assert Kept(tmp_path / FILE).of([b"b" * 16, b"a" * 16]) == [-2.0, -1.0]

"""Distance between models, checked against numbers computed by hand and models known to differ."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from mlflow_ft.config.schema import PackageSection
from mlflow_ft.engine import loss
from mlflow_ft.engine.judging import parity
from mlflow_ft.engine.judging import reference as model_reference
from mlflow_ft.engine.merging import fold
from mlflow_ft.engine.models import loading
from mlflow_ft.engine.serving import bundle
from mlflow_ft.rows import Encoded

LIMIT = PackageSection().max_kl


def reference(run: SimpleNamespace) -> Path:
    return run.trained.folder / "reference.safetensors"


def adapted_model(run: SimpleNamespace) -> Any:
    return loading.load_trained(run.bench.job, run.bench.data, run.trained)


def test_kl_by_hand() -> None:
    trained = torch.tensor([[0.0, math.log(3)], [0.0, 0.0], [5.0, 5.0]])  # 1/4 3/4, 1/2 1/2, the same shifted
    actual = torch.tensor([[0.0, 0.0], [0.0, math.log(3)], [1.0, 1.0]])
    wanted = [
        0.25 * math.log(0.5) + 0.75 * math.log(1.5),
        0.5 * math.log(2) + 0.5 * math.log(2 / 3),
        0.0,
    ]
    torch.testing.assert_close(
        model_reference.kl(trained, actual), torch.tensor(wanted, dtype=torch.float64), rtol=0, atol=1e-7
    )


def test_kl_of_far_logits_is_finite_and_never_negative() -> None:
    near = torch.randn(50, 7, generator=torch.Generator().manual_seed(0))
    assert (model_reference.kl(near, near + 1e-7) >= 0).all()
    assert model_reference.kl(torch.tensor([[1e4, -1e4]]), torch.tensor([[-1e4, 1e4]])).item() == pytest.approx(2e4)


def test_kl_of_many_rows_is_computed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    trained, actual = torch.randn(2, 50, 7, generator=torch.Generator().manual_seed(0))
    whole = model_reference.kl(trained, actual)
    sizes: list[int] = []

    def one(expected: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        sizes.append(len(expected))
        return kl(expected, other)

    kl = model_reference._kl
    monkeypatch.setattr(model_reference, "AT_ONCE_BYTES", 8 * 7 * 20)
    monkeypatch.setattr(model_reference, "_kl", one)
    assert torch.equal(model_reference.kl(trained, actual), whole)
    assert sizes == [20, 20, 10]


@pytest.mark.parametrize("places", [[3, 4, 6], [0], [9]], ids=str)
def test_logits_of_other_tokens_are_not_computed(adapted: SimpleNamespace, places: list[int]) -> None:
    model, ids = adapted_model(adapted), torch.arange(10) + 20
    whole = model(input_ids=ids[None], use_cache=False).logits[0]
    computed: list[int] = []
    head = loss.causal_model(model).get_output_embeddings()
    handle = head.register_forward_hook(lambda layer, given, output: computed.append(output.shape[1]))
    found = model_reference.logits_at(model, ids, torch.tensor(places))
    handle.remove()
    torch.testing.assert_close(found, whole[places].detach().float(), rtol=1e-4, atol=1e-4)
    assert computed == [places[-1] - places[0] + 1]


def test_the_trained_model_read_back_is_the_trained_model(adapted: SimpleNamespace) -> None:
    numbers = parity.compare(adapted_model(adapted), reference(adapted))
    assert numbers["kl_max"] <= 1e-9
    assert numbers["top1_agreement"] == 1.0
    kept = load_file(reference(adapted))
    assert numbers["tokens"] == sum(len(value) for name, value in kept.items() if name.endswith("positions"))
    assert 0 < numbers["tokens"] <= model_reference.POSITIONS


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
    {"adapter": bundle.copy_adapter, "merged": fold.merge}[form](job, trained, tmp_path)
    numbers = parity.compare(loading.load_saved(job.config, trained.base, tmp_path), reference(adapted))
    assert numbers["kl_mean"] < 1e-6
    assert numbers["top1_agreement"] == 1.0


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
    numbers = parity.compare(harm(adapted_model(adapted)), reference(adapted))
    assert numbers["kl_mean"] > LIMIT
    assert numbers["kl_max"] >= numbers["kl_mean"]


class Told:
    """A form with fixed answers, like a program that reports only the most probable tokens."""

    def __init__(self, logits: torch.Tensor, answer: list[int]) -> None:
        self.answer, self.told = answer, logits

    def logits(self, input_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return self.told[: len(positions)]

    def continued(self, input_ids: torch.Tensor, length: int) -> list[int]:
        return self.answer[:length]


def written(file: Path, logits: torch.Tensor, answer: list[int]) -> Path:
    """A reference of one row, the tokens 0 1 2 0, compared after the second and the third."""
    kept = {
        "0.input_ids": torch.tensor([0, 1, 2, 0]),
        "0.positions": torch.tensor([1, 2]),
        "0.logits": logits,
        "0.base_kl": torch.tensor([0.5, 1.5], dtype=torch.float64),
        "0.continued": torch.tensor(answer),
    }
    save_file(kept, file)
    return file


def test_every_number_by_hand(tmp_path: Path) -> None:
    trained = torch.tensor([[0.5, 0.25, 0.25], [0.25, 0.25, 0.5]]).log()
    logits = torch.tensor([[0.25, 0.25, 0.5], [0.25, 0.25, 0.5]]).log()
    reference = written(tmp_path / "reference", trained, [2, 1])
    numbers = parity.measure(Told(logits, [2, 1, 1]), reference).numbers
    far = 0.5 * math.log(2) + 0.25 * math.log(0.5)
    # the next tokens are 2 and 0: log-likelihoods ln 1/4 + ln 1/4, and ln 1/2 + ln 1/4
    wanted = {"kl_mean": far / 2, "kl_max": far, "top1_agreement": 0.5, "perplexity_change": math.sqrt(0.5) - 1}
    wanted |= {"greedy_agreement": 0.0, "unstopped": 1.0, "kl_share": far / 2 / 1.0, "tokens": 2.0}
    assert numbers == pytest.approx(wanted, abs=1e-7)
    assert parity.measure(Told(trained, [2, 1]), reference).numbers["unstopped"] == 0
    assert parity.measure(Told(trained, [1, 2, 0]), reference).numbers["unstopped"] == 0  # it says something else
    logits[0, 2] = torch.nan  # the next token of the first has a NaN: only the second counts
    assert parity.measure(Told(logits, [2, 1]), reference).numbers["perplexity_change"] == pytest.approx(0, abs=1e-6)


def test_what_is_not_told_counts_as_one_outcome() -> None:
    nan = float("nan")
    trained = torch.tensor([[0.5, 0.25, 0.125, 0.125], [0.25, 0.25, 0.25, 0.25]]).log()
    actual = torch.tensor([[0.25, nan, nan, 0.5], [0.25, 0.25, nan, nan]]).log()
    wanted = [0.5 * math.log(2) + 0.125 * math.log(0.25) + 0.375 * math.log(1.5), 0.0]
    torch.testing.assert_close(
        model_reference.kl(trained, actual), torch.tensor(wanted, dtype=torch.float64), rtol=0, atol=1e-7
    )
    assert model_reference.filled(actual).exp().sum(dim=-1).tolist() == pytest.approx([1, 1])
    assert model_reference.filled(actual)[0].argmax() == 3


def test_a_model_that_computes_nothing_is_no_near_one() -> None:
    trained = torch.zeros(2, 3)
    actual = torch.tensor([[float("nan")] * 3, [0.0, 0.0, 0.0]])
    assert model_reference.kl(trained, actual).isnan().tolist() == [True, False]


def test_the_base_is_as_far_as_itself(adapted: SimpleNamespace) -> None:
    numbers = parity.compare(drop(adapted_model(adapted)), reference(adapted))
    assert numbers["kl_share"] == pytest.approx(1, rel=1e-4)
    assert parity.compare(adapted_model(adapted), reference(adapted))["kl_share"] == pytest.approx(0, abs=1e-6)


def test_the_reference_holds_what_the_model_says(adapted: SimpleNamespace) -> None:
    kept, model = load_file(reference(adapted)), adapted_model(adapted)
    row = next(row for row in adapted.bench.data.eval.encoded if row.supervised > 1)
    first = next(place for place, label in enumerate(row.labels) if label != -100)
    said = kept["0.continued"].tolist()
    assert [said] == model_reference.continued(model, [torch.tensor(row.input_ids[:first])], model_reference.LENGTH)
    assert 0 < len(said) <= model_reference.LENGTH
    assert f"{model_reference.PROMPTS}.continued" not in kept


def test_a_model_that_scores_answers_nothing(small: Callable[..., Path], tmp_path: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(small("llama"), num_labels=1).eval()
    row = Encoded(input_ids=(5, 6, 7), labels=(-100, 6, 7))
    save_file(model_reference.of_rows(model, [row]), tmp_path / "reference.safetensors")
    found = parity.measure(model_reference.Loaded(model), tmp_path / "reference.safetensors")
    assert (list(found.answers), found.numbers["kl_max"]) == ([], 0)

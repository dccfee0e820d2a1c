"""The longest batch before the first step: it is the longest, it has no effect, and too little memory shows in it."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM

from mlflow_ft.engine.checkpoints import tree
from mlflow_ft.engine.training import longest_batch, loop
from mlflow_ft.errors import MEMORY_REMEDIES, ResourceError, out_of_memory
from mlflow_ft.progress import Progress
from mlflow_ft.rows import Example
from mlflow_ft.testing import make_rows
from tests.engine.checkpoints.test_resuming import curves, lay, weights
from tests.rarely import some_always

CASES = {
    "lora": "4 rows of up to",
    "packed": "1 rows of up to",
    "accumulated, logged every third step": "4 rows of up to",
    "dpo full": "4 rows of up to",
    "kto full": "4 rows of up to",
    "simpo": "4 rows of up to",
    "reward": "4 rows of up to",
    "grpo full": "4 prompts of",
    "rloo": "4 prompts of",
}


def snapshot(trainer: Any) -> dict[str, str]:
    """All that the trainer and the layers of its model know, as text."""
    ours = {name: repr(value) for name, value in vars(trainer).items()}
    layers = {
        f"{name}.{key}": repr(value)
        for name, layer in trainer.model.named_modules()
        for key, value in {**vars(layer), **layer._buffers, "gradients": gradients(layer)}.items()
        if not key.startswith("_")
    }
    return ours | layers


def gradients(layer: torch.nn.Module) -> list[str]:
    return [name for name, weight in layer.named_parameters(recurse=False) if weight.grad is not None]


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The longest batch is always tried; lists what was, and what it changed."""
    batches: list[str] = []
    run = longest_batch.run

    def watched(trainer: Any, batch: longest_batch.LongestBatch) -> None:
        before = snapshot(trainer)
        run(trainer, batch)
        after = snapshot(trainer)
        changed = [name for name in before | after if before.get(name) != after.get(name)]
        batches.append("; ".join([batch.about, *changed]))

    monkeypatch.setattr(longest_batch, "MUCH_LONGER", 0)
    monkeypatch.setattr(longest_batch, "run", watched)
    return batches


@pytest.mark.parametrize(
    "case", some_always(CASES, "lora", "accumulated, logged every third step", "dpo full", "grpo full")
)
def test_it_has_no_effect_on_the_training(
    bench: Callable[..., Any], case: str, tmp_path: Path, tried: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.engine.checkpoints.test_resuming.STEPS", 2)
    with_it = lay(bench, case, tmp_path)
    with_it.train()
    assert len(tried) == 1
    assert tried[0].startswith(CASES[case])
    assert ";" not in tried[0], "it changed the trainer or the model"
    monkeypatch.setattr(longest_batch.LongestBatchCallback, "on_train_begin", lambda *_, **__: None)
    without = lay(bench, case, tmp_path)
    without.train()
    assert len(tried) == 1
    assert tree.differences(weights(with_it), weights(without)) == []
    assert tree.differences(curves(with_it), curves(without)) == []


def rows(*words: int) -> list[Example]:
    """Questions with so many words."""
    turns = [dict(turn) for turn in make_rows(1)[0]["messages"]]
    return [Example(messages=({"role": "user", "content": " ".join(["red"] * count)}, turns[1])) for count in words]


@pytest.mark.parametrize("last", [120, 5])
def test_on_a_cpu_it_runs_only_where_rows_are_much_longer(
    bench: Callable[..., Any], last: int, capsys: pytest.CaptureFixture[str]
) -> None:
    setup = bench("lora", rows=rows(*[4] * 20, last), max_steps=1, per_device_train_batch_size=2)
    setup = replace(setup, job=replace(setup.job, progress=Progress()))
    setup.train()
    said = [line for line in capsys.readouterr().err.splitlines() if "longest batch" in line]
    longest = max(len(row.input_ids) for row in setup.data.train.encoded)
    expected = [f"the longest batch fits into memory: 2 rows of up to {longest} tokens"]
    assert said == (expected if last > 100 else [])


def test_it_is_made_of_the_longest_rows() -> None:
    """Also through `select`, and by the longer side of a pair."""
    ids = [[1] * count for count in (3, 9, 4, 7)]
    pairs = Dataset.from_dict({"input_ids": ids, "rejected_ids": [[2], [2], [2] * 8, [2]]}).select([3, 2, 0])
    trainer = SimpleNamespace(train_dataset=pairs, _train_batch_size=2, data_collator=list)
    batch = longest_batch.of_rows(trainer)
    assert batch
    assert [len(row["input_ids"]) for row in batch.inputs] == [4, 7]  # type: ignore[attr-defined]  # a plain list
    assert batch.about == "2 rows of up to 8 tokens"
    assert batch.exceeds == 8 / 6
    answers = Dataset.from_dict({"prompt_ids": ids, "completion_ids": ids[::-1], "KL_completion_ids": ids})
    lengths = longest_batch.row_lengths(answers)
    assert lengths is not None
    assert lengths.tolist() == [10, 18, 13, 14]
    assert longest_batch.row_lengths(Dataset.from_dict({"row": ["{}"]})) is None


def test_rotary_positions_that_remember_the_longest_row_forget_this_one(tiny_model: Path) -> None:
    """With dynamic scaling, a long row changes the frequencies for all later rows."""
    scaled = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    ids = torch.arange(500)[None]
    logits = []
    for tried in (False, True):
        model = AutoModelForCausalLM.from_pretrained(tiny_model, rope_parameters=scaled)
        model(ids[:, :270])
        trainer: Any = SimpleNamespace(args=SimpleNamespace(gradient_accumulation_steps=1))
        with longest_batch._unchanged(trainer, model):
            model(ids if tried else ids[:, :8])
        logits += [model(ids[:, :length]).logits for length in (260, 400)]
    assert torch.equal(logits[0], logits[2])
    assert torch.equal(logits[1], logits[3])


def test_a_buffer_that_every_pass_changes_is_as_before() -> None:
    layer: Any = torch.nn.BatchNorm1d(4)
    buffer = layer.running_mean
    with longest_batch._unchanged(SimpleNamespace(args=SimpleNamespace(gradient_accumulation_steps=1)), layer):
        layer(torch.rand(8, 4))
        assert buffer.any()
    assert layer.running_mean is buffer
    assert not buffer.any()
    assert layer.num_batches_tracked == 0


@contextmanager
def little_memory(size: int) -> Iterator[None]:
    """At most `size` more bytes can be allocated."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def test_too_little_memory_is_reported_with_lengths_and_remedies(bench: Callable[..., Any]) -> None:
    setup = bench("full", rows=rows(*[4] * 200), per_device_train_batch_size=64, max_steps=1)

    def find(_: Any) -> longest_batch.LongestBatch:
        inputs = {name: torch.full((64, 4000), 5) for name in ("input_ids", "labels")}
        inputs["attention_mask"] = torch.ones(64, 4000, dtype=torch.long)
        return longest_batch.LongestBatch(inputs=inputs, about="64 rows of up to 4,000 tokens", exceeds=9)

    original = loop.LongestBatchCallback
    with pytest.MonkeyPatch.context() as patch, little_memory(2**28), pytest.raises(ResourceError) as refused:
        patch.setattr(loop, "LongestBatchCallback", lambda job, trainer, _: original(job, trainer, find))
        setup.train()
    assert refused.value.message.startswith("out of memory in the longest batch, 64 rows of up to 4,000 tokens: ")
    assert refused.value.hint == MEMORY_REMEDIES
    assert out_of_memory(refused.value) is None, "the end of the run would report it twice"
    assert not (setup.job.folder / "train" / "model").exists()


@pytest.mark.parametrize("optimizer", ["adamw_torch", "sgd"])
def test_the_memory_that_is_held_for_the_optimizer_is_what_it_takes(
    bench: Callable[..., Any], optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[tuple[int, int]] = []

    class Compared(longest_batch.LongestBatchCallback):
        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            trained = [weight for weight in self._trainer.model.parameters() if weight.requires_grad]
            states = self._trainer.optimizer.state.values()
            taken = [value for several in states for value in several.values() if isinstance(value, torch.Tensor)]
            real = sum(value.numel() * value.element_size() for value in taken if value.dim())
            sizes.append((longest_batch.state_size(self._trainer, trained), real))

    monkeypatch.setattr(loop, "LongestBatchCallback", Compared)
    bench("lora", max_steps=1, optim=optimizer).train()
    ((held, real),) = sizes
    assert held == real

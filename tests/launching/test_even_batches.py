"""How rows are dealt out to processes."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import SequentialSampler

from mlflow_ft.engine.training import even_batches
from mlflow_ft.engine.training.even_batches import EvenBatches

few = st.integers(min_value=1, max_value=5)


@given(rows=st.integers(min_value=1, max_value=60), size=few, processes=few)
def test_each_row_comes_once_and_each_step_has_the_rows_of_one_process(rows: int, size: int, processes: int) -> None:
    batches = list(EvenBatches(SequentialSampler(range(rows)), size=size, processes=processes))
    step = size * processes
    assert len(batches) == len(EvenBatches(SequentialSampler(range(rows)), size=size, processes=processes))
    assert len(batches) % processes == 0
    for number in range(len(batches) // processes):
        of_step = [row for batch in batches[number * processes :][:processes] for row in batch]
        assert of_step == list(range(rows))[number * step :][:step]


def test_a_process_without_a_row_gets_one_that_counts_nothing() -> None:
    def collate(rows: list[int]) -> dict[str, torch.Tensor]:
        return {"labels": torch.tensor([rows])}

    batch = even_batches.ForNone(collate, [7, 8], by_tokens=True)([])
    assert batch["labels"].tolist() == [[-100]]
    assert even_batches.STANDS_IN in batch
    assert even_batches.ForNone(collate, [7, 8], by_tokens=False)([])["labels"].tolist() == [[7]]
    assert even_batches.ForNone(collate, [7, 8], by_tokens=True)([8])["labels"].tolist() == [[8]]


@given(rows=st.integers(min_value=6, max_value=60), processes=few)
def test_the_last_rows_are_spread_evenly(rows: int, processes: int) -> None:
    batches = list(EvenBatches(SequentialSampler(range(rows)), size=5, processes=processes))
    sizes = [len(batch) for batch in batches[-processes:]]
    assert max(sizes) - min(sizes) <= 1

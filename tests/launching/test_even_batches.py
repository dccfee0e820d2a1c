"""How rows are dealt out to processes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import SequentialSampler

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


@given(rows=st.integers(min_value=6, max_value=60), processes=few)
def test_the_last_rows_are_spread_evenly(rows: int, processes: int) -> None:
    batches = list(EvenBatches(SequentialSampler(range(rows)), size=5, processes=processes))
    sizes = [len(batch) for batch in batches[-processes:]]
    assert max(sizes) - min(sizes) <= 1

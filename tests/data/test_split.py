"""Which rows are held out depends on what they are, never on where they stand; a mixture keeps its weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_ft.data import split
from mlflow_ft.errors import DataError

Keys = np.ndarray[Any, np.dtype[np.uint64]]


def keys(count: int) -> Keys:
    """So many different keys, which look random."""
    return split.shuffled(np.arange(count, dtype=np.uint64), 7)


def sides(row_keys: Keys, *, test_size: float, seed: int = 0) -> tuple[list[int], list[int]]:
    kept, held = split.hold_out(row_keys, test_size=test_size, seed=seed)
    return kept.tolist(), held.tolist()


@given(count=st.integers(2, 300), share=st.floats(0.01, 0.5), seed=st.integers(0, 2**32))
def test_the_sides_are_disjoint_cover_all_rows_and_are_the_same_again(count: int, share: float, seed: int) -> None:
    kept, held = sides(keys(count), test_size=share, seed=seed)
    assert sorted([*kept, *held]) == list(range(count))
    assert kept == sorted(kept)
    assert held == sorted(held)
    assert len(held) == max(1, round(count * share))
    assert (kept, held) == sides(keys(count), test_size=share, seed=seed)


@given(count=st.integers(2, 100), seed=st.integers(0, 100), order=st.randoms(use_true_random=False))
def test_the_order_of_the_rows_does_not_matter(count: int, seed: int, order: Any) -> None:
    row_keys = keys(count)
    places = list(range(count))
    order.shuffle(places)
    _, held = sides(row_keys, test_size=0.3, seed=seed)
    _, again = sides(row_keys[places], test_size=0.3, seed=seed)
    assert {int(row_keys[index]) for index in held} == {int(row_keys[places[index]]) for index in again}


@given(st.lists(st.integers(0, 12), min_size=2, max_size=80), st.integers(0, 50))
def test_no_group_is_on_both_sides(groups: list[int], seed: int) -> None:
    shuffled = split.shuffled(np.array(groups, dtype=np.uint64), 3)
    if len(set(groups)) < 2:
        with pytest.raises(DataError):
            split.hold_out(shuffled, test_size=0.2, seed=seed)
        return
    try:
        kept, held = sides(shuffled, test_size=0.2, seed=seed)
    except DataError:
        assert max(map(groups.count, groups)) > len(groups) / 2  # the group that came first has too many rows
        return
    assert not {groups[index] for index in kept} & {groups[index] for index in held}
    assert len(held) >= max(1, round(len(groups) * 0.2))


def test_another_seed_holds_out_other_rows() -> None:
    assert sides(keys(100), test_size=0.2, seed=1) != sides(keys(100), test_size=0.2, seed=2)


def test_a_test_size_of_one_or_more_is_a_count() -> None:
    assert len(sides(keys(10), test_size=3)[1]) == 3
    assert len(sides(keys(10), test_size=1)[1]) == 1


@pytest.mark.parametrize(("count", "test_size"), [(1, 0.1), (10, 10), (10, 11), (2, 0.9)])
def test_a_side_without_rows_is_refused(count: int, test_size: float) -> None:
    with pytest.raises(DataError, match=rf"data\.test_size {test_size:g} holds out \d+ of {count} rows") as error:
        split.hold_out(keys(count), test_size=test_size, seed=0)
    assert "data.eval_path" in error.value.hint


def test_a_crowd_is_a_group_with_most_of_the_rows() -> None:
    assert split.crowded(np.array([1, 1, 1, 2], dtype=np.uint64))
    assert not split.crowded(np.array([1, 1, 2, 2], dtype=np.uint64))
    assert not split.crowded(np.zeros(0, dtype=np.uint64))


def test_rows_that_are_alike_have_one_key_and_others_keep_theirs() -> None:
    keys, prompts, texts = (
        np.array(column, np.uint64) for column in ([9, 5, 7, 3, 8], [1, 1, 2, 4, 6], [1, 2, 2, 4, 6])
    )
    assert split.joined(keys, prompts, texts).tolist() == [5, 5, 5, 3, 8], "the third through the second"
    assert split.joined(keys, keys).tolist() == keys.tolist()
    assert split.joined(keys[:0], prompts[:0]).tolist() == []


# --- mixtures


def mixture(*counts: int) -> Keys:
    return np.repeat(np.arange(len(counts)), counts)


def taken(counts: tuple[int, ...], weights: list[float | None], seed: int = 0) -> list[int]:
    sources = mixture(*counts)
    chosen = split.mix(keys(len(sources)), sources, weights, seed=seed)
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    return [int((sources[chosen] == index).sum()) for index in range(len(counts))]


def test_sources_without_weights_are_taken_whole() -> None:
    assert taken((3, 5), [None, None]) == [3, 5]


@pytest.mark.parametrize(
    ("counts", "weights", "expected"),
    [
        ((100, 100), [0.7, 0.3], [100, 43]),
        ((100, 10), [1, 1], [10, 10]),
        ((10, 1000), [1, 5], [10, 50]),
        ((7,), [3], [7]),
        ((100, 1), [1000, 0.001], [100, 1]),
    ],
)
def test_the_sources_of_a_mixture_are_in_proportion_to_their_weights(
    counts: tuple[int, ...], weights: list[float | None], expected: list[int]
) -> None:
    assert taken(counts, weights) == expected


def test_which_rows_a_mixture_takes_depends_on_the_seed_and_on_what_they_are() -> None:
    row_keys, sources = keys(40), mixture(20, 20)
    first, other = (split.mix(row_keys, sources, [1, 0.5], seed=seed) for seed in (1, 2))
    assert first.tolist() != other.tolist()
    turned = np.concatenate([np.arange(20), np.arange(39, 19, -1)])
    again = split.mix(row_keys[turned], sources, [1, 0.5], seed=1)
    assert {int(row_keys[index]) for index in first} == {int(row_keys[turned][index]) for index in again}


def test_what_was_taken_is_counted_by_source() -> None:
    sources = mixture(3, 4)
    assert split.counts_by_source(np.array([0, 1, 5]), sources, ["a", "b"]) == {"a": (2, 3), "b": (1, 4)}

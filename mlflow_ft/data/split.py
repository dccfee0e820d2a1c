"""Which rows a mixture takes, and which are held out: by the hash of their content, never by their position."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mlflow_ft.errors import DataError

if TYPE_CHECKING:
    import numpy


def hold_out(
    keys: numpy.ndarray[Any, Any], *, test_size: float, seed: int
) -> tuple[numpy.ndarray[Any, Any], numpy.ndarray[Any, Any]]:
    """Choose the held-out rows under a seed; returns the indices (train, eval), each in the source's order.

    Rows of one key stay on one side, and whole groups are held out until there are enough: where groups are large, a
    few more rows are held out than requested. The choice depends only on the keys, not on their order.

    Raises:
        DataError: one of the sides would be empty.
    """
    import numpy as np

    count = len(keys)
    wanted = max(1, round(count * test_size) if test_size < 1 else int(test_size))
    if wanted >= count:
        raise _nothing_left(test_size, wanted, count)
    groups, of_row, sizes = np.unique(keys, return_inverse=True, return_counts=True)
    order = np.argsort(shuffled(groups, seed), kind="stable")
    chosen = order[: int(np.searchsorted(np.cumsum(sizes[order]), wanted)) + 1]
    held = np.isin(of_row, chosen)
    if held.all():
        raise _nothing_left(test_size, count, count)
    return np.flatnonzero(~held), np.flatnonzero(held)


def last_of_each(index: numpy.ndarray[Any, Any]) -> numpy.ndarray[Any, Any]:
    """The last place of every run of equal numbers: the last part of each row that is divided."""
    import numpy as np

    return np.flatnonzero(np.append(index[1:] != index[:-1], [True] * bool(len(index))))


def joined(keys: numpy.ndarray[Any, Any], *alike: numpy.ndarray[Any, Any]) -> numpy.ndarray[Any, Any]:
    """The keys, but that rows with the same number in one of the other columns have one key: the lowest of theirs.

    Rows are joined through others, too. A row that is like no other keeps its key, and with it its side of the split.
    """
    import numpy as np

    groups = [np.unique(column, return_inverse=True)[1] for column in alike]
    while True:
        before = keys
        for group in groups:
            lowest = np.full(len(keys), np.iinfo(np.uint64).max, np.uint64)
            np.minimum.at(lowest, group, keys)
            keys = lowest[group]
        if np.array_equal(before, keys):
            return keys


def crowded(keys: numpy.ndarray[Any, Any]) -> bool:
    """Whether one group has most of the rows, so that they cannot be split by group."""
    import numpy as np

    return bool(len(keys)) and int(np.unique(keys, return_counts=True)[1].max()) * 2 > len(keys)


def _nothing_left(test_size: float, held: int, count: int) -> DataError:
    return DataError(
        f"data.test_size {test_size:g} holds out {held} of {count} rows, which leaves nothing to train on",
        hint="lower data.test_size, add rows, split by another column, or name held-out rows with data.eval_path",
    )


def mix(
    hashes: numpy.ndarray[Any, Any], sources: numpy.ndarray[Any, Any], weights: Sequence[float | None], *, seed: int
) -> numpy.ndarray[Any, Any]:
    """The rows of a mixture: as many as possible in the proportion of the weights without repeating a row.

    Sources without weights are taken whole. Returns indices in the sources' order.
    """
    import numpy as np

    weighted = {index: weight for index, weight in enumerate(weights) if weight is not None}
    if not weighted:
        return np.arange(len(hashes))
    counts = np.bincount(sources, minlength=len(weights))
    unit = min(counts[index] / weight for index, weight in weighted.items())
    taken = []
    for index, weight in weighted.items():
        rows = np.flatnonzero(sources == index)
        order = np.argsort(shuffled(hashes[rows], seed + 1), kind="stable")
        taken.append(rows[order[: max(1, round(unit * weight))]])
    return np.sort(np.concatenate(taken))


def shuffled(values: numpy.ndarray[Any, Any], seed: int) -> numpy.ndarray[Any, Any]:
    """Every value (uint64) mixed into a pseudorandom one, under a seed (SplitMix64, doi 10.1145/2714064.2660195)."""
    import numpy as np

    with np.errstate(over="ignore"):
        mixed = values.astype(np.uint64) + np.uint64((seed + 1) * 0x9E3779B97F4A7C15 % 2**64)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def counts_by_source(
    taken: numpy.ndarray[Any, Any], sources: numpy.ndarray[Any, Any], names: Sequence[str]
) -> Mapping[str, tuple[int, int]]:
    """For every source, how many of its rows were taken, and how many it has."""
    import numpy as np

    total, used = (np.bincount(part, minlength=len(names)) for part in (sources, sources[taken]))
    return {name: (int(used[index]), int(total[index])) for index, name in enumerate(names)}

"""Rows in clusters: those that share a band of their MinHash signatures are compared, and joined if they are alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Hashes = npt.NDArray[np.uint64]
    Numbers = npt.NDArray[np.int64]
    Words32 = npt.NDArray[np.uint32]
    Alike = Callable[[Numbers, Numbers], npt.NDArray[np.bool_]]

SIGNATURE = 128
BAND = 5
"""25 bands of 5: two rows that share 80 % are compared with a probability of 0.9999, two that share 30 % with 0.06."""
STARTS = range(0, SIGNATURE - BAND + 1, BAND)
"""Where the bands begin."""
_LEADERS = 4
"""Rows of a bucket that the others are compared with, one after another: the cost stays linear in the rows."""
_ODD = 0x9E3779B97F4A7C15


def cluster(signatures: Words32, among: Numbers, alike: Alike) -> Numbers:
    """For every row, the first row of its cluster; the row itself where it is like no other."""
    return cluster_by(lambda start: sorted_band(signatures, start, among), len(signatures), alike)


def sorted_band(signatures: Words32, start: int, among: Numbers) -> tuple[Hashes, Numbers]:
    """The keys of some rows in a band, in order, and for each of them its row: of the same key, the first row first."""
    import numpy as np

    keys = band_keys(signatures, start, among)
    order = np.argsort(keys, kind="stable")
    return keys[order], among[order]


def band_keys(signatures: Words32, start: int, among: Numbers) -> Hashes:
    """A key of one band of the signatures of some rows: that of the five numbers from `start`."""
    import numpy as np

    keys = np.zeros(len(among), np.uint64)
    for column in range(start, start + BAND):
        keys = keys * np.uint64(_ODD) + signatures[among, column]
    return keys


def cluster_by(band_of: Callable[[int], tuple[Hashes, Numbers]], count: int, alike: Alike) -> Numbers:
    """`cluster`, of `count` rows of which `band_of` returns the `sorted_band` from a number on.

    A row that shares its key with no other may be missing there.

    Rows share a bucket where all five numbers of a band of their signatures agree. Only there are they compared, each
    with the first row of its bucket, and those that are not like it with the first of the rest.
    """
    import numpy as np

    sets = _Sets(count)
    for start in STARTS:
        keys, members = band_of(start)
        for _ in range(_LEADERS):
            leader = _first_of_run(keys)
            others = leader != np.arange(len(keys))
            first, other, keys = members[leader[others]], members[others], keys[others]
            apart = sets.join_alike(first, other, alike)
            keys, members = keys[apart], other[apart]
    return sets.roots


def _first_of_run(keys: npt.NDArray[np.uint64]) -> Numbers:
    """For every place in sorted keys, the first place with the same key."""
    import numpy as np

    places = np.arange(len(keys))
    begins = np.concatenate([np.ones(min(1, len(keys)), bool), keys[1:] != keys[:-1]])
    return np.maximum.accumulate(np.where(begins, places, 0))


class _Sets:
    """Rows in disjoint sets, each named by its first row."""

    def __init__(self, count: int) -> None:
        import numpy as np

        self.roots = np.arange(count)

    def join_alike(self, first: Numbers, other: Numbers, alike: Alike) -> npt.NDArray[np.bool_]:
        """Join the pairs that are alike; return for every pair whether it is still apart."""
        import numpy as np

        apart = self.roots[first] != self.roots[other]
        compared = np.flatnonzero(apart)
        joined = compared[alike(first[compared], other[compared])]
        for first_row, other_row in zip(first[joined].tolist(), other[joined].tolist(), strict=True):
            self._join(first_row, other_row)
        self._flatten()
        still: npt.NDArray[np.bool_] = self.roots[first] != self.roots[other]
        return still

    def _join(self, first: int, other: int) -> None:
        low, high = sorted((self._root(first), self._root(other)))
        self.roots[high] = low

    def _root(self, number: int) -> int:
        while (root := int(self.roots[number])) != number:
            number = root
        return number

    def _flatten(self) -> None:
        import numpy as np

        while not np.array_equal(flat := self.roots[self.roots], self.roots):
            self.roots = flat

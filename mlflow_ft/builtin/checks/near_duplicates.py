"""The check for near duplicates: MinHash signatures of all rows, compared where a band of them agrees."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from mlflow_ft import Checked, Finding
from mlflow_ft.builtin.checks.arrays import first_of, ranges, sizes_of
from mlflow_ft.builtin.checks.seen import Seen
from mlflow_ft.builtin.checks.words import fingerprint, ngrams, words

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from mlflow_ft import ChecksSection

    Numbers = npt.NDArray[np.int64]
    Words32 = npt.NDArray[np.uint32]
    Shares = npt.NDArray[np.float64]
    Alike = Callable[[Numbers, Numbers], npt.NDArray[np.bool_]]

_WORDS = 3
_SIGNATURE = 128
_BAND = 5
"""25 bands of 5: two rows that share 80 % are compared with a probability of 0.9999, two that share 30 % with 0.06."""
_LEADERS = 4
"""Rows of a bucket that the others are compared with, one after another: the cost stays linear in the rows."""
_EXACT = 128
"""Rows with at most this many shingles keep them, and are compared exactly where the estimate is close."""
_CLOSE = 0.12
"""Three to four standard deviations of the estimate."""
_BLOCK = 8192
_LARGEST = 20
_OF_A_BAD_ANSWER = 0x5BD1E995
_ODD = 0x9E3779B97F4A7C15


class NearDuplicates:
    """Collects per row a signature of 512 bytes, at most as many bytes of shingles, and an excerpt."""

    def __init__(self, settings: ChecksSection) -> None:
        self._shown = settings.max_examples
        self._least = settings.near_duplicate
        self._rows = 0
        self._seen = Seen()
        self._texts = array("Q")
        self._signatures = array("I")
        self._shingles = array("I")
        self._ends = array("q")

    def see(self, row: Checked) -> None:
        self._rows += 1
        shingles = _shingles(row)
        if not len(shingles):
            return
        self._seen.add(row, row.text)
        self._texts.append(fingerprint(" ".join(row.text.split())))
        self._signatures.frombytes(_signature(shingles).tobytes())
        if len(shingles) <= _EXACT:
            self._shingles.frombytes(shingles.tobytes())
        self._ends.append(len(self._shingles))

    def found(self) -> Finding:
        import numpy as np

        first = first_of(self._texts)  # the same text is an exact duplicate, not a near one
        distinct = np.flatnonzero(first == np.arange(len(first)))
        compared = _Compared(self._signatures, self._shingles, self._ends, self._least)
        roots = cluster(compared.signatures, distinct, compared.alike)
        near = np.flatnonzero(roots != np.arange(len(roots)))
        sizes = sizes_of(roots[near])
        return Finding(
            rows=tuple(self._seen.index[number] for number in near.tolist()),
            examples=tuple(self._example(number, int(roots[number])) for number in near[: self._shown].tolist()),
            details={
                "clusters": len(sizes),
                "sizes": sizes[:_LARGEST],
                "metrics": {"near_duplicate_share": len(near) / self._rows if self._rows else 0.0},
            },
        )

    def _example(self, number: int, first: int) -> dict[str, Any]:
        message = f"“{self._seen.excerpt(number)}” is like {self._seen.where(first)}: “{self._seen.excerpt(first)}”"
        return self._seen.place(number) | {"message": message}


class _Compared:
    """Signature and shingles of every row, and whether two rows are alike."""

    def __init__(self, signatures: array[int], shingles: array[int], ends: array[int], least: float) -> None:
        import numpy as np

        self.signatures = np.frombuffer(signatures, np.uint32).reshape(-1, _SIGNATURE)
        self._shingles = np.frombuffer(shingles, np.uint32)
        self._starts = np.concatenate([np.zeros(1, np.int64), np.frombuffer(ends, np.int64)])[:-1]
        self._counts = np.frombuffer(ends, np.int64) - self._starts
        self._least = least

    def alike(self, first: Numbers, other: Numbers) -> npt.NDArray[np.bool_]:
        """For every pair of rows, whether it is similar enough; pairs with the same first row are adjacent."""
        import numpy as np

        blocks = [slice(start, start + _BLOCK) for start in range(0, len(first), _BLOCK)]
        shared = [self._shared(first[block], other[block]) for block in blocks]
        return np.concatenate([np.empty(0), *shared]) >= self._least

    def _shared(self, first: Numbers, other: Numbers) -> Shares:
        """The share of common shingles of every pair: estimated, and exact where that may decide."""
        import numpy as np

        shares: Shares = (self.signatures[first] == self.signatures[other]).mean(axis=1)
        kept = (self._counts[first] > 0) & (self._counts[other] > 0)
        close = np.flatnonzero(kept & (np.abs(shares - self._least) <= _CLOSE))
        for group in np.split(close, np.flatnonzero(np.diff(first[close])) + 1) if len(close) else ():
            shares[group] = self._exactly(int(first[group[0]]), other[group])
        return shares

    def _exactly(self, first: int, others: Numbers) -> Shares:
        """The share of common shingles of one row and each of the others."""
        import numpy as np

        counts = self._counts[others]
        mine = self._shingles[self._starts[first] : self._starts[first] + self._counts[first]]
        theirs = self._shingles[ranges(self._starts[others], counts)]
        place = np.minimum(np.searchsorted(mine, theirs), len(mine) - 1)
        both = np.bincount(np.repeat(np.arange(len(others)), counts), mine[place] == theirs, len(others))
        share: Shares = both / (len(mine) + counts - both)
        return share


def _shingles(row: Checked) -> Words32:
    """Sorted unique hashes of a row's runs of three words; good and bad answers share none."""
    import numpy as np

    hashes = (ngrams(words(row.text), _WORDS) >> np.uint64(32)).astype(np.uint32)
    return np.unique(hashes ^ np.uint32(_OF_A_BAD_ANSWER) if row.example.label is False else hashes)


def _signature(shingles: Words32) -> Words32:
    from datasketch import MinHash

    signature = MinHash(_SIGNATURE, scheme="affine32", permutations=_permutations(), hashfunc=int)  # hashes already
    for start in range(0, len(shingles), _BLOCK):  # each of them takes 512 bytes and more on the way
        signature.update_batch(shingles[start : start + _BLOCK].tolist())
    hashes: Words32 = signature.hashvalues
    return hashes


@cache
def _permutations() -> Any:
    from datasketch import MinHash

    return MinHash(_SIGNATURE, scheme="affine32").permutations


def cluster(signatures: Words32, among: Numbers, alike: Alike) -> Numbers:
    """For every row, the first row of its cluster; the row itself where it is like no other.

    Rows share a bucket where all five numbers of a band of their signatures agree. Only there are they compared, each
    with the first row of its bucket, and those that are not like it with the first of the rest.
    """
    import numpy as np

    sets = _Sets(len(signatures))
    for start in range(0, _SIGNATURE - _BAND + 1, _BAND):
        keys = np.zeros(len(among), np.uint64)
        for column in range(start, start + _BAND):
            keys = keys * np.uint64(_ODD) + signatures[among, column]
        order = np.argsort(keys, kind="stable")
        keys, members = keys[order], among[order]
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

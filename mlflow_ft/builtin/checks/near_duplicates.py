"""The check for near duplicates: MinHash signatures of all rows, compared where a band of them agrees."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from mlflow_ft import Checked, Finding
from mlflow_ft.builtin.checks.arrays import first_of, ranges, sizes_of
from mlflow_ft.builtin.checks.clusters import SIGNATURE, cluster
from mlflow_ft.builtin.checks.seen import Seen
from mlflow_ft.builtin.checks.words import fingerprint, ngrams, words

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from mlflow_ft import ChecksSection

    Hashes = npt.NDArray[np.uint64]
    Numbers = npt.NDArray[np.int64]
    Words32 = npt.NDArray[np.uint32]
    Shares = npt.NDArray[np.float64]

_WORDS = 3
_EXACT = 128
"""Rows with at most this many shingles keep them, and are compared exactly where the estimate is close."""
_CLOSE = 0.12
"""Three to four standard deviations of the estimate."""
_BLOCK = 8192
_LARGEST = 20
_OF_A_BAD_ANSWER = 0x5BD1E995


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

    def join(self, later: NearDuplicates) -> None:
        """Add what another one has seen of later rows."""
        begin = len(self._shingles)
        self._rows += later._rows
        self._seen.extend(later._seen)
        self._texts.extend(later._texts)
        self._signatures.extend(later._signatures)
        self._shingles.extend(later._shingles)
        self._ends.extend(begin + end for end in later._ends)

    def found(self) -> Finding:
        compared = self.compared(self._least)
        distinct = distinct_of(self._texts)
        roots = cluster(compared.signatures, distinct, compared.alike)
        return finding(roots, self.outline(), self.shown, most=self._shown)

    def outline(self) -> Outline:
        """What is little of every row."""
        import numpy as np

        return Outline(
            rows=self._rows,
            texts=np.frombuffer(self._texts, np.uint64),
            index=np.frombuffer(self._seen.index, np.int64),
        )

    def compared(self, least: float) -> Compared:
        """Signatures and shingles, for comparisons."""
        return Compared(self._signatures, self._shingles, self._ends, least)

    def shown(self, numbers: Sequence[int]) -> list[Shown]:
        """Place and excerpt of rows."""
        return [Shown(place=self._seen.place(number), excerpt=self._seen.excerpt(number)) for number in numbers]


@dataclass(frozen=True, kw_only=True)
class Outline:
    """What is little of every row."""

    rows: int
    """Rows seen, also those without shingles, which the arrays leave out."""
    texts: Hashes
    index: Numbers


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A row in an example."""

    place: Mapping[str, Any]
    excerpt: str


def distinct_of(texts: array[int] | Hashes) -> Numbers:
    """The rows whose text no earlier row has: the same text is an exact duplicate, not a near one."""
    import numpy as np

    first = first_of(texts)
    return np.flatnonzero(first == np.arange(len(first)))


def finding(roots: Numbers, outline: Outline, shown: Callable[[Sequence[int]], list[Shown]], *, most: int) -> Finding:
    """The finding, by the first row of every row's cluster."""
    import numpy as np

    near = np.flatnonzero(roots != np.arange(len(roots)))
    sizes = sizes_of(roots[near])
    some = near[:most]
    examples = zip(shown(some.tolist()), shown(roots[some].tolist()), strict=True)
    return Finding(
        rows=tuple(outline.index[near].tolist()),
        examples=tuple(_example(row, first) for row, first in examples),
        details={
            "clusters": len(sizes),
            "sizes": sizes[:_LARGEST],
            "metrics": {"near_duplicate_share": len(near) / outline.rows if outline.rows else 0.0},
        },
    )


def _example(row: Shown, first: Shown) -> dict[str, Any]:
    where = f"{first.place['file']}:{first.place['line']}"
    return dict(row.place) | {"message": f"“{row.excerpt}” is like {where}: “{first.excerpt}”"}


class Compared:
    """Signature and shingles of every row, and whether two rows are alike."""

    def __init__(self, signatures: array[int], shingles: array[int], ends: array[int], least: float) -> None:
        import numpy as np

        self.signatures = np.frombuffer(signatures, np.uint32).reshape(-1, SIGNATURE)
        self._shingles = np.frombuffer(shingles, np.uint32)
        self._starts = np.concatenate([np.zeros(1, np.int64), np.frombuffer(ends, np.int64)])[:-1]
        self._counts = np.frombuffer(ends, np.int64) - self._starts
        self._least = least

    def taken(self, numbers: Numbers) -> tuple[bytes, bytes, Numbers]:
        """Signatures, shingles and where they end, of some rows: what compares them elsewhere."""
        import numpy as np

        counts = self._counts[numbers]
        shingles = self._shingles[ranges(self._starts[numbers], counts)]
        return self.signatures[numbers].tobytes(), shingles.tobytes(), np.cumsum(counts)

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

    signature = MinHash(SIGNATURE, scheme="affine32", permutations=_permutations(), hashfunc=int)  # hashes already
    for start in range(0, len(shingles), _BLOCK):  # each of them takes 512 bytes and more on the way
        signature.update_batch(shingles[start : start + _BLOCK].tolist())
    hashes: Words32 = signature.hashvalues
    return hashes


@cache
def _permutations() -> Any:
    from datasketch import MinHash

    return MinHash(SIGNATURE, scheme="affine32").permutations

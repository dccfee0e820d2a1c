"""The check for near duplicates where the rows' signatures are on several machines.

The clustering is that of one machine. Only little comes here: which rows share a band, for which the keys of all bands
are shuffled among the machines, and whether two rows are alike. Signatures and shingles stay where they were made;
those of rows that share a band are sent to the machine that compares them.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mlflow_ft import Finding
from mlflow_ft.builtin.checks.clusters import STARTS, band_keys, cluster_by
from mlflow_ft.builtin.checks.near_duplicates import (
    Compared,
    NearDuplicates,
    Outline,
    Shown,
    distinct_of,
    finding,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow

    from mlflow_ft import ChecksSection, Machines

    Hashes = npt.NDArray[np.uint64]

    Numbers = npt.NDArray[np.int64]
    Piece = tuple[bytes, bytes, Numbers]

_PLACES = 32
"""The most tasks among which the comparisons of one round are shared out."""


def found_across(parts: Sequence[Any], machines: Machines, settings: ChecksSection) -> Finding:
    """The finding over all rows; `parts` are handles of the collectors of consecutive rows."""
    import numpy as np

    outlines: list[Outline] = machines.get([machines.run(NearDuplicates.outline, part) for part in parts])
    whole = Outline(
        rows=sum(outline.rows for outline in outlines),
        texts=np.concatenate([np.empty(0, np.uint64), *(outline.texts for outline in outlines)]),
        index=np.concatenate([np.empty(0, np.int64), *(outline.index for outline in outlines)]),
    )
    spread = _Spread(parts, machines, [len(outline.index) for outline in outlines], settings.near_duplicate)
    bands = _Bands(spread.banded(), distinct_of(whole.texts), len(whole.index))
    roots = cluster_by(bands.sorted_band, len(whole.index), spread.alike)
    return finding(roots, whole, spread.shown, most=settings.max_examples)


class _Bands:
    """The rows that share a band with another one."""

    def __init__(self, banded: pyarrow.Table, distinct: Numbers, count: int) -> None:
        """Of `count` rows, only those that are `distinct` are compared."""
        import numpy as np

        band, key, row = (banded.column(name).to_numpy() for name in ("band", "key", "row"))
        compared = np.zeros(count, bool)
        compared[distinct] = True
        order = np.lexsort((row, key, band))
        order = order[compared[row[order]]]
        self._key, self._row = key[order], row[order]
        self._begins = np.searchsorted(band[order], np.arange(len(STARTS) + 1))

    def sorted_band(self, start: int) -> tuple[Hashes, Numbers]:
        """The keys of a band, in order, and for each of them its row."""
        number = STARTS.index(start)
        own = slice(self._begins[number], self._begins[number + 1])
        return self._key[own], self._row[own]


class _Spread:
    """Rows in parts on several machines, numbered through."""

    def __init__(self, parts: Sequence[Any], machines: Machines, counts: Sequence[int], least: float) -> None:
        import numpy as np

        self._parts, self._machines, self._least = parts, machines, least
        self._begins = np.cumsum([0, *counts])

    def banded(self) -> pyarrow.Table:
        """Of every row that shares a band with another one: the number of the band, the key and the row."""
        begins = self._begins[:-1].tolist()
        tables = [self._machines.run(_banded, part, begin) for part, begin in zip(self._parts, begins, strict=True)]
        return self._machines.shared(tables, ["band", "key"])

    def alike(self, first: Numbers, other: Numbers) -> npt.NDArray[np.bool_]:
        """For every pair, whether it is similar enough: compared where the pair's first row says."""
        import numpy as np

        places = min(_PLACES, len(self._parts))
        place = first % max(1, places)
        pairs = [np.flatnonzero(place == number) for number in range(places)]
        wanted = [np.unique(np.concatenate([first[some], other[some]])) for some in pairs]
        answers = [
            self._machines.run(
                _compare,
                self._least,
                np.searchsorted(rows, first[some]),
                np.searchsorted(rows, other[some]),
                *self._pieces(rows),
            )
            for some, rows in zip(pairs, wanted, strict=True)
            if len(some)
        ]
        same = np.zeros(len(first), bool)
        for some, answer in zip(filter(len, pairs), self._machines.get(answers), strict=True):
            same[some] = answer
        return same

    def _pieces(self, rows: Numbers) -> list[Any]:
        """Handles of the signatures of rows, which are in order, from each part that has some of them."""
        import numpy as np

        cuts = np.searchsorted(rows, self._begins)
        return [
            self._machines.run(_taken, part, rows[begin:end] - first)
            for part, first, begin, end in zip(self._parts, self._begins[:-1], cuts[:-1], cuts[1:], strict=True)
            if end > begin
        ]

    def shown(self, numbers: Sequence[int]) -> list[Shown]:
        """Place and excerpt of rows."""
        import numpy as np

        part = np.searchsorted(self._begins, numbers, "right") - 1
        handles = [
            self._machines.run(NearDuplicates.shown, self._parts[which], [int(number - self._begins[which])])
            for number, which in zip(numbers, part.tolist(), strict=True)
        ]
        return [row for [row] in self._machines.get(handles)]


def _banded(part: NearDuplicates, begin: int) -> pyarrow.Table:
    """The keys of every row in all bands; rows are numbered from `begin`."""
    import numpy as np
    import pyarrow as pa

    signatures = part.compared(0.0).signatures
    own = np.arange(len(signatures))
    keys = [band_keys(signatures, start, own) for start in STARTS]
    columns = {
        "band": np.repeat(np.arange(len(STARTS), dtype=np.int64), len(own)),
        "key": np.concatenate(keys).view(np.int64),
        "row": np.tile(own + begin, len(STARTS)),
    }
    return pa.table(columns)


def _taken(part: NearDuplicates, numbers: Numbers) -> Piece:
    return part.compared(0.0).taken(numbers)


def _compare(least: float, first: Numbers, other: Numbers, *pieces: Piece) -> npt.NDArray[np.bool_]:
    signatures, shingles, ends = array("I"), array("I"), array("q")
    for some_signatures, some_shingles, some_ends in pieces:
        begin = len(shingles)
        signatures.frombytes(some_signatures)
        shingles.frombytes(some_shingles)
        ends.extend((some_ends + begin).tolist())
    return Compared(signatures, shingles, ends, least).alike(first, other)

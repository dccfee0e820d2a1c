"""The check for near duplicates where the rows' signatures are on several machines.

The clustering is that of one machine. Only little comes here: the key of every row in the present band, and whether
two rows are alike. Signatures and shingles stay where they were made; those of rows that share a bucket are sent to
the machine that compares them.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mlflow_ft import Finding
from mlflow_ft.builtin.checks.clusters import BAND, SIGNATURE, band_keys, cluster_by
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

    from mlflow_ft import ChecksSection, Machines

    Numbers = npt.NDArray[np.int64]
    Piece = tuple[bytes, bytes, Numbers]

_TOGETHER = 5
"""Bands whose keys are asked for at once: 40 bytes a row."""
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
    distinct = distinct_of(whole.texts)
    roots = cluster_by(lambda start: spread.keys(start)[distinct], len(whole.index), distinct, spread.alike)
    return finding(roots, whole, spread.shown, most=settings.max_examples)


class _Spread:
    """Rows in parts on several machines, numbered through."""

    def __init__(self, parts: Sequence[Any], machines: Machines, counts: Sequence[int], least: float) -> None:
        import numpy as np

        self._parts, self._machines, self._least = parts, machines, least
        self._begins = np.cumsum([0, *counts])
        self._keys: dict[int, npt.NDArray[np.uint64]] = {}

    def keys(self, start: int) -> npt.NDArray[np.uint64]:
        """The key of every row in a band; they come for a few bands at a time."""
        import numpy as np

        if start not in self._keys:
            bands = [start + BAND * number for number in range(_TOGETHER)]
            bands = [band for band in bands if band + BAND <= SIGNATURE]
            of_parts = self._machines.get([self._machines.run(_keys, part, bands) for part in self._parts])
            self._keys = dict(zip(bands, np.concatenate(of_parts, axis=1), strict=True))
        return self._keys.pop(start)

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


def _keys(part: NearDuplicates, bands: Sequence[int]) -> npt.NDArray[np.uint64]:
    import numpy as np

    signatures = part.compared(0.0).signatures
    return np.stack([band_keys(signatures, start, np.arange(len(signatures))) for start in bands])


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

"""Array arithmetic for the checks that compare rows with each other."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Hashes = npt.NDArray[np.uint64]
    Numbers = npt.NDArray[np.int64]


def first_of(hashes: array[int] | Hashes) -> Numbers:
    """For every row, the number of the first row with the same hash."""
    import numpy as np

    _, first, group = np.unique(np.frombuffer(hashes, np.uint64), return_index=True, return_inverse=True)
    return first[group]


def sizes_of(firsts: Numbers) -> list[int]:
    """Sizes of the groups that start at these first rows (one entry per further row), largest first."""
    import numpy as np

    return sorted((int(count) + 1 for count in np.unique(firsts, return_counts=True)[1]), reverse=True)


def ranges(starts: Numbers, counts: Numbers) -> Numbers:
    """Concatenated ranges, each with its start and count: [5, 9], [2, 3] gives 5 6 9 10 11."""
    import numpy as np

    before = np.cumsum(counts) - counts
    numbers: Numbers = np.arange(counts.sum()) + np.repeat(starts - before, counts)
    return numbers

"""Checks of lengths in tokens: their distribution, and what is cut."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Any

from mlflow_ft import Checked, Finding
from mlflow_ft.builtin.checks.seen import Seen

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from mlflow_ft import ChecksSection

_BARS = 40
_BEYOND = 3
"""A length this many interquartile ranges above the third quartile is an outlier (Tukey's outer fence)."""
_TIMES_THE_MEDIAN = 4
_SHOWN_PERCENTILES = 1.25
"""The histogram ends at this many times the 99th percentile; longer rows count in its last bar."""


class Lengths:
    """Collects the length of every row."""

    def __init__(self, settings: ChecksSection) -> None:
        self._shown = settings.max_examples
        self._seen = Seen()
        self._tokens = array("q")
        self._max_length = 0

    def see(self, row: Checked) -> None:
        self._seen.add(row)
        self._tokens.append(row.tokens)
        self._max_length = row.max_length

    def join(self, later: Lengths) -> None:
        self._seen.extend(later._seen)
        self._tokens.extend(later._tokens)
        self._max_length = later._max_length

    def found(self) -> Finding:
        import numpy as np

        if not self._tokens:
            return Finding()
        tokens = np.frombuffer(self._tokens, np.int64)
        low, median, high = np.percentile(tokens, [25, 50, 75])
        fence = high + _BEYOND * (high - low)
        outliers = np.flatnonzero((tokens > fence) & (tokens >= _TIMES_THE_MEDIAN * median)).tolist()
        longest = sorted(outliers, key=lambda number: -self._tokens[number])
        return Finding(
            rows=tuple(self._seen.index[number] for number in outliers),
            examples=tuple(self._example(number, float(median)) for number in longest[: self._shown]),
            details=_spread(tokens) | {"histogram": _histogram(tokens) | {"mark": self._max_length or None}},
        )

    def _example(self, number: int, median: float) -> dict[str, Any]:
        length = self._tokens[number]
        times = f", {length / median:.0f} times the median" if median else ""
        return self._seen.place(number) | {"message": f"{length:,} tokens{times}"}


def _spread(tokens: npt.NDArray[np.int64]) -> dict[str, Any]:
    import numpy as np

    mean, deviation = float(tokens.mean()), float(tokens.std())
    median, p95, p99 = (float(value) for value in np.percentile(tokens, [50, 95, 99]))
    return {
        "min": int(tokens.min()),
        "mean": mean,
        "median": median,
        "p95": p95,
        "p99": p99,
        "max": int(tokens.max()),
        "standard_deviation": deviation,
        "coefficient_of_variation": deviation / mean if mean else 0.0,
        "metrics": {
            "tokens_mean": mean,
            "tokens_median": median,
            "tokens_p95": p95,
            "tokens_max": int(tokens.max()),
            "tokens_total": int(tokens.sum()),
        },
    }


def _histogram(values: npt.NDArray[np.int64]) -> dict[str, Any]:
    import numpy as np

    top = min(int(values.max()), int(_SHOWN_PERCENTILES * np.percentile(values, 99))) + 1
    counts, edges = np.histogram(np.minimum(values, top), bins=min(_BARS, top), range=(0, top))
    return {"x": "length in tokens", "edges": [round(float(edge), 2) for edge in edges], "counts": counts.tolist()}


class OverMaxLength:
    """Collects the rows that are longer than `data.max_length`."""

    def __init__(self, settings: ChecksSection) -> None:
        self._shown = settings.max_examples
        self._tokens = array("q")
        self._over = Seen()
        self._lengths = array("q")
        self._max_length = 0

    def see(self, row: Checked) -> None:
        self._tokens.append(row.tokens)
        self._max_length = row.max_length
        if 0 < row.max_length < row.tokens:
            self._over.add(row)
            self._lengths.append(row.tokens)

    def join(self, later: OverMaxLength) -> None:
        self._tokens.extend(later._tokens)
        self._over.extend(later._over)
        self._lengths.extend(later._lengths)
        self._max_length = later._max_length

    def found(self) -> Finding:
        import numpy as np

        if not self._tokens:
            return Finding()
        tokens = np.frombuffer(self._tokens, np.int64)
        keep_all, keep_99 = int(tokens.max()), int(np.percentile(tokens, 99, method="higher"))
        lost = sum(self._lengths) - len(self._lengths) * self._max_length
        return Finding(
            rows=tuple(self._over.index),
            examples=tuple(self._example(number) for number in range(min(self._shown, len(self._over)))),
            details={
                "max_length": self._max_length,
                "max_length_for_all": keep_all,
                "max_length_for_99_percent": keep_99,
                "tokens_cut": lost,
                "metrics": {"tokens_cut": lost},
            },
            remedy=self._remedy(keep_all, keep_99) if len(self._over) else "",
        )

    def _example(self, number: int) -> dict[str, Any]:
        length = self._lengths[number]
        cut = length - self._max_length
        return self._over.place(number) | {"message": f"{length:,} tokens: the last {cut:,} are cut"}

    def _remedy(self, keep_all: int, keep_99: int) -> str:
        most = f", {keep_99} keeps 99 % of them" if self._max_length < keep_99 < keep_all else ""
        return f"data.max_length={keep_all} keeps all rows whole{most}; or shorten the rows"

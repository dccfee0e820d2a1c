"""What both sorts of progress say: durations, and the latest values of a training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

LATEST = 20
"""Steps from whose pace the remaining time follows."""
MINUTES_FROM = 100
"""Seconds from which a time is in minutes."""
BLOCKS = "▁▂▃▄▅▆▇█"


def duration(seconds: float) -> str:
    """A time in few words.

    >>> duration(48), duration(600), duration(9000)
    ('48 s', '10 min', '2 h 30 min')
    """
    if seconds < MINUTES_FROM:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


class Latest:
    """The curves of a training with their latest values, and facts such as its speed."""

    def __init__(self) -> None:
        self.curves: dict[str, dict[int, float]] = {}
        self.facts: dict[str, str] = {}

    def point(self, name: str, value: float, *, step: int) -> None:
        """Add a value to a curve."""
        self.curves.setdefault(name, {})[step] = value

    def words(self) -> Iterator[str]:
        """The latest value of each curve, then the facts."""
        for name, curve in self.curves.items():
            yield f"{name} {list(curve.values())[-1]:.3f}"
        yield from self.facts.values()


def sparkline(values: Sequence[float], width: int) -> str:
    """A curve in one line of text, at most `width` characters: each is the mean of its share of the values.

    >>> sparkline([4, 3, 2, 1], 8), sparkline([1, 1, 4, 4], 2), sparkline([2, 2], 8), sparkline([1], 8)
    ('█▆▃▁', '▁█', '▁▁', '')
    """
    if len(values) < 2:
        return ""
    width = min(width, len(values))
    edges = [round(number * len(values) / width) for number in range(width + 1)]
    means = [sum(values[begin:end]) / (end - begin) for begin, end in pairwise(edges)]
    low, high = min(means), max(means)
    scale = (len(BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(BLOCKS[round((mean - low) * scale)] for mean in means)

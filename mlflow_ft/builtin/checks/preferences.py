"""Checks of preferences: pairs without a preference, length that gives the better answer away, unbalanced labels."""

from __future__ import annotations

import math
from array import array
from typing import TYPE_CHECKING, Any

from mlflow_ft import Checked, Finding, Message
from mlflow_ft.builtin.checks.seen import content

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from mlflow_ft import ChecksSection

_FEWEST_PAIRS = 30
_BIASED = 0.65
_SURE = 0.01
_EXACT = 1000
"""Up to this many pairs the sign test is exact; beyond it the normal approximation is good enough."""
_RARE = 0.1
_BARS = 30


def identical_pair(row: Checked) -> str | None:
    """A chosen and a rejected answer that are the same, so that there is nothing to prefer."""
    chosen, rejected = ([_without_space(turn) for turn in side] for side in (row.example.chosen, row.example.rejected))
    return "chosen and rejected are the same" if chosen == rejected else None


def _without_space(turn: Message) -> tuple[str, str, object]:
    return turn["role"], " ".join(content(turn).split()), turn.get("tool_calls")


class LengthBias:
    """Collects the length of both answers, in characters."""

    def __init__(self, settings: ChecksSection) -> None:
        self._chosen = array("q")
        self._rejected = array("q")

    def see(self, row: Checked) -> None:
        self._chosen.append(sum(len(content(turn)) for turn in row.example.chosen))
        self._rejected.append(sum(len(content(turn)) for turn in row.example.rejected))

    def join(self, later: LengthBias) -> None:
        self._chosen.extend(later._chosen)
        self._rejected.extend(later._rejected)

    def found(self) -> Finding:
        import numpy as np

        if not self._chosen:
            return Finding()
        chosen, rejected = np.frombuffer(self._chosen, np.int64), np.frombuffer(self._rejected, np.int64)
        longer, shorter = int((chosen > rejected).sum()), int((chosen < rejected).sum())
        pairs, p_value = longer + shorter, sign_test(longer, shorter)
        share = longer / pairs if pairs else 0.5
        biased = pairs >= _FEWEST_PAIRS and not 1 - _BIASED <= share <= _BIASED and p_value < _SURE
        details = {
            "found": biased,
            "preferred": ("longer" if longer > shorter else "shorter") if biased else None,
            "pairs_of_different_length": pairs,
            "chosen_longer_share": share,
            "p_value": p_value,
            "chosen_mean": float(chosen.mean()),
            "chosen_median": float(np.median(chosen)),
            "rejected_mean": float(rejected.mean()),
            "rejected_median": float(np.median(rejected)),
            "histogram": _histogram(chosen, rejected),
            "metrics": {"chosen_longer_share": share},
        }
        return Finding(details=details, count=max(longer, shorter) if biased else 0)


def sign_test(more: int, less: int) -> float:
    """Two-sided probability that a fair coin falls at least as unevenly."""
    count, fewer = more + less, min(more, less)
    if count > _EXACT:
        return min(1.0, math.erfc((abs(more - less) - 1) / math.sqrt(2 * count)))
    tail = sum(math.comb(count, number) for number in range(fewer + 1))
    return min(1.0, 2 * tail / (1 << count))


def _histogram(chosen: npt.NDArray[np.int64], rejected: npt.NDArray[np.int64]) -> dict[str, Any]:
    import numpy as np

    top = int(np.percentile(np.concatenate([chosen, rejected]), 99)) + 1
    sides = {"chosen": chosen, "rejected": rejected}
    counts = {
        side: np.histogram(np.minimum(lengths, top), _BARS, (0, top))[0].tolist() for side, lengths in sides.items()
    }
    return {
        "x": "length in characters",
        "edges": [round(top * bar / _BARS, 2) for bar in range(_BARS + 1)],
        "counts": counts,
    }


class LabelBalance:
    """Counts good and bad answers."""

    def __init__(self, settings: ChecksSection) -> None:
        self._good = 0
        self._bad = 0

    def see(self, row: Checked) -> None:
        if row.example.label:
            self._good += 1
        else:
            self._bad += 1

    def join(self, later: LabelBalance) -> None:
        self._good += later._good
        self._bad += later._bad

    def found(self) -> Finding:
        rows = self._good + self._bad
        share = self._good / rows if rows else 0.0
        lopsided = rows > 0 and min(share, 1 - share) < _RARE
        details = {
            "found": lopsided,
            "good": self._good,
            "bad": self._bad,
            "good_share": share,
            "metrics": {"good_share": share},
        }
        return Finding(details=details, count=max(self._good, self._bad) if lopsided else 0)

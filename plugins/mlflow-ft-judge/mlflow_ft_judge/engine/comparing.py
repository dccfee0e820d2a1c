"""Two models' answers compared pair by pair, each pair in both orders; what the orders disagree on is a tie."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mlflow_ft import Answer
from mlflow_ft_judge.engine import agreement, prompts
from mlflow_ft_judge.engine.asking import Asked, Judgement

WIN, TIE, LOSS = 1.0, 0.5, 0.0
SAME = "both answers are the same"


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One judge's verdicts on one pair of answers, ours and the other model's."""

    ours_second: Judgement
    """With the other model's answer shown first."""
    ours_first: Judgement

    @property
    def result(self) -> float | None:
        """1 if ours won in both orders, 0 if it lost in both, else 0.5; None if an order was not judged."""
        second, first = self.orders
        if second is None or first is None:
            return None
        return second if second == first else TIE

    @property
    def orders(self) -> tuple[float | None, float | None]:
        """The result with our answer shown second, and shown first."""
        return _result(self.ours_second, ours=prompts.SECOND), _result(self.ours_first, ours=prompts.FIRST)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The verdicts of all judges on all pairs."""

    by_judge: Sequence[Sequence[Pair]]

    @property
    def rows(self) -> list[float | None]:
        """The result of each pair, the mean of the judges'; None if a judge has none."""
        rows = []
        for pairs in zip(*self.by_judge, strict=True):
            results = [pair.result for pair in pairs if pair.result is not None]
            rows.append(sum(results) / len(results) if len(results) == len(pairs) else None)
        return rows

    @property
    def order_agreement(self) -> float:
        """The share of pairs on which the two orders agree, among those that were judged in both and differ."""
        orders = [pair.orders for pair in self._asked()]
        return agreement.share([second for second, _ in orders], [first for _, first in orders])

    @property
    def position_bias(self) -> float:
        """How much more often the answer that is shown first wins than the second, -1 to 1; 0 is fair.

        Each pair was judged in both orders, so the better answer is first as often as second.
        """
        firsts = sum((pair.ours_first.value, pair.ours_second.value).count(prompts.FIRST) for pair in self._asked())
        seconds = sum((pair.ours_first.value, pair.ours_second.value).count(prompts.SECOND) for pair in self._asked())
        return (firsts - seconds) / (firsts + seconds) if firsts + seconds else 0.0

    @property
    def judge_agreement(self) -> tuple[float, float] | None:
        """Share of equal results and kappa between the judges; None if there is one judge."""
        if len(self.by_judge) < 2:
            return None
        results = [[pair.result for pair in pairs] for pairs in self.by_judge]
        pairs = list(itertools.combinations(results, 2))
        shares = [agreement.share(one, other) for one, other in pairs]
        kappas = [agreement.kappa(one, other, (LOSS, TIE, WIN)) for one, other in pairs]
        return sum(shares) / len(shares), sum(kappas) / len(kappas)

    def _asked(self) -> list[Pair]:
        """The pairs that a judge has seen in both orders."""
        pairs = [pair for pairs in self.by_judge for pair in pairs if pair.ours_first.reason != SAME]
        return [pair for pair in pairs if pair.result is not None]


def compare(
    ours: Sequence[Answer], theirs: Sequence[str], judges: Sequence[Asked], *, done: Callable[[], object]
) -> Comparison:
    """Have every judge compare the answers in both orders; pairs of equal answers are ties and cost nothing."""
    different = [number for number, (our, their) in enumerate(zip(ours, theirs, strict=True)) if not _same(our, their)]
    questions = [
        question
        for number in different
        for question in (
            prompts.compare(ours[number], theirs[number], ours[number].text),
            prompts.compare(ours[number], ours[number].text, theirs[number]),
        )
    ]
    tie = Judgement(value=prompts.TIE, reason=SAME)
    by_judge = []
    for judge in judges:
        judgements = judge.all(questions, done=done)
        asked = dict(zip(different, zip(judgements[::2], judgements[1::2], strict=True), strict=True))
        pairs = [asked.get(number, (tie, tie)) for number in range(len(ours))]
        by_judge.append([Pair(ours_second=second, ours_first=first) for second, first in pairs])
    return Comparison(by_judge=by_judge)


def _same(our: Answer, their: str) -> bool:
    return our.text.strip() == their.strip()


def _result(judgement: Judgement, *, ours: str) -> float | None:
    if judgement.value is None:
        return None
    if judgement.value == prompts.TIE:
        return TIE
    return WIN if judgement.value == ours else LOSS


def shares(rows: Sequence[float | None]) -> tuple[float, float, float]:
    """The shares of wins (above 0.5), ties and losses among the pairs that were judged; NaN if there are none."""
    known = [row for row in rows if row is not None]
    if not known:
        return math.nan, math.nan, math.nan
    wins, losses = sum(row > TIE for row in known), sum(row < TIE for row in known)
    return wins / len(known), (len(known) - wins - losses) / len(known), losses / len(known)

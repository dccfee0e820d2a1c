"""One vote after another, kept in a real store."""

from __future__ import annotations

import itertools

import pytest
from mlflow import MlflowClient

from mlflow_ft.errors import TrackingError
from mlflow_ft.operations.comparing import result
from mlflow_ft.operations.comparing.pairs import Comparison, Contestant, Pair, Prompt
from mlflow_ft.operations.comparing.session import Session
from mlflow_ft.tracking.votes import PairTrace, Vote, VoteStore


def pair(number: int, *, alike: bool = False) -> Pair:
    prompt = Prompt(place=f"rows.jsonl:{number}", messages=[{"role": "user", "content": f"{number}?"}])
    return Pair(prompt=prompt, first="one", second="one" if alike else "two", left="first")


class Voted:
    """A session in a store, and what it says."""

    def __init__(self, client: MlflowClient, pairs: list[Pair], **settings: int) -> None:
        self.client = client
        run = client.create_run("0")
        self.store = VoteStore(client, run_id=run.info.run_id, experiment_id="0")
        first, second = Contestant(uri="models:/m/1", weights="a"), Contestant(uri="models:/m/2", weights="b")
        comparison = Comparison(first=first, second=second, seed=0, options={}, pairs=pairs)
        traces = [PairTrace(inputs={}, outputs={}, tags={}) for _ in pairs]
        self.comparison = comparison.traced(list(self.store.add_pairs(traces)))
        self.session = self.opened(**settings)

    def opened(self, **settings: int) -> Session:
        """The session again, as by another process."""
        ticks = itertools.count(1)
        return Session(
            self.comparison.pairs,
            self.store.votes(),
            self.store,
            "eve",
            self.found,
            clock=lambda: float(next(ticks)),
            **settings,
        )

    def found(self) -> result.Result | None:
        return result.of(self.comparison, self.store.votes())


def test_identical_answers_are_ties_that_nobody_sees(client: MlflowClient) -> None:
    alike = {0, 2, 3}
    voted = Voted(client, [pair(number, alike=number in alike) for number in range(5)])
    view = voted.session.view()
    assert (view["pair"], view["voted"], view["left_to_vote"]) == (1, 0, 2)
    assert voted.found() is None, "no person has voted"
    view = voted.session.vote(1, "right")
    assert (view["pair"], view["voted"], view["last"]) == (4, 1, 1)
    early = voted.found()
    assert early is not None
    assert (early.wins, early.ties, early.identical, early.votes) == (1, 1, 1, 1), (
        "those that come after are not reached"
    )
    voted.session.vote(4, "left")
    whole = voted.found()
    assert whole is not None
    assert (whole.wins, whole.ties, whole.losses, whole.identical, whole.votes) == (1, 3, 1, 3, 2)
    assert voted.session.undo(4)["pair"] == 4
    assert voted.opened().view()["voted"] == 1


def test_as_many_votes_as_are_needed(client: MlflowClient) -> None:
    voted = Voted(client, [pair(number) for number in range(4)], needed=2)
    assert voted.session.view()["left_to_vote"] == 2
    voted.session.vote(0, "skipped")
    assert voted.session.view()["left_to_vote"] == 2
    voted.session.vote(1, "equal")
    view = voted.session.vote(2, "left")
    assert (view["pair"], view["left_to_vote"], voted.session.complete) == (None, 0, True)
    assert voted.opened(needed=3).view()["pair"] == 3


def test_nothing_is_voted_on_after_the_result(client: MlflowClient) -> None:
    voted = Voted(client, [pair(0), pair(1)])
    voted.session.vote(0, "right")
    shown = voted.session.finish()
    assert (shown["wins"], shown["first"]) == (1, "models:/m/1")
    for late in (voted.session.vote(1, "left"), voted.session.undo(0)):
        assert "was finished" in late["notice"]
    assert voted.session.finish() == shown
    assert voted.found() == voted.session.result


def test_a_vote_that_was_kept_twice_counts_once(client: MlflowClient) -> None:
    """As when the server's answer was lost, and the vote was given again by another process."""
    voted = Voted(client, [pair(0), pair(1)])
    trace = voted.comparison.pairs[0].trace_id
    voted.session.vote(0, "left")
    voted.store.cast(trace, Vote(value="second", by="eve", at_ms=9_000))
    [kept] = voted.client.get_trace(trace).info.assessments
    assert kept.value == "second"
    found = voted.found()
    assert found is not None
    assert (found.wins, found.losses, found.votes) == (1, 0, 1)


def test_a_vote_that_is_not_kept_is_not_counted(client: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    voted = Voted(client, [pair(0), pair(1)])
    voted.comparison.pairs[0].__dict__["trace_id"] = "tr-that-is-not-there"
    with pytest.raises(TrackingError, match="could not withdraw a vote"):
        voted.session.vote(0, "left")
    view = voted.session.view()
    assert (view["pair"], view["voted"]) == (0, 0)

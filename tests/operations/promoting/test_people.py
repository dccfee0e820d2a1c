"""The gate that asks people, on versions and votes in a real store."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from mlflow import MlflowClient

from mlflow_ft.config.gates import Gates, read_gates
from mlflow_ft.errors import ConfigError
from mlflow_ft.operations.comparing import recorded, result
from mlflow_ft.operations.comparing.pairs import PAIRS_FILE, Asked, Comparison, Contestant, Pair, Prompt
from mlflow_ft.operations.promoting.decision import Judged
from mlflow_ft.progress import Progress
from mlflow_ft.tracking import ActiveRun, Store
from mlflow_ft.tracking.votes import Vote
from tests.operations.promoting.test_promote import Shop

GATE = "preferred-by-people"
ASKED = Gates.model_validate({"preferred_by_people": {"votes": 5}, "beats_champion": None})


@pytest.fixture
def shop(tracking_store: str, tmp_path: Path) -> Shop:
    """Version 1 is the champion, version 2 wants to be."""
    shop = Shop(client=MlflowClient(tracking_store), folder=tmp_path / "models")
    shop.promote(shop.version())
    shop.version()
    return shop


def contestant(version: int, *, weights: str = "") -> Contestant:
    own = weights or Store.connect().weights("chat", version)
    return Contestant(uri=f"models:/chat/{version}", weights=own)


def compared(first: Contestant, second: Contestant, votes: Sequence[str], *, status: str = "FINISHED") -> str:
    """A run in which people have voted so, as `mlflow-ft compare` leaves it; its id."""
    prompts = [Prompt(place=f"x:{number}", messages=[]) for number in range(len(votes))]
    client = MlflowClient()
    run = client.create_run("0")
    active = ActiveRun(run_id=run.info.run_id, experiment_id="0", tracking_uri=client.tracking_uri)
    asked = Asked(first=first, second=second, prompts=prompts, seed=0, options={})
    pairs = [Pair(prompt=prompt, first="a", second="b", left="first") for prompt in prompts]
    comparison = Comparison(first=first, second=second, seed=0, options={}, pairs=pairs)
    comparison = comparison.traced(recorded.traces(active, comparison, Progress(quiet=True)))
    active.set_tags(recorded.tags(asked) | {recorded.READY: "true"})
    active.artifact_text(comparison.dumps(), PAIRS_FILE)
    store, moments = recorded.vote_store(active), itertools.count(1)
    for pair, value in zip(comparison.pairs, votes, strict=True):
        store.cast(pair.trace_id, Vote(value=value, by="eve", at_ms=next(moments)))
    if (found := result.of(comparison, store.votes())) and status != "RUNNING":
        active.set_tags(recorded.result_tags(found, active.read()))
    client.set_terminated(run.info.run_id, status) if status != "RUNNING" else None
    return str(run.info.run_id)


Judge = Callable[..., Judged]


@pytest.fixture
def judged(shop: Shop) -> Judge:
    def call(gates: Gates = ASKED) -> Judged:
        decision = shop.promote(2, gates, dry_run=True)
        return next(judgement for judgement in decision.judged if judgement.gate == GATE)

    return call


def test_it_must_be_asked_for_and_needs_a_champion_and_a_comparison(shop: Shop, judged: Judge) -> None:
    assert judged(Gates()).verdict.found == "preferred_by_people is not set"
    judgement = judged()
    assert judgement.result == "fail"
    assert "mlflow-ft compare chat/1 chat/2 --data ROWS" in judgement.verdict.found
    shop.client.delete_registered_model_alias("chat", "champion")
    assert judged().verdict.found == "there is no champion yet"


def test_a_sure_win_passes_whichever_was_named_first(judged: Judge) -> None:
    compared(contestant(1), contestant(2), ["second"] * 6 + ["equal", "skipped"])
    judgement = judged()
    assert judgement.result == "pass"
    numbers = judgement.verdict.numbers
    assert (numbers["wins"], numbers["ties"], numbers["losses"], numbers["votes"]) == (6, 1, 0, 7)
    assert 0.5 < numbers["low"] < numbers["win_rate"] == 6.5 / 7
    time.sleep(0.01)  # the newest run is found by its start in milliseconds
    compared(contestant(2), contestant(1), ["first"] * 6)
    numbers = judged().verdict.numbers
    assert (numbers["wins"], numbers["losses"], numbers["comparisons"]) == (6, 0, 2)


def test_the_newest_comparison_counts_and_an_unsure_win_fails(judged: Judge) -> None:
    compared(contestant(1), contestant(2), ["second"] * 7)
    time.sleep(0.01)
    newest = compared(contestant(1), contestant(2), ["second"] * 4 + ["first"] * 2)
    judgement = judged()
    assert judgement.result == "fail"
    assert newest in judgement.verdict.found
    assert "the newest of 2 comparisons" in judgement.verdict.found
    lenient = Gates.model_validate({"preferred_by_people": {"at_least": 0.3, "votes": 5}, "beats_champion": None})
    assert judged(lenient).result == "pass"


def test_too_few_votes_fail_however_clear_and_a_result_that_was_seen_is_said(judged: Judge) -> None:
    run_id = compared(contestant(1), contestant(2), ["second"] * 4)
    judgement = judged(Gates.model_validate({"preferred_by_people": {"at_least": 0.1, "votes": 5}}))
    assert judgement.result == "fail"
    assert f"too few votes, for more: mlflow-ft compare --resume {run_id}" in judgement.verdict.found
    MlflowClient().set_tag(run_id, recorded.COUNTED, "3, 4")
    assert "its result was seen after 3 votes, before the last ones" in judged().verdict.found


def test_other_weights_or_versions_do_not_count_nor_unknown_ones(shop: Shop, judged: Judge) -> None:
    shop.version()
    compared(contestant(1), contestant(2, weights="0" * 64), ["second"] * 9)
    compared(contestant(1, weights="0" * 64), contestant(2), ["second"] * 9)
    compared(contestant(1), contestant(3), ["second"] * 9)
    assert "nobody has compared these two" in judged().verdict.found
    location = Path(shop.client.get_model_version_download_uri("chat", "2"))
    (location / "artifacts" / "model" / "manifest.json").unlink()
    judgement = judged()
    assert (judgement.result, "models:/chat/2 has no manifest" in judgement.verdict.found) == ("fail", True)


def test_a_vote_that_goes_on_and_one_without_votes_are_refused(judged: Judge) -> None:
    compared(contestant(1), contestant(2), ["skipped"] * 3, status="KILLED")
    assert "nobody has voted yet; type: mlflow-ft compare --resume" in judged().verdict.found
    time.sleep(0.01)
    run_id = compared(contestant(1), contestant(2), ["second"] * 9, status="RUNNING")
    assert judged().verdict.found == f"people are still voting, in run {run_id}"


def test_the_settings_of_the_gate() -> None:
    gates = read_gates("preferred_by_people: {at_least: 0.4, votes: 12, confidence: 0.9}", place="gates.yaml")
    assert gates.preferred_by_people is not None
    assert (gates.preferred_by_people.at_least, gates.preferred_by_people.votes) == (0.4, 12)
    for text, hint in (
        ("preferred_by_people: {vote: 3}", "did you mean votes?"),
        ("preferred_by_people: {at_least: 1}", "at_least"),
        ("prefered_by_people: {}", "did you mean preferred_by_people?"),
    ):
        with pytest.raises(ConfigError) as refused:
            read_gates(text, place="gates.yaml")
        assert hint in str(refused.value)

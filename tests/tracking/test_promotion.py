from __future__ import annotations

import multiprocessing
import os
import time
from typing import Any

import pytest
from mlflow import MlflowClient

from mlflow_ft.errors import ConfigError, RefusedError
from mlflow_ft.tracking import promotion
from mlflow_ft.tracking.promotion import Ledger, Move, Standing, counted

PROMOTERS = 20


@pytest.fixture
def chat(client: MlflowClient) -> Ledger:
    """The alias `champion` of a registered model with four versions."""
    return ledger_of(client)


def ledger_of(client: MlflowClient, versions: int = 4) -> Ledger:
    client.create_registered_model("chat")
    run_id = client.create_run("0").info.run_id
    for _ in range(versions):
        client.create_model_version("chat", source=client.get_run(run_id).info.artifact_uri, run_id=run_id)
    return Ledger(client, "chat", "champion")


def now() -> int:
    return int(time.time() * 1000)


def promote(ledger: Ledger, *versions: int, kind: str = "promote") -> None:
    for version in versions:
        ledger.move(version, kind=kind, standing=ledger.settled(now_ms=now()), by="ann")


def alias(ledger: Ledger) -> int | None:
    number = ledger.client.get_registered_model(ledger.name).aliases.get(ledger.alias)
    return None if number is None else int(number)


def test_a_move_is_recorded_and_then_made(chat: Ledger) -> None:
    assert chat.standing() == Standing(champion=None, moves=())
    promote(chat, 1)
    chat.move(3, kind="promote", standing=chat.standing(), by="bob", reason="better", decision="runs:/x/y.json")
    first, second = chat.standing().moves
    assert (first.before, first.after, first.by, first.done) == (None, 1, "ann", True)
    assert (second.before, second.after, second.by, second.reason) == (1, 3, "bob", "better")
    assert second.decision == "runs:/x/y.json"
    assert alias(chat) == 3


def test_the_second_of_two_concurrent_moves_is_refused(chat: Ledger) -> None:
    seen = chat.standing()
    chat.move(1, kind="promote", standing=seen, by="ann")
    with pytest.raises(RefusedError, match="ann moved it to version 1 first"):
        chat.move(2, kind="promote", standing=seen, by="bob")
    assert alias(chat) == 1
    assert [(move.by, move.counts) for move in chat.attempts()] == [("ann", True), ("bob", False)]
    assert [move.by for move in chat.standing().moves] == ["ann"]


def test_a_late_move_does_not_make_the_next_one_late(chat: Ledger) -> None:
    seen = chat.standing()
    chat.move(1, kind="promote", standing=seen, by="ann")
    seen_by_carl = chat.standing()
    with pytest.raises(RefusedError):
        chat.move(2, kind="promote", standing=seen, by="bob")
    chat.move(3, kind="promote", standing=seen_by_carl, by="carl")
    assert alias(chat) == 3


def test_aliases_have_histories_of_their_own(chat: Ledger) -> None:
    promote(chat, 1)
    other = Ledger(chat.client, "chat", "fallback")
    promote(other, 2)
    assert [move.after for move in other.standing().moves] == [2]
    assert [move.after for move in chat.standing().moves] == [1]


def test_the_champions_before_are_known_through_rollbacks(chat: Ledger) -> None:
    promote(chat, 1, 2, 3)
    assert chat.standing().earlier == (2, 1)
    promote(chat, 2, kind="rollback")
    assert chat.standing().earlier == (1,)
    promote(chat, 4)
    assert chat.standing().earlier == (2, 1)
    promote(chat, 2, kind="rollback")
    promote(chat, 1, kind="rollback")
    assert chat.standing().earlier == ()


def test_a_move_by_hand_is_seen_and_counts_as_a_champion(chat: Ledger) -> None:
    chat.client.set_registered_model_alias("chat", "champion", "4")
    assert not chat.standing().by_hand
    promote(chat, 1)
    assert chat.standing().earlier == (4,)
    chat.client.set_registered_model_alias("chat", "champion", "3")
    assert chat.standing().by_hand
    assert chat.standing().earlier == (1, 4)
    promote(chat, 2)
    assert chat.standing().earlier == (3, 1, 4)


@pytest.mark.parametrize("recorded", [True, False], ids=["recorded", "as early versions recorded it"])
def test_a_new_model_with_the_name_of_a_deleted_one_has_no_history(chat: Ledger, *, recorded: bool) -> None:
    promote(chat, 1, 2)
    if not recorded:
        for version in chat.client.search_model_versions("name='chat.promotions'"):
            chat.client.delete_model_version_tag("chat.promotions", version.version, f"{promotion.TAG}model")
    chat.client.delete_registered_model("chat")
    assert chat.standing() == Standing(champion=None, moves=())
    again = ledger_of(chat.client)
    assert again.standing() == Standing(champion=None, moves=())
    promote(again, 3, 4)
    assert again.standing().earlier == (3,)


class DiedError(Exception):
    """The process ended here."""


@pytest.fixture
def unfinished(chat: Ledger, monkeypatch: pytest.MonkeyPatch) -> Ledger:
    """Version 1 is champion; a move to version 2 is recorded, and its process died before the alias was set."""
    promote(chat, 1)
    with monkeypatch.context() as patch:
        patch.setattr(promotion, "set_alias", lambda *_, **__: (_ for _ in ()).throw(DiedError()))
        with pytest.raises(DiedError):
            chat.move(2, kind="promote", standing=chat.standing(), by="bob")
    assert alias(chat) == 1
    return chat


def test_a_move_that_is_under_way_is_waited_for(unfinished: Ledger) -> None:
    with pytest.raises(RefusedError, match="bob is moving champion of chat to version 2 right now"):
        unfinished.settled(now_ms=now())
    assert alias(unfinished) == 1


def test_a_move_whose_process_died_is_completed_by_the_next(unfinished: Ledger) -> None:
    standing = unfinished.settled(now_ms=now() + promotion.UNFINISHED_MS)
    assert (standing.champion, alias(unfinished)) == (2, 2)
    assert standing.last
    assert standing.last.done
    promote(unfinished, 3)
    assert alias(unfinished) == 3


def test_a_dead_move_to_a_version_that_was_deleted_does_not_stand_in_the_way(unfinished: Ledger) -> None:
    unfinished.client.delete_model_version("chat", "2")
    assert unfinished.settled(now_ms=now() + promotion.UNFINISHED_MS).champion == 1
    promote(unfinished, 3)
    assert alias(unfinished) == 3


@pytest.mark.parametrize("name", ["", "latest", "v1", "a b"])
def test_an_alias_that_mlflow_does_not_take_is_refused_before_anything_is_recorded(
    client: MlflowClient, name: str
) -> None:
    with pytest.raises(ConfigError, match="cannot be an alias"):
        Ledger(client, "chat", name)


def test_a_dead_move_does_not_undo_a_later_move_by_hand(unfinished: Ledger) -> None:
    unfinished.client.set_registered_model_alias("chat", "champion", "4")
    standing = unfinished.settled(now_ms=now() + promotion.UNFINISHED_MS)
    assert (standing.champion, standing.by_hand) == (4, True)


def test_a_suspended_process_does_not_undo_later_moves(chat: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """It resumes after another process has completed its move and promoted the next version."""
    set_alias, slept = promotion.set_alias, []

    def sleeps(client: MlflowClient, *, name: str, alias: str, version: str) -> None:
        if not slept:
            slept.append(True)
            chat.settled(now_ms=now() + promotion.UNFINISHED_MS)
            chat.move(2, kind="promote", standing=chat.standing(), by="carl")
        set_alias(client, name=name, alias=alias, version=version)

    monkeypatch.setattr(promotion, "set_alias", sleeps)
    chat.move(1, kind="promote", standing=chat.standing(), by="bob")
    assert alias(chat) == 2


def test_an_answer_that_was_lost_is_not_a_second_move(chat: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    create, lost = MlflowClient.create_model_version, []

    def answer_lost(*arguments: Any, **more: Any) -> Any:
        version = create(*arguments, **more)
        if not lost:
            lost.append(version)
            raise ConnectionError("the answer was lost")
        return version

    monkeypatch.setattr(MlflowClient, "create_model_version", answer_lost)
    promote(chat, 1)
    assert lost
    assert len(chat.attempts()) == 1
    assert alias(chat) == 1


def test_which_moves_count_is_the_same_for_all_who_read_them() -> None:
    def move(token: str, seen: str) -> Move:
        where = {"kind": "promote", "alias": "champion", "by": "", "reason": "", "decision": ""}
        return Move(**where, number=1, before=None, after=1, at_ms=0, token=token, seen=seen, done=True)

    moves = counted([move("a", ""), move("b", ""), move("c", "b"), move("d", "a"), move("e", "a"), move("f", "d")])
    assert [entry.token for entry in moves if entry.counts] == ["a", "d", "f"]


# --- twenty at once


def promoter(uri: str, version: int, barrier: Any, results: Any) -> None:
    """One promoting process; all start at the same moment from the same standing."""
    os.environ["MLFLOW_TRACKING_URI"] = uri
    ledger = Ledger(MlflowClient(uri), "chat", "champion")
    try:
        standing = ledger.settled(now_ms=now())
        barrier.wait(60)
        ledger.move(version, kind="promote", standing=standing, by=f"process {version}")
    except Exception as error:
        results.put((version, type(error).__name__, str(error)))
    else:
        results.put((version, "promoted", ""))


def watch(uri: str, stop: Any, seen: Any) -> None:
    """Keep reading the alias."""
    os.environ["MLFLOW_TRACKING_URI"] = uri
    client, champions = MlflowClient(uri), set()
    while not stop.is_set():
        champions.add(client.get_registered_model("chat").aliases.get("champion"))
    seen.put(champions)


def race(uri: str) -> tuple[dict[int, str], set[Any]]:
    """Let 20 processes promote a version each; return every outcome and the alias's values meanwhile."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mlflow_ft.tracking.promotion"])
    barrier, results, stop, seen = context.Barrier(PROMOTERS), context.Queue(), context.Event(), context.Queue()
    watcher = context.Process(target=watch, args=(uri, stop, seen))
    watcher.start()
    numbers = range(2, PROMOTERS + 2)
    processes = [context.Process(target=promoter, args=(uri, number, barrier, results)) for number in numbers]
    for process in processes:
        process.start()
    outcomes = [results.get(timeout=300) for _ in processes]
    stop.set()
    states = seen.get(timeout=60)
    for process in (*processes, watcher):
        process.join(60)
    return {version: f"{outcome} {text}".strip() for version, outcome, text in outcomes}, states


def check_race(ledger: Ledger, uri: str) -> None:
    promote(ledger, 1)
    outcomes, states = race(uri)
    winners = [version for version, outcome in outcomes.items() if outcome == "promoted"]
    assert len(winners) == 1, outcomes
    others = [outcome for version, outcome in outcomes.items() if version not in winners]
    first = f"process {winners[0]} moved it to version {winners[0]} first"
    assert [outcome for outcome in others if not (outcome.startswith("RefusedError") and first in outcome)] == []
    assert alias(ledger) == winners[0]
    assert {None if state is None else int(state) for state in states} <= {1, winners[0]}, (
        "there was no champion, or a wrong one"
    )
    assert [move.after for move in ledger.standing().moves] == [1, winners[0]]
    assert len(ledger.attempts()) == PROMOTERS + 1


@pytest.mark.slow
def test_of_twenty_at_once_one_wins_on_sqlite(client: MlflowClient, store: str) -> None:
    check_race(ledger_of(client, PROMOTERS + 1), store)

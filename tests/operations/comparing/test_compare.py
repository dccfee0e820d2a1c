from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import AssessmentSourceType

from mlflow_ft.config import pairs, resolve
from mlflow_ft.errors import ConfigError, DataError, RefusedError, StoppedError
from mlflow_ft.operations.comparing import recorded
from mlflow_ft.operations.comparing.pairs import PAIRS_FILE, RESULT_FILE
from mlflow_ft.testing import write_jsonl
from tests.operations.comparing.conftest import PROMPTS, Compare, Models, Page

pytestmark = pytest.mark.filterwarnings("ignore:.*Type hint used in the model's predict:UserWarning")


def ended_by(choices: list[str]) -> Any:
    """Vote so, then finish."""

    def drive(page: Page) -> None:
        for choice in choices:
            page.vote(choice)
        page.post("/finish")

    return drive


def interrupted_after(choices: list[str]) -> Any:
    def drive(page: Page) -> None:
        for choice in choices:
            page.vote(choice)
        os.kill(os.getpid(), signal.SIGINT)

    return drive


def artifact(client: MlflowClient, run_id: str, path: str) -> Any:
    return json.loads(Path(client.download_artifacts(run_id, path)).read_text())


def test_votes_become_a_result_in_a_run_of_its_own(
    comparing: Compare, client: MlflowClient, two_models: Models
) -> None:
    seen: list[dict[str, Any]] = []
    answers: list[Any] = []

    def drive(page: Page) -> None:
        view = page.get()
        for choice in ("left", "right", "equal", "skipped", "left", "left"):
            seen.append(view)
            view = page.vote(choice)
        assert view["pair"] is None
        assert view["left_to_vote"] == 0
        answers.append(page.post("/finish"))

    outcome = comparing(drive, seed=3)
    assert outcome.result is not None
    record = artifact(client, outcome.run_id, PAIRS_FILE)
    assert sorted(pair["prompt"]["messages"][0]["content"] for pair in record["pairs"]) == sorted(PROMPTS)
    assert [pair["prompt"]["messages"][0]["content"] for pair in record["pairs"]] != list(PROMPTS)
    assert {pair["left"] for pair in record["pairs"]} == {"first", "second"}
    wins = losses = 0
    for pair, view, choice in zip(record["pairs"], seen, ("left", "right", "", "", "left", "left"), strict=True):
        sides = ("first", "second") if pair["left"] == "first" else ("second", "first")
        assert (view["left"], view["right"]) == tuple(pair[side] for side in sides)
        assert view["prompt"] == pair["prompt"]["messages"]
        winner = dict(zip(("left", "right"), sides, strict=True)).get(choice)
        wins, losses = wins + (winner == "second"), losses + (winner == "first")
    assert wins > 0 < losses, "the test proves nothing"
    found = outcome.result
    assert (found.wins, found.losses, found.ties, found.skipped, found.left) == (wins, losses, 1, 1, 0)
    assert (found.votes, found.win_rate) == (5, (wins + 0.5) / 5)
    assert answers[0]["sentence"] == found.sentence()
    assert str(two_models.second) in found.sentence()
    assert artifact(client, outcome.run_id, RESULT_FILE) == found.as_dict()
    run = client.get_run(outcome.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["human/win_rate"] == found.win_rate
    assert (
        run.data.metrics["human/win_rate_low"] == found.low < found.win_rate < run.data.metrics["human/win_rate_high"]
    )
    traces = client.search_traces(locations=[run.info.experiment_id], run_id=outcome.run_id)
    votes = [assessment for trace in traces for assessment in trace.info.assessments]
    assert (len(traces), len(votes)) == (6, 6)
    assert {vote.source.source_type for vote in votes} == {AssessmentSourceType.HUMAN}
    assert {vote.source.source_id for vote in votes} == {"eve"}
    assert sorted(vote.value for vote in votes) == sorted(["equal", "skipped"] + ["second"] * wins + ["first"] * losses)
    spans = [trace.data.spans[0] for trace in traces]
    assert {span.inputs["messages"][0]["content"] for span in spans} == set(PROMPTS)
    assert all(set(span.outputs) == {"first", "second"} for span in spans)


def test_nothing_names_a_model_before_the_end(comparing: Compare, two_models: Models) -> None:
    texts: list[str] = []

    def drive(page: Page) -> None:
        texts.extend(json.dumps(page.vote(choice)) for choice in ("left", "right"))
        texts.append(page.send("/undo", {"pair": page.get()["last"]}).text)
        page.vote("left")
        page.post("/finish")

    outcome = comparing(drive)
    assert outcome.result
    for text in texts:
        for word in (two_models.first.name, two_models.second.name, "first", "second", outcome.run_id):
            assert not re.search(rf"\b{word}\b", text), (word, text)


def test_an_interrupted_vote_goes_on_where_it_was(comparing: Compare, client: MlflowClient, two_models: Models) -> None:
    outcome = comparing(interrupted_after(["left", "skipped", "right"]), needed=4)
    assert isinstance(outcome.stopped, StoppedError)
    assert (outcome.stopped.exit_code, outcome.left) == (130, 2)
    assert outcome.result is not None
    assert outcome.result.votes == 2
    assert client.get_run(outcome.run_id).info.status == "KILLED"
    generated = artifact(client, outcome.run_id, PAIRS_FILE)

    seen: list[Any] = []

    def drive(page: Page) -> None:
        seen.append(page.get())
        seen.extend(page.vote(choice) for choice in ("equal", "left"))
        page.post("/finish")

    again = comparing(drive, needed=4)  # the same command
    assert again.run_id == outcome.run_id
    assert [view["pair"] for view in seen] == [3, 4, None], "no prompt is shown again; four votes are enough"
    assert again.result is not None
    assert (again.result.votes, again.result.skipped, again.result.left) == (4, 1, 1)
    assert artifact(client, again.run_id, PAIRS_FILE) == generated
    run = client.get_run(again.run_id)
    assert run.info.status == "FINISHED"
    assert recorded.counted(run) == (2, 4), "the result was seen before the last votes"
    assert len(client.search_traces(locations=[run.info.experiment_id], run_id=run.info.run_id)) == 6


def test_resuming_needs_the_run_alone(comparing: Compare, client: MlflowClient, two_models: Models, rows: Path) -> None:
    for folder in two_models:
        shutil.copytree(folder, Path(folder.name))
    models = {"first": "ann", "second": "bob"}
    outcome = comparing(interrupted_after(["left"]), **models)
    shutil.rmtree("ann")
    rows.unlink()
    again = comparing(ended_by(["right"]), resume=outcome.run_id)
    assert again.run_id == outcome.run_id
    assert again.result is not None
    assert again.result.votes == 2


def test_other_settings_begin_another_comparison(comparing: Compare) -> None:
    first = comparing(interrupted_after(["left"]), limit=3)
    other = comparing(ended_by(["left", "left"]), limit=3, seed=1)
    finished = comparing(ended_by(["left"]), limit=3, seed=1)
    assert len({first.run_id, other.run_id, finished.run_id}) == 3, "what was finished is not continued unasked"
    assert first.result is not None
    assert first.result.votes + first.left == 3


def test_two_tabs_give_one_result(comparing: Compare, client: MlflowClient) -> None:
    def drive(page: Page) -> None:
        view = page.get()
        page.post("/vote", pair=view["pair"], choice="left")
        late = page.send("/vote", {"pair": view["pair"], "choice": "right"})
        assert late.status_code == 409
        assert late.json()["pair"] == 1
        assert "another tab" in late.json()["notice"]
        page.vote("right")
        stale = page.send("/undo", {"pair": 0})
        assert stale.status_code == 409
        assert page.get()["voted"] == 2
        undone = page.post("/undo", pair=1)
        assert (undone["pair"], undone["voted"], undone["last"]) == (1, 1, 0)
        assert page.send("/vote", {"pair": 1, "choice": "best"}).status_code == 422
        page.post("/finish")

    outcome = comparing(drive)
    assert outcome.result is not None
    assert (outcome.result.votes, outcome.result.left) == (1, 5)
    run = client.get_run(outcome.run_id)
    traces = client.search_traces(locations=[run.info.experiment_id], run_id=outcome.run_id)
    assert sum(len(trace.info.assessments) for trace in traces) == 1, "what was undone is gone"


def test_other_sites_and_strangers_are_refused(comparing: Compare) -> None:
    def drive(page: Page) -> None:
        port = page.base.rpartition(":")[2]
        body = {"pair": 0, "choice": "left"}
        assert page.send("/vote", body, **{"X-Token": "guessed"}).status_code == 403
        assert page.send("/", **{"X-Token": ""}).status_code == 403
        assert page.send("/?token=guessed").status_code == 403
        for headers in (
            {"Origin": "http://evil.example"},
            {"Origin": "null"},
            {"Origin": "http://127.0.0.1:1"},
            {"Host": f"evil.example:{port}"},
            {"Host": "["},
        ):
            refused = page.send("/vote", body, **headers)
            assert refused.status_code == 403, headers
            assert page.send("/state", **headers).status_code == 403
        assert page.get()["voted"] == 0
        opened = page.send(f"/?token={page.token}")
        policy = opened.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'nonce-")
        assert "unsafe" not in policy
        assert opened.headers["Referrer-Policy"] == "no-referrer"
        assert not re.search(r"(src|href)=|url\(|@import|https?:", opened.text), "it loads nothing"
        assert page.send("/vote", body, Origin=page.base).status_code == 200
        page.post("/finish")

    assert comparing(drive).result


def test_the_end_without_votes(comparing: Compare, client: MlflowClient) -> None:
    def drive(page: Page) -> None:
        refused = page.send("/finish", {})
        assert refused.status_code == 503
        assert refused.json()["error"] == "nobody has voted yet"
        page.vote("skipped")
        assert page.send("/finish", {}).status_code == 503
        os.kill(os.getpid(), signal.SIGTERM)

    outcome = comparing(drive)
    assert outcome.result is None
    assert outcome.stopped is not None
    assert outcome.stopped.exit_code == 143
    assert "human/win_rate" not in client.get_run(outcome.run_id).data.metrics


def never(page: Page) -> None:
    pytest.fail("the page was opened")


def test_what_cannot_be_compared(comparing: Compare, two_models: Models, tmp_path: Path, client: MlflowClient) -> None:
    shutil.copytree(two_models.first, tmp_path / "copy")
    with pytest.raises(ConfigError, match="with the same weights: there is nothing to compare"):
        comparing(never, second=str(tmp_path / "copy"))
    with pytest.raises(ConfigError, match=r"are both .*ann: there is nothing to compare"):
        comparing(never, second=str(two_models.first))
    texts = write_jsonl(tmp_path / "texts.jsonl", [{"text": "once"}, {"text": "twice"}])
    with pytest.raises(DataError, match="no row has a prompt"):
        comparing(never, config=resolve("compare", defaults={}, command_line=pairs(["--data", str(texts)])))
    long = [{"messages": [{"role": "user", "content": "lamp " * 900}, {"role": "assistant", "content": "?"}]}]
    file = write_jsonl(tmp_path / "long.jsonl", long)
    with pytest.raises(DataError, match="no row can be answered by both"):
        comparing(never, config=resolve("compare", defaults={}, command_line=pairs(["--data", str(file)])))
    with pytest.raises(ConfigError, match="is not a comparison"):
        comparing(never, resume=client.create_run("0").info.run_id)
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigError, match="in use") as refused:
        comparing(never, port=taken.getsockname()[1])
    assert "another port with --port" in str(refused.value)


def test_a_comparison_whose_page_is_open_is_not_opened_again(comparing: Compare) -> None:
    def drive(page: Page) -> None:
        page.vote("left")
        with pytest.raises(ConfigError, match="its page is open"):
            recorded.to_resume(recorded_run())
        page.post("/finish")

    def recorded_run() -> str:
        from mlflow_ft.tracking import Store

        return str(Store.connect().runs_with({"mlflow_ft.method": "compare"})[0].info.run_id)

    assert comparing(drive).result


def test_answers_that_are_all_alike_leave_nothing_to_choose(
    comparing: Compare, two_models: Models, tmp_path: Path
) -> None:
    """The second is the first with a weight changed that no answer shows."""
    from safetensors.torch import load_file, save_file

    other = shutil.copytree(two_models.first, tmp_path / "same")
    weights = load_file(other / "model.safetensors")
    next(iter(weights.values())).view(-1)[0] += 1e-6
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RefusedError, match="answer all 6 rows alike"):
        comparing(never, second=str(other))

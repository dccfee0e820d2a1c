"""Every gate, on versions whose runs hold hand-made evidence in a real store."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from mlflow_ft import Gate, Verdict, plugins
from mlflow_ft.config.gates import Gates, gates_file, lower_is_better, read_gates
from mlflow_ft.errors import ConfigError, DataError, ModelError, RefusedError, TrackingError, UndeliveredError
from mlflow_ft.operations.promoting import decision_record, rescore
from mlflow_ft.operations.promoting.decision import Decision, PromotionRequest
from mlflow_ft.operations.promoting.promote import promote
from mlflow_ft.operations.promoting.rollback import Returned
from mlflow_ft.operations.promoting.rollback import rollback as roll_back
from mlflow_ft.progress import Progress
from mlflow_ft.tracking import Store, promotion, write_manifest
from mlflow_ft.tracking.contenders import contender, find_version
from mlflow_ft.tracking.promotion import Ledger

DAY_MS = 86_400_000
LOADED = plugins.load({"MLFLOW_FT_PLUGINS": ""})
GOOD = {
    "checks": [{"name": "empty", "severity": "error", "count": 0}, {"name": "short", "severity": "warn", "count": 3}]
}


def worse(rows: dict[str, Sequence[float | None]]) -> dict[str, Sequence[float | None]]:
    """What a base model may have scored that was beaten on every row."""
    by = {name: 1.0 if lower_is_better(name) else -1.0 for name in rows}
    return {name: [None if value is None else value + by[name] for value in values] for name, values in rows.items()}


@dataclass
class Shop:
    """A store, and versions made to measure in it."""

    client: MlflowClient
    folder: Path
    loaded: plugins.Plugins = field(default_factory=lambda: LOADED)

    def version(
        self,
        *,
        name: str = "chat",
        rows: dict[str, Sequence[float | None]] | None = None,
        base: dict[str, float] | None = None,
        base_rows: dict[str, Sequence[float | None]] | None = None,
        aims: Sequence[str] = (),
        tags: dict[str, str] | None = None,
        digest: str = "d" * 32,
        status: str = "FINISHED",
        kl: str = "0.001",
        quality: Any = GOOD,
        days: float = 1,
        description: str | None = "What it is.",
    ) -> int:
        """Register a version with the evidence that a run of ours leaves; it beats its base unless told otherwise."""
        ended = int(time.time() * 1000 - days * DAY_MS)
        rows = {"loss": [1.0] * 40} if rows is None else rows
        run_id = self.client.create_run("0", start_time=ended - 1000).info.run_id
        self.client.log_param(run_id, "cfg.package.max_kl", "0.02")
        for key, values in rows.items():
            known = [value for value in values if value is not None]
            self.client.log_metric(run_id, f"eval/tuned/{key}", sum(known) / len(known))
        for key, value in (base or {}).items():
            self.client.log_metric(run_id, f"eval/base/{key}", value)
        kept = {"digest": digest, "scores": {"tuned": rows, "base": worse(rows) if base_rows is None else base_rows}}
        self.client.log_text(run_id, json.dumps(kept | {"aims": aims, "base_model": "tiny"}), "eval/rows.json")
        if quality:
            self.client.log_text(run_id, json.dumps(quality), "data/quality.json")
        self.client.set_terminated(run_id, status, end_time=ended)
        tags = {"gate": "passed", "mlflow_ft.method": "lora"} | (tags or {})
        tags |= {"mlflow_ft.run_id": run_id, "mlflow_ft.form": "merged"}
        tags |= {"mlflow_ft.parity.kl_mean": kl} if kl else {}
        model = self.model(run_id)
        moving_in = self.client.get_logged_model(model).artifact_location
        if not self.client.search_registered_models(f"name='{name}'"):
            self.client.create_registered_model(name)
        registered = self.client.create_model_version(
            name, source=moving_in, tags=tags | {"mlflow_ft.model_id": model}, description=description
        )
        return int(registered.version)

    def model(self, run_id: str) -> str:
        """A LoggedModel whose files are what ours are: a manifest over weights, and MLmodel."""
        model = self.client.create_logged_model("0", name="merged", source_run_id=run_id)
        folder = self.folder / model.model_id
        weights = folder / "artifacts" / "model"
        weights.mkdir(parents=True)
        (weights / "model.safetensors").write_bytes(run_id.encode())
        (folder / "MLmodel").write_text("flavors: {}")
        write_manifest(weights)
        self.client.log_model_artifacts(model.model_id, str(folder))
        self.client.finalize_logged_model(model.model_id, "READY")
        return str(model.model_id)

    def promote(self, version: int | str, gates: Gates | None = None, **more: Any) -> Decision:
        asked = {"name": "chat", "by": "ann", "now_ms": int(time.time() * 1000)}
        wanted = PromotionRequest(version=str(version), gates=gates, **(asked | more))
        return promote(wanted, plugins=self.loaded, progress=Progress(quiet=True))

    def judged(self, version: int, gates: Gates | None = None, **more: Any) -> dict[str, Verdict]:
        """The verdicts by name, without those of gates that abstain."""
        judged = self.promote(version, gates, dry_run=True, **more).judged
        return {judgement.name: judgement.verdict for judgement in judged if judgement.result != "abstain"}

    def champion(self, name: str = "chat") -> int | None:
        number = self.client.get_registered_model(name).aliases.get("champion")
        return None if number is None else int(number)

    def tags(self, version: int, name: str = "chat") -> dict[str, str]:
        return dict(self.client.get_model_version(name, str(version)).tags)


@pytest.fixture
def shop(tracking_store: str, tmp_path: Path) -> Shop:
    return Shop(client=MlflowClient(tracking_store), folder=tmp_path / "models")


# --- the decision


def test_the_first_champion_needs_good_evidence_and_beats_its_base(shop: Shop) -> None:
    decision = shop.promote(shop.version())
    assert (decision.outcome, decision.failed, decision.champion) == ("promoted", [], None)
    passed = {judgement.name for judgement in decision.judged if judgement.result == "pass"}
    assert passed == {"finished", "parity", "data-checks", "card", "beats-base loss"}
    abstained = {
        judgement.name: judgement.verdict.found for judgement in decision.judged if judgement.result == "abstain"
    }
    ours = {
        "freshness": "max_age_days is not set",
        "scores": "min_scores and max_scores name no score",
        "beats-champion": "there is no champion yet",
        "no-regression": "max_regression names no score",
    }
    assert abstained == abstained | ours
    assert decision.counts == f"5 passed, {len(abstained)} abstained"
    assert shop.tags(1)["mlflow_ft.promotion.champion.gates"] == decision.counts
    assert shop.champion() == 1


def test_the_decision_is_an_artifact_of_the_run_and_tags_of_the_version(shop: Shop) -> None:
    shop.promote(shop.version(rows={"loss": [2.0] * 40}))
    gates = Gates(max_scores={"loss": 1.5})
    decision = shop.promote(shop.version(), gates, gates_from="strict.yaml")
    run_id, _, path = decision.artifact.removeprefix("runs:/").partition("/")
    kept = json.loads(Path(shop.client.download_artifacts(run_id, path, str(shop.folder))).read_text())
    assert run_id == decision.run_id
    assert (kept["outcome"], kept["by"], kept["champion"], kept["gates_from"]) == ("promoted", "ann", 1, "strict.yaml")
    assert kept["config"] == gates.model_dump(mode="json")
    assert kept == json.loads(json.dumps(decision.as_dict()))
    numbers = {gate["gate"]: gate["numbers"] for gate in kept["gates"]}
    assert numbers["scores"] == {"value": 1.0, "bound": 1.5}
    assert numbers["beats-champion"]["difference"] == 1.0
    tags = shop.tags(2)
    assert tags["mlflow_ft.promotion.champion"] == "promoted"
    assert tags["mlflow_ft.promotion.champion.by"] == "ann"
    assert tags["mlflow_ft.promotion.champion.at"] == kept["at"]
    assert tags["mlflow_ft.promotion.champion.decision"] == decision.artifact
    assert "scores loss: value 1, bound 1.5" in tags["mlflow_ft.promotion.champion.numbers"].split("; ")
    assert "mlflow_ft.promotion.champion.config" not in tags  # it is in the decision


def test_what_is_refused_is_told_whole_kept_and_moves_nothing(shop: Shop) -> None:
    shop.promote(shop.version())
    worse = shop.version(rows={"loss": [2.0] * 40}, status="FAILED", kl="0.5", quality=None)
    decision = shop.promote(worse)
    assert decision.outcome == "refused"
    assert decision.failed == ["finished", "parity", "data-checks", "beats-champion loss"]
    assert shop.champion() == 1
    assert shop.tags(worse)["mlflow_ft.promotion.champion"] == "refused"
    assert shop.tags(worse)["mlflow_ft.promotion.champion.gates"] == f"failed: {', '.join(decision.failed)}"
    assert decision.artifact
    assert len(Ledger(shop.client, "chat", "champion").attempts()) == 1


def test_a_dry_run_writes_nothing(shop: Shop) -> None:
    version = shop.version()
    before = shop.tags(version)
    decision = shop.promote(version, dry_run=True)
    assert (decision.outcome, decision.artifact) == ("would be promoted", "")
    assert shop.promote(version, Gates(max_scores={"loss": 0.1}), dry_run=True).outcome == "would be refused"
    assert (shop.champion(), shop.tags(version)) == (None, before)
    assert not shop.client.list_artifacts(decision.run_id, "promotion")
    assert [model.name for model in shop.client.search_registered_models()] == ["chat"]


def test_a_dry_run_completes_no_move_and_makes_no_model(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    version = shop.version()
    assert shop.promote(version, copy_to="prod.chat", dry_run=True).outcome == "would be promoted"
    assert [model.name for model in shop.client.search_registered_models()] == ["chat"]
    with monkeypatch.context() as patch:
        patch.setattr(promotion, "set_alias", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            shop.promote(version)
    later = int(time.time() * 1000) + promotion.UNFINISHED_MS
    assert shop.promote(version, dry_run=True, now_ms=later).champion is None
    assert shop.champion() is None
    assert shop.promote(version, now_ms=later).outcome == "champion already"  # the move was completed first
    assert shop.champion() == version


def test_a_move_whose_end_cannot_be_written_is_told_as_made(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: Any) -> None:
        raise TrackingError("could not tag chat version 1: no answer")

    monkeypatch.setattr(decision_record, "tag", away)
    with pytest.raises(UndeliveredError, match="chat version 1: promoted; but could not tag") as error:
        shop.promote(shop.version())
    assert "runs:/" in error.value.hint
    assert shop.champion() == 1


def test_the_champion_itself_is_not_promoted_again(shop: Shop) -> None:
    shop.promote(shop.version())
    assert shop.promote(1).outcome == "champion already"
    assert len(Ledger(shop.client, "chat", "champion").attempts()) == 1


def test_one_that_another_came_before_is_told_and_the_evidence_says_so(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = shop.version(), shop.version()
    keep, others = decision_record.write, []

    def while_it_is_kept(*arguments: Any) -> Decision:
        if not others:
            others.append(second)
            shop.promote(second, by="bob")
        return keep(*arguments)

    monkeypatch.setattr(decision_record, "write", while_it_is_kept)
    decision = shop.promote(first)
    assert decision.outcome == "came too late"
    assert "bob moved it to version 2 first" in str(decision.error)
    assert shop.champion() == second
    assert shop.tags(first)["mlflow_ft.promotion.champion"] == "came too late"
    path = decision.artifact.partition("/")[2].partition("/")[2]
    kept = Path(shop.client.download_artifacts(decision.run_id, path, str(shop.folder))).read_text()
    assert json.loads(kept)["outcome"] == "came too late"


def test_a_version_that_there_is_not(shop: Shop) -> None:
    shop.version()
    with pytest.raises(ModelError, match="the registry has no version 7 of 'chat'") as error:
        shop.promote(7)
    assert error.value.hint == "versions: 1; aliases: none"
    with pytest.raises(ModelError, match="no version of 'chat' with the alias 'candidate'"):
        shop.promote("candidate")
    with pytest.raises(ModelError, match="no registered model"):
        shop.promote(1, name="other")


# --- each gate


def test_gates_that_are_passed_or_not(shop: Shop) -> None:
    everything = Gates(require=["finished", "parity", "data-checks", "card"], max_age_days=3)
    good = shop.judged(shop.version(), everything)
    assert [name for name, verdict in good.items() if not verdict.passed] == []
    bad = {
        "finished": shop.version(status="KILLED"),
        "parity": shop.version(kl="0.03"),
        "data-checks": shop.version(quality={"checks": [{"name": "empty", "severity": "error", "count": 2}]}),
        "card": shop.version(description=" \n"),
        "freshness": shop.version(days=4),
    }
    for name, version in bad.items():
        judged = shop.judged(version, everything)
        assert {gate for gate, verdict in judged.items() if not verdict.passed} == {name}, name
    assert shop.judged(bad["data-checks"], everything)["data-checks"].found == "empty 2"
    assert shop.judged(bad["parity"], everything)["parity"].numbers == {"kl_mean": 0.03, "max_kl": 0.02}
    assert 3.9 < shop.judged(bad["freshness"], everything)["freshness"].numbers["days"] < 4.1


def test_evidence_that_is_not_there_does_not_pass(shop: Shop) -> None:
    nothing = shop.version(kl="", quality=None)
    judged = shop.judged(nothing, Gates(max_age_days=3))
    assert {name for name, verdict in judged.items() if not verdict.passed} == {"parity", "data-checks"}
    shop.client.create_registered_model("bare")
    shop.client.create_model_version("bare", source="file:///nowhere")
    judged = shop.judged(1, Gates(max_age_days=3, min_scores={"f1": 0.1}), name="bare")
    assert {name for name, verdict in judged.items() if verdict.passed} == set()
    assert judged["finished"].found == "there is no such run"
    assert judged["scores f1"].found == "no such score"
    assert "has no score" in judged["beats-base"].found


def test_scores_are_held_to_their_bounds_each_by_itself(shop: Shop) -> None:
    version = shop.version(rows={"exact_match": [1.0, 1.0, 0.0, 1.0], "f1": [0.1] * 4, "loss": [0.5] * 4})
    judged = shop.judged(version, Gates(min_scores={"exact_match": 0.75, "f1": 0.2}, max_scores={"loss": 0.4}))
    passed = {name: verdict.passed for name, verdict in judged.items() if name.startswith("scores")}
    assert passed == {"scores exact_match": True, "scores f1": False, "scores loss": False}


def test_the_champion_must_be_beaten_on_the_same_rows_by_the_margin(shop: Shop) -> None:
    rows = [0.5 + 0.1 * number for number in range(36)]
    shop.promote(shop.version(rows={"loss": rows}))
    better = shop.version(rows={"loss": [value - 0.2 + 0.01 * (number % 2) for number, value in enumerate(rows)]})
    lucky = shop.version(rows={"loss": [*rows[:-1], rows[-1] - 3.6]})
    same = shop.version(rows={"loss": rows})
    won = shop.judged(better)["beats-champion loss"]
    assert won.passed
    assert won.numbers["difference"] == pytest.approx(0.195)
    assert 0.15 < won.numbers["low"] < 0.195
    assert (won.numbers["rows"], won.numbers["differing"], won.numbers["scores"]) == (36, 36, 1)
    assert not shop.judged(better, read_gates("beats_champion: {margin: 0.194}", place="x"))[
        "beats-champion loss"
    ].passed
    chance = shop.judged(lucky)["beats-champion loss"]
    assert chance.numbers["difference"] == pytest.approx(0.1)  # one row alone: the mean says yes, the test no
    assert "about" in chance.found
    assert not chance.passed
    assert not shop.judged(same)["beats-champion loss"].passed
    assert "beats-champion" not in shop.judged(same, read_gates("beats_champion: null", place="x"))


def test_higher_is_better_where_it_is_no_loss(shop: Shop) -> None:
    shop.promote(shop.version(rows={"exact_match": [0.0, 1.0] * 20, "cost": [5.0] * 40}))
    version = shop.version(rows={"exact_match": [1.0] * 40, "cost": [4.0] * 40})
    assert shop.judged(version)["beats-champion exact_match"].passed
    cost = {"beats_champion": {"metric": "cost"}}
    assert not shop.judged(version, Gates.model_validate(cost))["beats-champion cost"].passed
    assert shop.judged(version, Gates.model_validate(cost | {"lower_is_better": ["cost"]}))[
        "beats-champion cost"
    ].passed


def test_rows_without_a_score_are_left_out_but_never_to_the_candidates_gain(shop: Shop) -> None:
    shop.promote(shop.version(rows={"loss": [*[1.0] * 39, None]}))
    fair = shop.judged(shop.version(rows={"loss": [0.5, 0.6] * 20}))["beats-champion loss"]
    assert (fair.passed, fair.numbers["rows"]) == (True, 39)
    selective = shop.judged(shop.version(rows={"loss": [None, None, *[0.5, 0.6] * 19]}))["beats-champion loss"]
    assert not selective.passed
    assert "no score for 2 rows for which the champion has one" in selective.found
    short = shop.judged(shop.version(rows={"loss": [0.5, 0.6]}))["beats-champion loss"]
    assert "2 rows and the champion 40" in short.found


def test_guarded_scores_may_be_worse_by_so_much(shop: Shop) -> None:
    gates = Gates.model_validate({"beats_champion": None, "max_regression": {"valid_json": 0.1, "loss": 0.2}})
    first = shop.version(
        rows={"valid_json": [1.0, 0.0] * 20, "loss": [1.0] * 40}, base={"valid_json": 0.9, "loss": 2.0}
    )
    judged = shop.judged(first, gates)
    assert not judged["no-regression valid_json"].passed  # there is no champion yet: beside the base model
    assert judged["no-regression loss"].passed
    shop.promote(first, Gates())
    within = shop.judged(shop.version(rows={"valid_json": [0.8, 0.0] * 20, "loss": [1.2, 1.2] * 20}), gates)
    beyond = shop.judged(shop.version(rows={"valid_json": [0.79, 0.0] * 20, "loss": [1.3, 1.2] * 20}), gates)
    assert {name: verdict.passed for name, verdict in within.items() if name.startswith("no-r")} == {
        "no-regression valid_json": True,
        "no-regression loss": True,
    }
    assert not any(verdict.passed for name, verdict in beyond.items() if name.startswith("no-r"))
    assert beyond["no-regression loss"].numbers["worse"] == pytest.approx(0.25)


def test_a_champion_that_cannot_be_scored_on_these_rows_is_not_beaten(shop: Shop) -> None:
    shop.promote(shop.version())
    judged = shop.judged(shop.version(rows={"loss": [0.1] * 40}, digest="e" * 32))
    verdict = judged["beats-champion loss"]
    assert not verdict.passed
    assert "has no scores on these rows and could not be scored on them: run" in verdict.found
    assert "has no config.yaml" in verdict.found


def test_the_champion_is_scored_again_only_where_a_gate_compares_it_on_other_rows(shop: Shop) -> None:
    candidate = contender(shop.client, find_version(shop.client, "chat", str(shop.version())))
    other, alone = replace(candidate, eval_digest="0" * 32), Gates(beats_champion=None)
    assert not rescore.needed(candidate, candidate, Gates())
    assert rescore.needed(candidate, other, Gates())
    assert rescore.needed(candidate, replace(candidate, rows={}), Gates())
    assert not rescore.needed(candidate, other, alone)
    assert rescore.needed(candidate, other, Gates(beats_champion=None, max_regression={"loss": 0.1}))


# --- which gates


def test_gates_of_the_run_are_taken_where_none_are_named(shop: Shop) -> None:
    version = shop.version()
    run_id = shop.tags(version)["mlflow_ft.run_id"]
    shop.client.log_text(run_id, "max_scores: {loss: 0.5}", "gates.yaml")
    decision = shop.promote(version, dry_run=True)
    assert decision.failed == ["scores loss"]
    assert decision.gates_from == f"gates.yaml of run {run_id}"
    assert shop.promote(version, Gates(), dry_run=True).passed


def with_gate(judge: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> plugins.Plugins:
    loaded = plugins.load({"MLFLOW_FT_PLUGINS": ""})
    registered = plugins.Registered(
        provider="theirs", kind="gates", record=Gate(name="own", summary="s", judge=judge, always=True)
    )
    loaded.registered += (registered,)
    return loaded


def test_a_gate_that_raises_has_not_passed_and_the_others_are_told(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: Any) -> Any:
        raise DataError("the guard set is gone", hint="h")

    def breaks(*_: Any) -> Any:
        return 1 / 0

    version = shop.version()
    for judge, words in ((refuses, "the guard set is gone"), (breaks, "ZeroDivisionError: division by zero")):
        judged = replace(shop, loaded=with_gate(judge, monkeypatch)).judged(version)
        assert (judged["own"].passed, judged["own"].found) == (False, words)
        assert judged["finished"].passed


def test_gates_are_chosen_by_name_and_must_ask_for_something(shop: Shop) -> None:
    version = shop.version()
    assert set(shop.judged(version, Gates(names=["finished"]))) == {
        "finished",
        "beats-base loss",
    }  # it cannot be left out
    with pytest.raises(ConfigError, match="unknown gate 'finnished'"):
        shop.promote(version, Gates(names=["finnished"]))
    with pytest.raises(ConfigError, match="unknown gate 'bref'"):
        shop.promote(version, Gates(options={"bref": {}}))
    with pytest.raises(ConfigError, match=r"unknown gate 'beats-bas'\n.*beats-base"):
        shop.promote(version, Gates(waive={"beats-bas": "it is the first of its kind"}))
    shop.promote(version)
    with pytest.raises(ConfigError, match=r"check nothing.*max_age_days is not set"):
        shop.promote(shop.version(), Gates(names=["freshness"]))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("min_score: {loss: 1}", "did you mean min_scores?"),
        ("beats_champion: {margn: 1}", "did you mean margin?"),
        ("max_age_days: soon", "max_age_days"),
        ("beats_champion: {confidence: 1.5}", "beats_champion.confidence"),
        ("require: [finish]", "require.0"),
        ("min_scores: {loss: 1}", "write max_scores: {loss: 1}"),
        ("[1, 2]", "is not a mapping"),
        ("a: [", "line 1: not YAML"),
    ],
)
def test_a_file_of_gates_that_is_wrong(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_gates(text, place="gates.yaml")
    assert words in str(error.value)
    assert "gates.yaml" in str(error.value)


def test_a_file_of_gates_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        gates_file(tmp_path / "gone.yaml")


# --- back


def rollback(shop: Shop, reason: str = "worse in use", **more: Any) -> Returned:
    asked = {"alias": "champion", "by": "bob", "now_ms": int(time.time() * 1000)}
    return roll_back("chat", reason=reason, **(asked | more))


def test_a_rollback_makes_the_champion_before_champion_again(shop: Shop) -> None:
    for loss in (3.0, 2.0, 1.0):
        assert shop.promote(shop.version(rows={"loss": [loss] * 40})).outcome == "promoted"
    assert rollback(shop).move.after == 2
    assert shop.champion() == 2
    assert shop.tags(3)["mlflow_ft.promotion.champion"] == "rolled back"
    assert shop.tags(3)["mlflow_ft.promotion.champion.rolled_back_reason"] == "worse in use"
    assert rollback(shop).move.after == 1
    with pytest.raises(RefusedError, match="version 1 is the first champion"):
        rollback(shop)
    assert rollback(shop, to=3).move.after == 3
    with pytest.raises(RefusedError, match="version 3 is already the champion of chat"):
        rollback(shop, to=3)
    with pytest.raises(ModelError, match="no version 9 of 'chat'"):
        rollback(shop, to=9)
    last = Ledger(shop.client, "chat", "champion").standing().last
    assert last
    assert (last.kind, last.by, last.reason) == ("rollback", "bob", "worse in use")


def test_a_champion_before_that_was_deleted_is_passed_over(shop: Shop) -> None:
    for loss in (3.0, 2.0, 1.0):
        shop.promote(shop.version(rows={"loss": [loss] * 40}))
    shop.client.delete_model_version("chat", "2")
    assert rollback(shop).move.after == 1


def lose_files(shop: Shop, version: int) -> None:
    """What MLflow's garbage collection leaves of a version whose model was deleted."""
    shutil.rmtree(shop.client.get_model_version_download_uri("chat", str(version)))


def test_a_version_without_files_is_not_promoted(shop: Shop) -> None:
    lose_files(shop, shop.version())
    for dry_run, outcome in ((True, "would be refused"), (False, "refused")):
        decision = shop.promote(1, dry_run=dry_run)
        assert decision.outcome == outcome
        assert not decision.failed
        assert "chat version 1 has no files" in str(decision.error)
    assert shop.champion() is None


def test_an_alias_does_not_go_back_to_a_version_without_files(shop: Shop) -> None:
    for loss in (2.0, 1.0):
        shop.promote(shop.version(rows={"loss": [loss] * 40}))
    lose_files(shop, 1)
    with pytest.raises(RefusedError, match="chat version 1 has no files"):
        rollback(shop)
    assert shop.champion() == 2


def test_files_that_are_gone_are_not_downloaded(shop: Shop) -> None:
    shop.promote(shop.version())
    lose_files(shop, 1)
    with pytest.raises(RefusedError, match="chat version 1 has no files"):
        Store(shop.client).download("chat", 1, shop.folder / "here")


def test_nothing_to_take_back(shop: Shop) -> None:
    shop.version()
    with pytest.raises(RefusedError, match="chat has no champion to roll back"):
        rollback(shop)


# --- copies


def test_a_copy_is_bytes_and_does_not_carry_what_was_decided(shop: Shop) -> None:
    version = shop.version(name="staging.chat")
    shop.promote(version, name="staging.chat")
    decision = shop.promote(version, name="staging.chat", copy_to="prod.chat")
    assert (decision.outcome, decision.copied, shop.champion("prod.chat")) == ("promoted", 1, 1)
    ours, theirs = shop.tags(1, "staging.chat"), shop.tags(1, "prod.chat")
    assert theirs["mlflow_ft.copied_from"] == "models:/staging.chat/1"
    assert theirs["mlflow_ft.run_id"] == ours["mlflow_ft.run_id"]
    assert theirs["mlflow_ft.model_id"] != ours["mlflow_ft.model_id"]
    assert "gate" in ours
    assert "gate" not in theirs
    shop.client.delete_logged_model(ours["mlflow_ft.model_id"])
    location = Path(shop.client.get_model_version_download_uri("prod.chat", "1"))
    assert (location / "artifacts" / "model" / "model.safetensors").read_bytes() == ours["mlflow_ft.run_id"].encode()
    assert shop.promote(version, name="staging.chat", copy_to="prod.chat").outcome == "champion already"


def test_a_copy_must_beat_the_champion_where_it_goes(shop: Shop) -> None:
    for name, loss in (("prod.chat", 1.0), ("staging.chat", 2.0)):
        shop.promote(shop.version(name=name, rows={"loss": [loss] * 40}), name=name)
    decision = shop.promote(1, name="staging.chat", copy_to="prod.chat")
    assert (decision.outcome, decision.failed) == ("refused", ["beats-champion loss"])
    assert shop.champion("prod.chat") == 1
    assert len(shop.client.search_model_versions("name='prod.chat'")) == 1


def test_changed_or_missing_bytes_are_not_copied(shop: Shop) -> None:
    version = shop.version()
    location = Path(shop.client.get_model_version_download_uri("chat", "1"))
    weights = location / "artifacts" / "model" / "model.safetensors"
    weights.write_bytes(b"others")
    decision = shop.promote(version, copy_to="prod.chat")
    assert decision.outcome == "refused"
    assert "has changed" in str(decision.error)
    (location / "MLmodel").unlink()
    assert "has no files" in str(shop.promote(version, copy_to="prod.chat").error)
    assert not shop.client.search_model_versions("name='prod.chat'")


def test_a_copy_to_another_registry(shop: Shop, empty_store: Path, tmp_path: Path) -> None:
    other = f"sqlite:///{shutil.copy(empty_store, tmp_path / 'other.db')}"
    there = MlflowClient(other, registry_uri=other)
    decision = shop.promote(shop.version(), copy_to="chat", registry=other)
    assert (decision.outcome, decision.copied) == ("promoted", 1)
    assert shop.champion() is None
    copy = there.get_model_version_by_alias("chat", "champion")
    location = Path(there.get_model_version_download_uri("chat", "1"))
    assert (location / "artifacts" / "model" / "model.safetensors").is_file()
    assert there.get_logged_model(copy.tags["mlflow_ft.model_id"]).artifact_location == str(location)
    worse = shop.promote(shop.version(rows={"loss": [2.0] * 40}), copy_to="chat", registry=other)
    assert worse.failed == ["beats-champion loss"]  # the champion's run is in the first store


def test_numbers_that_json_does_not_know_are_left_empty(shop: Shop) -> None:
    decision = shop.promote(shop.version(), dry_run=True)
    verdict = Verdict(passed=False, found="nan", wanted="a number", numbers={"value": math.nan})
    changed = replace(decision, judged=(replace(decision.judged[0], verdict=verdict),))
    assert json.loads(json.dumps(changed.as_dict(), allow_nan=False))["gates"][0]["numbers"] == {"value": None}

"""What counts as evidence at a promotion: the base to beat, enough rows, several scores, waivers, and known names."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlflow_ft import Gate, Verdict, plugins
from mlflow_ft.config.gates import Gates, read_gates
from mlflow_ft.errors import ConfigError
from mlflow_ft.registry import Registry, chosen_gates
from mlflow_ft.tracking.promotion import Ledger
from tests.operations.promoting.test_promote import Shop, shop

__all__ = ["shop"]

Versions = Callable[..., int]
BETTER, SAME, BAD = [1.0] * 40, [2.0] * 40, [30.0] * 40


def gates_of(text: str) -> Gates:
    return read_gates(text, place="gates.yaml")


# --- the base model


def test_a_first_champion_that_does_not_beat_its_base_is_refused(shop: Shop) -> None:
    for rows, words in ((BAD, "worse than its base tiny by 28 on 40 rows"), (SAME, "the same as its base tiny on all")):
        decision = shop.promote(shop.version(rows={"loss": rows}, base_rows={"loss": SAME}))
        assert (decision.outcome, decision.failed) == ("refused", ["beats-base loss"])
        assert words in next(
            judgement.verdict.found for judgement in decision.judged if judgement.name == "beats-base loss"
        )
    assert shop.champion() is None


def test_with_a_champion_the_base_is_asked_only_where_that_is_set(shop: Shop) -> None:
    shop.promote(shop.version(rows={"loss": BAD}))
    better = shop.version(rows={"loss": SAME}, base_rows={"loss": BETTER})  # than the champion, and not than its base
    decision = shop.promote(better, dry_run=True)
    assert decision.passed
    abstained = {
        judgement.gate: judgement.verdict.found for judgement in decision.judged if judgement.result == "abstain"
    }
    assert abstained["beats-base"] == "version 1 is the champion: the one to beat instead"
    assert shop.promote(better, gates_of("beats_base: {always: true}"), dry_run=True).failed == ["beats-base loss"]


def test_scores_of_the_base_that_were_not_kept_are_no_evidence(shop: Shop) -> None:
    judged = shop.judged(shop.version(base_rows={}))
    assert judged["beats-base loss"].found == "the base model has no score 'loss' for each row"


def test_the_score_is_the_one_that_the_method_is_for(shop: Shop) -> None:
    rows = {"loss": BAD, "preference_accuracy": [1.0] * 40}
    base = {"loss": SAME, "preference_accuracy": [0.0] * 40}
    assert shop.judged(shop.version(rows=rows, base_rows=base, aims=["preference_accuracy"]))[
        "beats-base preference_accuracy"
    ].passed
    older = shop.version(rows=rows, base_rows=base)  # a run that did not keep it: its method says so
    shop.client.log_param(shop.tags(older)["mlflow_ft.run_id"], "cfg.method", "dpo")
    assert shop.judged(older)["beats-base preference_accuracy"].passed
    assert not shop.judged(shop.version(rows=rows, base_rows=base))["beats-base loss"].passed


def test_a_champion_without_that_score_is_beaten_on_another_and_that_is_said(shop: Shop) -> None:
    shop.promote(shop.version(rows={"exact_match": [0.0] * 40}))
    candidate = shop.version(rows={"exact_match": [1.0] * 40, "weighted_reward": BETTER}, aims=["weighted_reward"])
    verdict = shop.judged(candidate)["beats-champion exact_match"]
    assert verdict.passed
    assert verdict.found.endswith("the champion has no weighted_reward on these rows")


# --- enough rows


def test_few_rows_claim_nothing_and_say_how_many_it_takes(shop: Shop) -> None:
    version = shop.version(rows={"loss": [0.5, 0.6, 0.5, 0.7]}, base_rows={"loss": [1.0, 1.1, 1.2, 1.0]})
    verdict = shop.judged(version)["beats-base loss"]
    assert not verdict.passed
    assert "better than its base tiny by 0.5 on 4 rows: too few to tell; about 30 rows would show" in verdict.found
    assert verdict.wanted == "better by more than 0, 95% confidence, on 30 rows or more"
    assert (verdict.numbers["rows"], verdict.numbers["min_rows"], verdict.numbers["needed"]) == (4, 30, 30)
    assert verdict.numbers["p_value"] >= 1 / 16


def test_however_good_29_rows_are_too_few(shop: Shop) -> None:
    rows = {"loss": [1.0] * 29}
    assert not shop.judged(shop.version(rows=rows))["beats-base loss"].passed
    assert shop.judged(shop.version(rows=rows), gates_of("beats_base: {min_rows: 29}"))["beats-base loss"].passed


def test_a_lower_number_of_rows_changes_nothing_of_what_the_test_asks(shop: Shop) -> None:
    gates = gates_of("beats_base: {min_rows: 2}")
    four = shop.judged(shop.version(rows={"loss": [1.0] * 4}), gates)["beats-base loss"]
    assert not four.passed
    assert "no lower bound, p 0.06" in four.found
    decision = shop.promote(shop.version(rows={"loss": [1.0] * 4}), gates, dry_run=True)
    assert json.dumps(decision.as_dict(), allow_nan=False)  # JSON has no minus infinity
    assert shop.judged(shop.version(rows={"loss": [1.0] * 5}), gates)["beats-base loss"].passed
    ten = shop.version(rows={"loss": [1.0 + 0.1 * number for number in range(10)]}, base_rows={"loss": [2.0] * 10})
    assert shop.judged(ten, gates)["beats-base loss"].numbers["p_value"] >= 1 / 1024


@pytest.mark.parametrize("rows", [5, 20, 50, 200])
def test_of_promotions_without_a_difference_one_in_twenty_at_most_goes_through(rows: int) -> None:
    """The gate itself, with its defaults but for the number of rows; the test alone: test_paired.py."""
    from mlflow_ft.builtin.gates import beats
    from mlflow_ft.candidacy import Candidacy, Contender

    generator, gates = np.random.default_rng(rows), gates_of("beats_base: {min_rows: 2, samples: 1000}")
    nothing: dict[str, Any] = {"tags": {}, "params": {}, "metrics": {}, "quality": None, "eval_digest": "d"}
    for name, draw in {
        "exact_match": lambda: generator.integers(2, size=rows),
        "finished": lambda: generator.random(rows) < 0.05,
        "loss": lambda: generator.exponential(size=rows),
        "weighted_reward": lambda: np.where(generator.random(rows) < 0.6, 0, generator.lognormal(size=rows)),
    }.items():
        promoted = 0
        for _ in range(150):
            ours, theirs = ({name: tuple(map(float, draw()))} for _ in range(2))
            candidate = Contender(
                name="n", version=1, run_id="", model_id="", described=True, status="FINISHED", ended_ms=0,
                rows=ours, base_rows=theirs, **nothing,
            )  # fmt: skip
            rival = beats.Rival(rows=theirs, sort="base model", name="its base")
            about = Candidacy(alias="champion", candidate=candidate, champion=None, now_ms=0)
            promoted += bool(beats.compared(about, rival, gates.beats_base, gates)[0].passed)
        assert promoted / 150 <= 0.05 + 2.33 * (0.05 * 0.95 / 150) ** 0.5, name


# --- several scores


def test_of_several_scores_each_must_pass_at_a_confidence_for_all_of_them(shop: Shop) -> None:
    wins = [1.0] * 6 + [0.0] * 34
    rows = {"exact_match": wins, "valid_json": wins, "finished": [1.0] * 40}
    base = {"exact_match": [0.0] * 40, "valid_json": [0.0] * 40, "finished": [0.0] * 40}
    version = shop.version(rows=rows, base_rows=base)
    verdict = shop.judged(version, gates_of("beats_base: {metric: exact_match}"))["beats-base exact_match"]
    assert verdict.passed  # 1 / 64, below 5 %
    several = shop.judged(version, gates_of("beats_base: {metric: [exact_match, valid_json, finished, exact_match]}"))
    judged = {name: verdict for name, verdict in several.items() if name.startswith("beats-base")}
    assert {name: verdict.passed for name, verdict in judged.items()} == {
        "beats-base exact_match": True,
        "beats-base valid_json": True,
        "beats-base finished": True,
    }
    assert "98.33% confidence (95% over 3 scores)" in judged["beats-base finished"].wanted
    assert judged["beats-base finished"].numbers["confidence"] == pytest.approx(1 - 0.05 / 3)
    auto = shop.judged(version, gates_of("beats_base: {metric: [auto, exact_match]}"))["beats-base exact_match"]
    assert auto.numbers["scores"] == 1  # auto is exact_match here
    rows = {name: [1.0] * 5 + [0.0] * 35 for name in ("exact_match", "valid_json")}
    base = {name: [0.0] * 40 for name in rows}
    five = shop.version(rows=rows, base_rows=base)
    assert shop.judged(five, gates_of("beats_base: {metric: exact_match}"))["beats-base exact_match"].passed  # 1 / 32
    both = shop.promote(five, gates_of("beats_base: {metric: [exact_match, valid_json]}"), dry_run=True)
    assert both.failed == ["beats-base exact_match", "beats-base valid_json"]  # not below 2.5 %


# --- waivers


def test_a_waiver_needs_a_reason_which_is_kept_everywhere(shop: Shop) -> None:
    version = shop.version(rows={"loss": BAD}, base_rows={"loss": SAME})
    reason = "the base writes another language"
    decision = shop.promote(version, gates_of(f"waive: {{beats-base: {reason}}}"))
    assert (decision.outcome, decision.failed) == ("promoted", [])
    [waived] = [judgement for judgement in decision.judged if judgement.result == "waived"]
    assert (waived.name, waived.waived) == ("beats-base loss", reason)
    assert "worse than its base" in waived.verdict.found  # it is judged all the same
    kept = json.loads(json.dumps(decision.as_dict()))
    assert [gate["waived"] for gate in kept["gates"] if gate["gate"] == "beats-base"] == [reason]
    assert shop.tags(version)["mlflow_ft.promotion.champion.waived"] == f"beats-base waived: {reason}"
    assert "1 waived" in shop.tags(version)["mlflow_ft.promotion.champion.gates"]
    last = Ledger(shop.client, "chat", "champion").standing().last
    assert last
    assert last.reason == f"beats-base waived: {reason}"


def test_what_passes_needs_no_waiver_and_nothing_but_waivers_is_no_evidence(shop: Shop) -> None:
    good = shop.promote(shop.version(), gates_of("waive: {beats-base: it is the first of them}"), dry_run=True)
    assert good.reason == ""
    bad = shop.version(rows={"loss": BAD}, base_rows={"loss": SAME})
    with pytest.raises(ConfigError, match="a promotion needs evidence"):
        shop.promote(bad, gates_of("names: [beats-base]\nwaive: {beats-base: it is the first of them}"))
    assert shop.champion() is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("beats_base: null", "waive it with a reason: waive: {beats-base: WHY}"),
        ("beats_base: false", "waive it with a reason"),
        ("waive: {beats-base: ''}", "is not a reason"),
        ("waive: {beats-base: ok}", "is not a reason"),
        ("waive: {beats-base: '2026'}", "is not a reason"),
        ("waive: {beats-base: true}", "valid string"),
        ("waive: [beats-base]", "waive"),
    ],
)
def test_there_is_no_silent_way_around(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as error:
        gates_of(text)
    assert words in str(error.value)


# --- names that are not known


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("min_scores: {a: 1, a: 2}", "line 1  a is given twice"),
        ("max_age_days: 3\nmin_scores: {a: 1}\nmax_age_days: 4", "line 3  max_age_days is given twice"),
        ("beats_base: {alway: true}", "beats_base.alway  unknown key; did you mean always?"),
        ("beats_champion: {min_row: 3}", "did you mean min_rows?"),
        ("min_rows: 3", "belongs under beats_champion or beats_base"),
        ("beats_base: {metric: []}", "the name of a score, or a list of names"),
        ("beats_base: {metric: {loss: 1}}", "the name of a score, or a list of names"),
        ("beats_base: {min_rows: 0}", "beats_base.min_rows"),
        ("waived: {beats-base: first of its kind}", "did you mean waive?"),
    ],
)
def test_what_a_gates_file_does_not_know_is_refused(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as error:
        gates_of(text)
    assert words in str(error.value)


def registry_with(*gates: Gate) -> Registry:
    loaded = plugins.load({"MLFLOW_FT_PLUGINS": ""})
    loaded.registered += tuple(plugins.Registered(provider="theirs", kind="gates", record=gate) for gate in gates)
    return Registry(loaded)


def gate(name: str, *options: str) -> Gate:
    return Gate(name=name, summary="s", judge=lambda about, gates: [Verdict.abstain("why")], options=options)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("own: {leest: 1}", "options.own.leest  unknown option; did you mean least?"),
        ("own: {limits: {hihg: 1}}", "options.own.limits.hihg  unknown option; did you mean limits.high?"),
        ("own: {rules: [{nam: a}, {name: b}]}", "options.own.rules.nam  unknown option; did you mean rules.name?"),
        ("own: {least: {deep: 1}}", "options.own.least.deep"),
        ("plain: {anything: 1}", "the gate plain reads: none"),
        ("beats-champion: {margin: 1}", "its settings are under beats_champion"),
        ("finished: {soon: 1}", "the gate finished reads: none"),
    ],
)
def test_an_option_that_no_gate_reads_is_refused_at_any_depth(text: str, words: str) -> None:
    registry = registry_with(gate("own", "least", "limits.high", "rules.name", "free.*"), gate("plain"))
    with pytest.raises(ConfigError) as error:
        chosen_gates(registry, gates_of(f"options: {{{text}}}"), place="gates.yaml")
    assert words in str(error.value)
    assert "gates.yaml" in str(error.value)


def test_options_that_are_declared_are_taken() -> None:
    registry = registry_with(gate("own", "least", "limits.high", "rules.name", "free.*"), gate("plain"))
    text = "own: {least: 1, limits: {high: 2}, rules: [{name: a}], free: {a: 1, b: {c: [1, 2]}}}, plain: {}"
    assert "own" in [gate.name for gate in chosen_gates(registry, gates_of(f"options: {{{text}}}"))]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("min_scores: {exact_mach: 0.9}", "exact_mach  the run has no such score; did you mean exact_match?"),
        ("max_scores: {bananas: 1}", "it has: exact_match, loss, perplexity"),
        ("max_regression: {safety/los: 1}", "max_regression: safety/los  the run has no such score"),
        ("lower_is_better: [coost]", "lower_is_better: coost"),
        ("beats_base: {metric: los}", "beats_base.metric: los  the run has no such score; did you mean loss?"),
        ("beats_champion: {metric: [loss, exact_mtch]}", "beats_champion.metric: exact_mtch"),
        ("beats_base: {metric: perplexity}", "has no value for each row; those that have one: exact_match, loss"),
    ],
)
def test_a_score_that_the_run_has_not_is_refused_with_those_it_has(shop: Shop, text: str, words: str) -> None:
    version = shop.version(rows={"loss": BETTER, "exact_match": [1.0] * 40})
    shop.client.log_metric(shop.tags(version)["mlflow_ft.run_id"], "eval/tuned/perplexity", 2.0)
    with pytest.raises(ConfigError) as error:
        shop.promote(version, gates_of(text), gates_from="gates.yaml")
    assert words in str(error.value)
    assert "gates.yaml" in str(error.value)
    assert shop.champion() is None
    assert "mlflow_ft.promotion.champion" not in shop.tags(version)  # a slip of the pen is no decision


def test_other_metrics_of_the_run_may_be_bounded(shop: Shop) -> None:
    version = shop.version()
    shop.client.log_metric(shop.tags(version)["mlflow_ft.run_id"], "train/steps", 7.0)
    assert shop.judged(version, gates_of("max_scores: {train/steps: 10}"))["scores train/steps"].passed


# --- abstaining


def test_a_gate_without_a_verdict_abstains_and_only_abstaining_is_refused(shop: Shop) -> None:
    silent = Gate(name="silent", summary="s", judge=lambda about, gates: [], always=True)
    loaded = plugins.load({"MLFLOW_FT_PLUGINS": ""})
    loaded.registered += (plugins.Registered(provider="theirs", kind="gates", record=silent),)
    ours = replace(shop, loaded=loaded)
    decision = ours.promote(shop.version())
    [said] = [judgement.as_dict() for judgement in decision.judged if judgement.gate == "silent"]
    assert (said["result"], said["passed"], said["found"]) == ("abstain", None, "it has no verdict on this model")
    with pytest.raises(ConfigError, match=r"check nothing.*silent \(it has no verdict"):
        ours.promote(shop.version(), Gates(names=["silent"]))


def test_what_is_not_required_is_shown_as_not_asked(shop: Shop, tmp_path: Path) -> None:
    decision = shop.promote(shop.version(kl=""), gates_of("require: [finished]"), dry_run=True)
    assert decision.passed
    abstained = {
        judgement.gate: judgement.verdict.found for judgement in decision.judged if judgement.result == "abstain"
    }
    assert abstained["parity"] == abstained["card"] == "it is not in `require`"

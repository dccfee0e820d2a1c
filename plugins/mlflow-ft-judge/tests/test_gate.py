"""The gate: the candidate against the champion, judged pair by pair."""

from __future__ import annotations

from dataclasses import replace

import mlflow_ft_judge
import pytest
from mlflow_ft_judge import gate
from mlflow_ft_judge.testing import Say, texts

from mlflow_ft import Candidacy, ConfigError, Contender
from mlflow_ft.config.gates import read_gates

GOOD, BAD = "good good", "no"


def version(number, answers):
    rows = tuple({"prompt": f"{row}?", "expected": "x", "base": "b", "tuned": text} for row, text in enumerate(answers))
    return Contender(
        name="m",
        version=number,
        run_id=f"r{number}",
        model_id="",
        tags={},
        described=True,
        status="FINISHED",
        ended_ms=0,
        params={},
        metrics={},
        quality=None,
        eval_digest="d",
        rows={},
        answers=rows,
    )


def candidacy(ours, theirs):
    champion = None if theirs is None else version(1, theirs)
    return Candidacy(alias="champion", candidate=version(2, ours), champion=champion, now_ms=0)


def verdicts(about, options="{model: scripted, backoff: 0.01}"):
    text = "max_age_days: 1" if options is None else f"options: {{judge: {options}}}"
    return gate.judge(about, read_gates(text, place="gates.yaml"))


@pytest.fixture
def judged(serve, monkeypatch):
    judge = serve()
    monkeypatch.setenv("MLFLOW_FT_JUDGE_ENDPOINT", judge.url)
    return judge


def test_a_candidate_that_wins_passes_and_one_that_does_not_fails(judged):
    [better] = verdicts(candidacy([GOOD] * 25 + [BAD] * 15, [BAD] * 40))
    assert better.passed
    assert "win rate 0.8125 on 40 pairs (62% won, 38% ties, 0% lost" in better.found
    assert better.numbers["win_rate"] == pytest.approx(0.8125)
    assert better.numbers["low"] > 0.5
    assert len(judged.bodies) == 50
    [worse] = verdicts(candidacy([BAD] * 40, [GOOD] * 25 + [BAD] * 15))
    assert worse.passed is False
    [same] = verdicts(candidacy([GOOD] * 40, [GOOD] * 40))
    assert same.passed is False


def test_the_win_rate_that_is_asked_for_may_be_another(judged):
    about = candidacy([GOOD] * 25 + [BAD] * 15, [BAD] * 40)
    [verdict] = verdicts(about, "{model: scripted, min_win_rate: 0.8}")
    assert verdict.passed is False
    assert verdict.wanted.startswith("wins more than 80%")
    [verdict] = verdicts(candidacy([GOOD] * 40, [GOOD] * 40), "{model: scripted, min_win_rate: 0.4}")
    assert verdict.passed, "as good as the champion, if that is enough"


def test_few_rows_are_no_evidence(judged):
    [verdict] = verdicts(candidacy([GOOD] * 20, [BAD] * 20))
    assert verdict.passed is False
    assert "too few to tell, at least 30 are needed" in verdict.found
    assert verdicts(candidacy([GOOD] * 20, [BAD] * 20), "{model: scripted, min_rows: 20}")[0].passed


def test_a_judge_that_fails_gives_no_promotion(judged):
    judged.script = lambda body: Say(status=403, error="quota")
    [verdict] = verdicts(candidacy([GOOD] * 40, [BAD] * 40))
    assert verdict.passed is False
    assert "40 of 40 pairs could not be judged (403 quota: 80)" in verdict.found


def test_a_judge_with_a_preferred_place_promotes_nobody(judged):
    judged.script = lambda body: '{"winner": "B"}'
    [verdict] = verdicts(candidacy([GOOD] * 40, [BAD] * 40))
    assert verdict.passed is False
    assert verdict.numbers["position_bias"] == -1.0
    assert "the orders agree on 0%" in verdict.found


def test_it_abstains_where_it_is_not_asked_for_or_nothing_is_champion(judged):
    about = candidacy([GOOD], [BAD])
    assert verdicts(about, None)[0].passed is None
    assert verdicts(replace(about, champion=None))[0].passed is None
    assert not judged.bodies


def test_answers_to_other_prompts_are_not_compared(judged):
    about = candidacy([GOOD, GOOD], [BAD])
    assert verdicts(about)[0].found == "the champion's answers are to other prompts"
    assert verdicts(candidacy([], [BAD]))[0].found == "the candidate's answers were not kept"
    lost = replace(about, champion=replace(about.champion, unscored="its rows are gone"))
    assert verdicts(lost)[0].found == "its rows are gone"


def test_the_gates_file_cannot_say_where_the_key_is_sent(monkeypatch):
    assert not {name for name in gate.OPTIONS if "endpoint" in name or "key" in name}
    monkeypatch.delenv("MLFLOW_FT_JUDGE_ENDPOINT", raising=False)
    with pytest.raises(ConfigError, match="no endpoint is given"):
        verdicts(candidacy([GOOD], [BAD]))


def test_the_key_of_the_environment_is_sent(judged, monkeypatch):
    monkeypatch.setenv("MLFLOW_FT_JUDGE_API_KEY", "sk-mine")
    verdicts(candidacy([GOOD], [BAD]))
    assert {headers["Authorization"] for headers in judged.headers} == {"Bearer sk-mine"}
    assert texts(judged.bodies[0])["answer A"] in (GOOD, BAD)


@pytest.mark.parametrize("options", ["{model: m, min_win_rate: 1}", "{model: m, confidence: 0.5}", "{workers: 0}"])
def test_options_out_of_range_are_refused(judged, options):
    with pytest.raises(ConfigError):
        verdicts(candidacy([GOOD], [BAD]), options)


def test_contract(plugin_contract):
    plugin_contract(mlflow_ft_judge)

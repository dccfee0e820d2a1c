"""What a scripted judge says over HTTP, as scores; every failure counted."""

from __future__ import annotations

import json
import math
import os
import stat
from pathlib import Path

import pytest
from mlflow_ft_judge import settings
from mlflow_ft_judge.engine import evaluating
from mlflow_ft_judge.engine.asking import Asked
from mlflow_ft_judge.testing import Say, answered, fair, texts

GOOD, FAIR, BAD = "good good good good", "good good", "no"
FIRST = json.dumps({"reason": "it is first", "winner": "A"})


def scores(subject, options):
    return {score.name: score for score in evaluating.evaluate(subject, options)}


def test_marks_and_win_rate_are_those_of_the_judge(serve, subject_of):
    judge = serve()
    subject, kept = subject_of("tuned", [GOOD, FAIR, BAD, BAD], [BAD, GOOD, BAD, "nothing"])
    found = scores(subject, judge.options(price_in=2.0, price_out=10.0))
    assert found["judge/helpfulness"].rows == (5, 3, 1, 1)
    assert found["judge/helpfulness"].value == 2.5
    assert found["judge/win_rate"].rows == (1.0, 0.0, 0.5, 0.5)
    values = {name.removeprefix("judge/"): score.value for name, score in found.items()}
    assert (values["wins"], values["ties"], values["losses"]) == (0.25, 0.5, 0.25)
    assert (values["order_agreement"], values["position_bias"], values["not_judged"]) == (1.0, 0.0, 0.0)
    asked = 4 + 2 * 3  # the third pair is twice the same answer, which nobody is asked about
    assert len(judge.bodies) == asked
    assert (values["tokens_in"], values["tokens_out"]) == (100 * asked, 10 * asked)
    assert values["cost"] == pytest.approx((100 * asked * 2.0 + 10 * asked * 10.0) / 1e6)
    [table] = kept.tables.values()
    assert table[0]["helpfulness, reason"] == "counted"
    assert (table[0]["base"], table[0]["win"], table[1]["win"]) == (BAD, 1.0, 0.0)
    assert any("10 requests" in line and "1,000 tokens read" in line for line in kept.lines)


def test_the_base_wins_half_of_the_time_against_itself(serve, subject_of):
    subject, _ = subject_of("base", [GOOD, BAD])
    found = scores(subject, serve().options())
    assert found["judge/win_rate"].rows == (0.5, 0.5)
    assert (found["judge/wins"].value, found["judge/ties"].value) == (0.0, 1.0)


def test_a_judge_that_prefers_what_is_first_gives_ties_and_is_told_of(serve, subject_of):
    judge = serve(lambda body: fair(body) if "answer" in texts(body) else FIRST)
    subject, _ = subject_of("tuned", [GOOD, FAIR, BAD], ["x", "y", "z"])
    found = scores(subject, judge.options())
    assert found["judge/win_rate"].rows == (0.5, 0.5, 0.5)
    assert found["judge/position_bias"].value == 1.0
    assert found["judge/order_agreement"].value == 0.0
    assert found["judge/ties"].value == 1.0


def test_429_with_retry_after_and_errors_of_the_server_are_repeated(serve, subject_of):
    said = iter([Say(status=429, headers={"Retry-After": "0"}), Say(status=503)])
    judge = serve(lambda body: next(said, None) or fair(body))
    subject, kept = subject_of("base", [GOOD])
    assert scores(subject, judge.options())["judge/helpfulness"].value == 5
    assert len(judge.bodies) == 3
    assert any("2 repeated" in line for line in kept.lines)


def test_an_endpoint_that_is_too_slow_is_not_waited_for(serve, subject_of):
    judge = serve(lambda body: Say(text=fair(body), seconds=0.0 if GOOD in texts(body)["answer"] else 1.0))
    subject, kept = subject_of("base", [GOOD, BAD])
    found = scores(subject, judge.options(timeout=0.2, retries=1, max_failures=0.5))
    assert found["judge/helpfulness"].rows == (5, None)
    assert found["judge/helpfulness"].coverage == 0.5
    assert found["judge/not_judged"].value == 1
    assert sum(texts(body)["answer"] == BAD for body in judge.bodies) == 2
    assert any("the endpoint did not answer in time: 1" in line for line in kept.lines)


def test_a_reply_without_a_verdict_is_asked_for_once_more(serve, subject_of):
    judge = serve(lambda body: "I like it." if len(body["messages"]) == 2 else '{"reason": "now", "mark": 4}')
    subject, _ = subject_of("base", [GOOD])
    found = scores(subject, judge.options())
    assert found["judge/helpfulness"].rows == (4,)
    [first, second] = judge.bodies
    assert second["messages"][:2] == first["messages"]
    assert [turn["content"] for turn in second["messages"][2:3]] == ["I like it."]
    assert found["judge/tokens_in"].value == 200, "a reply that could not be read has its price, too"


def test_a_score_is_withheld_where_too_much_could_not_be_judged(serve, subject_of):
    judge = serve(lambda body: "?" if BAD in texts(body)["answer"] else fair(body))
    subject, kept = subject_of("base", [GOOD, BAD, FAIR])
    found = scores(subject, judge.options(max_failures=0.3))
    assert math.isnan(found["judge/helpfulness"].value)
    assert found["judge/helpfulness"].rows == (None, None, None)
    [line] = [line for line in kept.lines if "withheld" in line]
    assert "1 of 3 rows could not be judged" in line
    assert "no verdict in the judge's reply, asked twice: 1" in line
    assert len(judge.bodies) == 4
    allowed = scores(subject, judge.options(max_failures=0.4))["judge/helpfulness"]
    assert (allowed.value, allowed.rows) == (4.0, (5, None, 3))


def test_a_pair_counts_only_if_both_orders_were_judged(serve, subject_of):
    judge = serve(lambda body: "?" if texts(body).get("answer A") == GOOD else fair(body))
    subject, _ = subject_of("tuned", [GOOD, FAIR], [BAD, BAD])
    found = scores(subject, judge.options(max_failures=0.5))
    assert found["judge/win_rate"].rows == (None, 1.0)


def test_nothing_is_asked_twice(serve, subject_of):
    judge = serve()
    subject, kept = subject_of("tuned", [GOOD, BAD], [BAD, FAIR])
    first = scores(subject, judge.options())
    asked = len(judge.bodies)
    second = scores(subject, judge.options())
    assert len(judge.bodies) == asked
    assert second["judge/helpfulness"] == first["judge/helpfulness"]
    assert second == first, "what it costs is known from the disk, too"
    assert "0 requests" in kept.lines[-1]
    assert "0 tokens read" in kept.lines[-1]
    other = scores(subject, judge.options(model="another"))
    assert other["judge/helpfulness"].rows == first["judge/helpfulness"].rows
    assert len(judge.bodies) == 2 * asked
    scores(subject, judge.options(cache=False))
    assert len(judge.bodies) == 3 * asked


def test_what_could_not_be_judged_is_asked_again_the_next_time(serve, subject_of):
    broken = [True]
    judge = serve(lambda body: Say(status=500) if broken[0] else fair(body))
    subject, _ = subject_of("base", [GOOD])
    assert math.isnan(scores(subject, judge.options())["judge/helpfulness"].value)
    broken[0] = False
    assert scores(subject, judge.options())["judge/helpfulness"].value == 5


def test_a_dead_endpoint_costs_a_few_requests_not_one_for_each_row(serve, subject_of):
    judge = serve(lambda body: Say(status=500))
    subject, kept = subject_of("base", [f"{number}" for number in range(60)])
    found = scores(subject, judge.options(retries=0))
    assert found["judge/not_judged"].value == 60
    assert len(judge.bodies) < 20
    assert any("60 of 60 rows could not be judged (500" in line for line in kept.lines)


def test_a_refused_key_ends_the_judging_at_once_and_is_never_shown(serve, subject_of, monkeypatch, tmp_path):
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    judge = serve(lambda body: Say(status=401, error="no such key: sk-very-secret"))
    subject, kept = subject_of("base", [GOOD] + [f"{number}" for number in range(30)])
    found = scores(subject, judge.options(api_key_env="MY_KEY", workers=1))
    assert len(judge.bodies) == 1
    assert judge.headers[0]["Authorization"] == "Bearer sk-very-secret"
    told = "\n".join(kept.lines) + json.dumps(kept.tables)
    assert "401 no such key: [key]" in told
    assert "sk-very-secret" not in told
    assert found["judge/not_judged"].value == 31


def test_the_cache_holds_replies_for_this_user_alone_and_no_key(serve, subject_of, monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    subject, _ = subject_of("base", [GOOD])
    scores(subject, serve().options(api_key_env="MY_KEY"))
    folder = Path(os.environ["MLFLOW_FT_CACHE"], "judge")
    [file] = folder.rglob("*.json")
    assert "sk-very-secret" not in file.read_text()
    assert GOOD not in file.read_text()
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_a_redirect_is_not_followed_with_the_key(serve, subject_of, monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    elsewhere = serve()
    headers = {"Location": f"{elsewhere.url}/chat/completions"}
    judge = serve(lambda body: Say(status=307, headers=headers))
    subject, _ = subject_of("base", [GOOD])
    scores(subject, judge.options(api_key_env="MY_KEY"))
    assert judge.bodies
    assert not elsewhere.bodies


@pytest.mark.parametrize(
    ("refused", "message"),
    [
        ("response_format", "`response_format` supports only text"),
        ("temperature", "Unsupported value: 'temperature' does not support 0 with this model."),
        ("max_tokens", "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."),
    ],
)
def test_an_endpoint_that_does_not_know_a_parameter_is_asked_without_it(serve, subject_of, refused, message):
    judge = serve(lambda body: Say(status=400, error=message) if refused in body else fair(body))
    subject, _ = subject_of("base", [GOOD, BAD])
    assert scores(subject, judge.options(workers=1))["judge/helpfulness"].rows == (5, 1)
    assert [refused in body for body in judge.bodies] == [True, False, False]
    assert ("max_completion_tokens" in judge.bodies[-1]) == (refused == "max_tokens")


def test_a_schema_of_the_verdict_is_sent(serve, subject_of):
    judge = serve()
    subject, _ = subject_of("base", [GOOD])
    scores(subject, judge.options())
    [body] = judge.bodies
    schema = body["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["mark"] == {"type": "integer", "enum": [1, 2, 3, 4, 5]}
    assert schema["required"] == ["reason", "mark"]
    assert (body["temperature"], body["max_tokens"]) == (0.0, 512)


def test_own_rubrics_repeats_and_agreement(serve, subject_of):
    count = iter(range(100))
    judge = serve(lambda body: json.dumps({"mark": 8 if "terse" in str(body) and next(count) % 2 else 2}))
    rubrics = {"terse": {"instructions": "How terse.", "scale": [0, 10]}}
    subject, _ = subject_of("base", ["a", "b", "c"])
    found = scores(subject, judge.options(rubrics=rubrics, repeats=3, workers=1, pairwise=False))
    assert found["judge/terse"].rows == (4, 6, 4)
    assert found["judge/terse_agreement"].value == pytest.approx(1 / 3)
    assert "judge/win_rate" not in found


def test_two_judges_are_averaged_and_compared(serve, subject_of):
    generous = serve(lambda body: json.dumps({"mark": 5}) if "answer" in texts(body) else fair(body))
    judge = serve()
    subject, kept = subject_of("tuned", [GOOD, BAD, FAIR], [BAD, FAIR, GOOD])
    found = scores(subject, judge.options(second_endpoint=generous.url, second_model="generous"))
    assert found["judge/helpfulness"].rows == (5, 3, 4)
    assert found["judge/helpfulness_agreement"].value == pytest.approx(1 / 3)
    assert found["judge/helpfulness_kappa"].value <= 0
    assert (found["judge/win_rate_agreement"].value, found["judge/win_rate_kappa"].value) == (1.0, 1.0)
    assert {body["model"] for body in generous.bodies} == {"generous"}
    [table] = kept.tables.values()
    assert (table[1]["helpfulness 1"], table[1]["helpfulness 2"]) == (1, 5)


def test_one_judge_of_two_that_fails_leaves_the_row_without_a_score(serve, subject_of):
    judge, dead = serve(), serve(lambda body: Say(status=500))
    subject, _ = subject_of("base", [GOOD])
    options = judge.options(second_endpoint=dead.url, second_model="dead", retries=0)
    assert math.isnan(scores(subject, options)["judge/helpfulness"].value)


def test_only_so_many_rows_are_judged(serve, subject_of):
    judge = serve()
    subject, _ = subject_of("tuned", ["a", "b", "c"], ["x", "y", "z"])
    found = scores(subject, judge.options(max_rows=2))
    assert len(found["judge/helpfulness"].rows) == len(found["judge/win_rate"].rows) == 2
    assert len(judge.bodies) == 2 + 4


def test_without_the_answers_of_the_base_nothing_is_compared(serve, subject_of):
    subject, _ = subject_of("tuned", [GOOD])
    assert "judge/win_rate" not in scores(subject, serve().options())


def test_a_reply_that_is_no_completion_is_counted(serve, subject_of):
    judge = serve()
    judge.script = lambda body: Say(text=None)  # type: ignore[arg-type]  # content is null, as for a refusal
    subject, kept = subject_of("base", [GOOD])
    assert math.isnan(scores(subject, judge.options())["judge/helpfulness"].value)
    assert any("no verdict in the judge's reply" in line for line in kept.lines)


def test_nothing_listens(subject_of):
    subject, kept = subject_of("base", [GOOD])
    options = settings.JudgeOptions(endpoint="http://127.0.0.1:9/v1", model="x", retries=0)
    assert math.isnan(scores(subject, options)["judge/helpfulness"].value)
    assert any("nothing listens at the endpoint: 1" in line for line in kept.lines)


def test_the_list_of_models(serve):
    judge = Asked(settings.judges(serve().options())[0], serve().options())
    assert judge.endpoint.models() == ["scripted", "other"]


def test_the_answer_to_judge_is_the_only_text_that_differs():
    from mlflow_ft_judge.engine import prompts

    one, other = (prompts.mark(settings.DEFAULT, answered(text)) for text in ("a", "b"))
    assert texts({"messages": one.messages}) == {
        "conversation": "[user]\nWhich?",
        "expected answer": "good",
        "answer": "a",
    }
    assert texts({"messages": other.messages})["answer"] == "b"

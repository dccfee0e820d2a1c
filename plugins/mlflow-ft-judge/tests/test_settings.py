"""Settings of the judge: what is refused, with which remedy, and how rubrics are written."""

from __future__ import annotations

import pytest
from mlflow_ft_judge import settings

from mlflow_ft import ConfigError, plugins
from mlflow_ft.cli.asked import asked


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "2 problems"),
        ({"endpoint": "http://127.0.0.1:1/v1"}, "plugins.judge.model: no model"),
        ({"endpoint": "http://x/v1", "model": "m", "api_key_env": "NOT_SET_HERE"}, "NOT_SET_HERE is not set"),
    ],
)
def test_settings_without_a_judge_are_refused_with_a_remedy(given, message):
    with pytest.raises(ConfigError, match=message) as raised:
        settings.judges(settings.JudgeOptions(**given))
    assert raised.value.hint or all(problem.hint for problem in raised.value.problems)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"endpoint": "127.0.0.1:1/v1"}, "this is not an http URL"),
        ({"endpoint": "http://x:port/v1"}, "this is not an http URL"),
        ({"endpoint": "http://me:secret@x/v1"}, "a user, a password or a query"),
        ({"second_endpoint": "http://x/v1?key=secret"}, "a user, a password or a query"),
        ({"api_key_env": "sk-secret"}, "not the name of a variable"),
    ],
)
def test_a_key_in_the_settings_is_refused_without_showing_it(given, message):
    with pytest.raises(ValueError, match=message) as raised:
        settings.JudgeOptions(**given)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "rubric", "message"),
    [
        ("a b", "x", "other characters"),
        ("ties", "x", "the name of another score"),
        ("a", {}, "needs instructions"),
        ("a", " ", "needs instructions"),
        ("a", {"instructions": "x", "scale": [5, 1]}, "worst and its best mark"),
        ("a", {"instructions": "x", "scale": "1-x"}, "worst and its best mark"),
        ("a", {"instructions": "x", "scal": [1, 5]}, "unknown: scal"),
        ("a", {"instructions": "x", "reference": "no"}, "reference is true or false"),
        ("a", "{instructions: x, [", "not a mapping"),
    ],
)
def test_a_rubric_that_cannot_be_used_is_refused(name, rubric, message):
    with pytest.raises(ConfigError) as raised:
        settings.rubrics(settings.JudgeOptions(rubrics={name: rubric}))
    assert message in str(raised.value)
    assert f"plugins.judge.rubrics.{name}" in str(raised.value)


def test_rubrics_as_they_are_written_in_a_file_and_on_the_command_line(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(
        "method: lora\nplugins:\n  judge:\n    rubrics:\n      tone: How friendly.\n"
        "      terse: {instructions: 'How terse: {1} is long.', scale: 0-3, reference: false}\n"
    )
    loaded = plugins.load()
    wanted = [
        settings.Rubric(name="tone", instructions="How friendly."),
        settings.Rubric(name="terse", instructions="How terse: {1} is long.", scale=(0, 3), reference=False),
    ]
    config = asked(["lora", "--config", str(file)], loaded)
    assert settings.rubrics(config.options(settings.JudgeOptions)) == wanted
    config = asked(["lora", "--plugins.judge.rubrics", "{tone: How friendly.}"], loaded)
    assert settings.rubrics(config.options(settings.JudgeOptions)) == wanted[:1]


@pytest.mark.parametrize("given", [{"repeats": 0}, {"max_failures": 1.0}, {"timeout": 0}, {"price_in": -1.0}])
def test_a_value_out_of_range_is_refused(given):
    with pytest.raises(ConfigError, match=f"{next(iter(given))}  Input should be"):
        settings.checked(given)

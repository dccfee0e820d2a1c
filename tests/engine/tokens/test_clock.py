"""The clock of a run: what templates read from it, and what can be read in a template's source."""

from __future__ import annotations

import threading
from datetime import date, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.utils import chat_template_utils

from mlflow_ft.engine.tokens import clock
from mlflow_ft.engine.tokens.template_code import ANY_FORMAT, read
from mlflow_ft.errors import ModelError
from tests.engine.templates import tokenizers as tokens
from tests.engine.templates.chatml import CHATML_TOKENS

DAY = datetime.fromisoformat("2026-11-28T09:12:31")
HI = [{"role": "user", "content": "hi"}]


def written(jinja: str, **more: Any) -> str:
    tokenizer: Any = tokens.make(jinja, CHATML_TOKENS, eos="<|im_end|>")
    return str(tokenizer.apply_chat_template(HI, tokenize=False, **more))


def test_templates_are_told_the_moment_that_is_held_and_afterwards_the_present_one() -> None:
    year = "{{ strftime_now('%Y-%m-%d %H:%M:%S') }}"
    with clock.held(DAY) as told:
        assert written(year) == "2026-11-28 09:12:31"
        assert told.asked == {"%Y-%m-%d %H:%M:%S": "2026-11-28 09:12:31"}
        with clock.held(datetime.fromisoformat("1999-01-02")):
            assert written(year).startswith("1999-01-02")
        with clock.held(None):
            assert clock.moment() is None
            assert written(year)[:16] == clock.current().strftime("%Y-%m-%d %H:%M")
        assert clock.current() == DAY
    assert written(year)[:10] == clock.current().strftime("%Y-%m-%d")
    assert clock.moment() is None


def test_a_thread_has_a_clock_of_its_own() -> None:
    moments = []
    with clock.held(DAY):
        other = threading.Thread(target=lambda: moments.append(written("{{ strftime_now('%Y') }}")))
        other.start()
        other.join()
    assert moments == [clock.current().strftime("%Y")]


def test_what_is_asked_inside_is_told_outside_too() -> None:
    with clock.held(DAY) as told:
        with clock.listening() as asked:
            written("{{ strftime_now('%d %b %Y') }}")
        assert asked == told.asked == {"%d %b %Y": "28 Nov 2026"}
        with clock.listening() as nothing:
            written("hello")
        assert nothing == {}
    with clock.listening() as asked:
        written("{{ strftime_now('%Y') }}")
    assert asked == {}, "no clock is held"


def test_another_way_of_telling_the_time_is_not_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    def render(*_: Any, **__: Any) -> Any:
        return [[datetime.fromisoformat("1999-01-02").strftime(ANY_FORMAT)], []]

    monkeypatch.setattr(chat_template_utils, "render_jinja_template", render)
    with pytest.raises(ModelError, match="does not allow fixing the time"), clock.held(DAY):
        pass


def test_a_clock_that_others_have_set_goes_on_where_none_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    class Yesterday:
        @staticmethod
        def now() -> datetime:
            return datetime.fromisoformat("2001-02-03")

    year = "{{ strftime_now('%Y') }}"
    with monkeypatch.context() as patch:
        patch.setattr(chat_template_utils, "datetime", Yesterday)
        assert clock.current().year == 2001
        with clock.held(DAY):
            assert written(year) == "2026"
            with clock.held(None):
                assert written(year) == "2001"
        assert written(year) == "2001"
    assert written(year) == str(clock.current().year) != "2001"


@given(st.datetimes(datetime.fromisoformat("1900-01-01"), datetime.fromisoformat("9000-01-01")))
def test_a_moved_clock_says_something_else_in_every_format(moment: datetime) -> None:
    moved = clock.moved(moment)
    for wanted in ("%Y", "%y", "%m", "%B", "%d", "%A", "%j", "%H", "%I", "%p", "%M", "%S", "%f"):
        assert moved.strftime(wanted) != moment.strftime(wanted)


def test_the_clock_of_a_run_is_the_day_that_was_named_or_the_moment_it_starts() -> None:
    def config(day: date | None) -> Any:
        return SimpleNamespace(data=SimpleNamespace(date=day))

    now = DAY.astimezone()
    assert clock.of_run(config(None), now) == DAY
    assert clock.of_run(config(date(2026, 1, 31)), now) == datetime.fromisoformat("2026-01-31")


@pytest.mark.parametrize(
    ("jinja", "formats"),
    [
        ("{{ strftime_now('%d %b %Y') }}", {"%d %b %Y"}),
        ("{% if strftime_now is defined %}{{ strftime_now('%Y') }}{% endif %}{{ strftime_now('%H') }}", {"%Y", "%H"}),
        ("{% set wanted = '%Y' %}{{ strftime_now(wanted) }}", {"%Y"}),
        ("{% set wanted = '%Y' %}{% if x %}{% set wanted = x %}{% endif %}{{ strftime_now(wanted) }}", {ANY_FORMAT}),
        ("{% for wanted in ['%Y'] %}{{ strftime_now(wanted) }}{% endfor %}", {ANY_FORMAT}),
        ("{{ strftime_now('%Y' if x else '%d') }}", {ANY_FORMAT}),
        ("{{ strftime_now(format='%Y') }}", {ANY_FORMAT}),
        ("{% set now = strftime_now %}{{ now('%Y') }}", {ANY_FORMAT}),
        ("{% macro day() %}{% generation %}{{ strftime_now('%d') }}{% endgeneration %}{% endmacro %}", {"%d"}),
        ("{% if strftime_now is defined %}yes{% endif %}", set()),
        ("{# strftime_now('%Y') #}'strftime_now'", set()),
        ("{% if %}", set()),
    ],
)
def test_the_source_says_what_a_template_may_ask(jinja: str, formats: set[str]) -> None:
    assert read(jinja).formats == formats
    tokenizer = SimpleNamespace(chat_template={"default": "{{ x }}", "tool_use": jinja})
    assert clock.told_to(tokenizer, DAY) == {wanted: DAY.strftime(wanted) for wanted in formats}


def test_the_source_says_which_tags_it_looks_for() -> None:
    code = read(
        "{% set think = '</thought>' %}{% if m.startswith('<result>') and m.endswith(('/off', '/on')) %}"
        "{{ m.split(think)[-1] }}{{ m.split('[/THINK]') }}{{ m.partition('<|end_of_thought|>') }}"
        "{{ m.split('<think>') }}"
        "{{ m.split('\n') }}{{ m.split('</') }}{{ m.rsplit('<channel|>') }}{{ m.split('<|channel>') }}{% endif %}"
    )
    assert code.starts == ("<result>",)
    assert code.ends == ("/off", "/on")
    assert code.closings == ("<|end_of_thought|>", "</thought>", "<channel|>", "[/THINK]")
    assert not code.draws
    assert read("{{ ['a', 'b'] | random }}").draws
    assert read("{{ lipsum(1) }}").draws

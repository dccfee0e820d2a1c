"""The checks at work, and their report."""

from __future__ import annotations

import json
import tracemalloc
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_ft import Check, Checked, DataError, Example, Finding, PluginError
from mlflow_ft.builtin.checks import register_checks
from mlflow_ft.config.schema import ChecksSection
from mlflow_ft.data.quality import Quality
from mlflow_ft.values import CheckResult, Report
from mlflow_ft.values.report import percent

TALK = (
    Example(messages=({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"})),
    Example(text="A text."),
    Example(messages=({"role": "user", "content": "Hi"},)),
)


def rows(*examples: Example) -> list[Checked]:
    return [
        Checked(file="rows.jsonl", line=number + 1, index=number, example=example, tokens=number, max_length=10)
        for number, example in enumerate(examples)
    ]


def texts(*values: str) -> list[Checked]:
    return rows(*(Example(text=value) for value in values))


def check(name: str = "check", **given: Any) -> Check:
    return Check(**{"name": name, "summary": f"what {name} means", "remedy": "mend it"} | given)


def starts_with(letter: str) -> Callable[[Checked], str | None]:
    return lambda row: f"it starts with {letter}" if row.text.startswith(letter) else None


def collects(finding: Finding) -> Callable[[ChecksSection], Any]:
    class Collector:
        def see(self, row: Checked) -> None: ...
        def found(self) -> Finding:
            return finding

    return lambda settings: Collector()


def report(checks: Sequence[Check], seen: Sequence[Checked], held: Sequence[Checked] = (), **given: Any) -> Report:
    quality = Quality(checks, ChecksSection(**given))
    for row in seen:
        quality.see(row)
    quality.compare(held, lambda: seen)
    return quality.report(len(seen))


def test_the_findings_of_an_inspection() -> None:
    quality = report(
        [check(inspect=starts_with("b"), fix="leaves them out")], texts("a", "b1", "c", "b2", "b3"), max_examples=2
    )
    [result] = quality.checks
    assert quality.rows == 5
    assert (result.count, result.share) == (3, 0.6)
    assert list(result.rows) == [1, 3, 4]
    assert result.examples == (
        {"file": "rows.jsonl", "line": 2, "message": "it starts with b"},
        {"file": "rows.jsonl", "line": 4, "message": "it starts with b"},
    )
    assert quality.removable() == {1: ("check",), 3: ("check",), 4: ("check",)}


def test_the_report_as_json() -> None:
    finding = Finding(
        rows=(0,),
        examples=({"file": "rows.jsonl", "line": 1, "message": "half \ud83d"},) * 9,
        details={"mean": float("nan"), "counts": np.arange(2), "share": np.float32(0.5), 3: (1, {"x": float("inf")})},
        count=4,
        severity="error",
        remedy="do it",
    )
    told = report([check(collect=collects(finding), fix="leaves it out")], texts("a", "b"), max_examples=1).as_dict()
    assert told == {
        "rows": 2,
        "checks": [
            {
                "name": "check",
                "severity": "error",
                "count": 4,
                "share": 2.0,
                "examples": [{"file": "rows.jsonl", "line": 1, "message": "half ?"}],
                "summary": "what check means",
                "remedy": "do it",
                "fix": "leaves it out",
                "details": {"mean": None, "counts": [0, 1], "share": 0.5, "3": [1, {"x": None}]},
            }
        ],
    }
    json.dumps(told, allow_nan=False).encode()


def test_a_text_without_an_end_is_cut() -> None:
    [result] = report([check(inspect=lambda row: "x" * 100_000)], texts("a")).checks
    assert len(result.examples[0]["message"]) == 1000


def test_the_worst_comes_first_and_what_was_found_before_what_was_not() -> None:
    checks = [
        check("info-none", severity="info", inspect=starts_with("z")),
        check("warn-none", severity="warn", inspect=starts_with("z")),
        check("info-some", severity="info", inspect=starts_with("a")),
        check("error-none", severity="error", inspect=starts_with("z")),
        check("warn-some", severity="warn", inspect=starts_with("a")),
        check("error-some", severity="error", inspect=starts_with("a")),
        check("risen", severity="info", collect=collects(Finding(rows=(0,), severity="error"))),
    ]
    quality = report(checks, texts("a"))
    names = ["error-some", "risen", "error-none", "warn-some", "warn-none", "info-some", "info-none"]
    assert [result.name for result in quality.checks] == names
    assert [result.name for result in quality.worst("error")] == ["error-some", "risen"]
    assert [result.name for result in quality.worst("warn")] == ["error-some", "risen", "warn-some"]
    assert [result.name for result in quality.worst("info")] == ["error-some", "risen", "warn-some", "info-some"]


def test_a_check_sees_the_rows_of_its_kinds_and_is_listed_where_there_are_some() -> None:
    seen: list[tuple[str, str]] = []

    def notes(name: str) -> Callable[[Checked], None]:
        return lambda row: seen.append((name, row.example.kind))

    checks = [
        check("all", inspect=notes("all")),
        check("text", inspect=notes("text"), kinds=("text",)),
        check("pairs", inspect=notes("pairs"), kinds=("preference",)),
        check("never", collect=collects(Finding()), kinds=("unpaired",)),
        check("held", compare=lambda held, train, settings: Finding()),
    ]
    quality = report(checks, rows(*TALK))
    assert seen == [("all", "conversation"), ("all", "text"), ("text", "text"), ("all", "prompt")]
    assert [result.name for result in quality.checks] == ["all", "text"]
    assert report(checks, []).checks == ()


def test_what_a_comparison_is_given() -> None:
    given: list[tuple[list[int], list[int]]] = []
    made = 0

    def compare(held: Sequence[Checked], train: Iterable[Checked], settings: ChecksSection) -> Finding:
        given.append(([row.index for row in held], [row.index for row in train]))
        return Finding(rows=(1,), removable=(0, 1))

    def train() -> Iterator[Checked]:
        nonlocal made
        made += 1
        yield from rows(*TALK)

    checks = [check("one", compare=compare, fix="leaves them out"), check("two", compare=compare, kinds=("text",))]
    quality = Quality(checks, ChecksSection())
    quality.compare(rows(*TALK), train)
    assert given == [([0, 1, 2], [0, 1, 2]), ([1], [1])]
    assert made == 2
    assert quality.report(3).removable() == {0: ("one",), 1: ("one",)}


def test_only_what_has_a_fix_is_removed_and_every_reason_is_reported() -> None:
    checks = [
        check("one", inspect=starts_with("a"), fix="leaves them out"),
        check("two", collect=collects(Finding(rows=(2, 0), removable=(0,))), fix="leaves them out"),
        check("three", inspect=starts_with("a")),
    ]
    assert report(checks, texts("a", "b", "a")).removable() == {0: ("one", "two"), 2: ("one",)}


# --- checks that fail ---


def fails(*_: object) -> Any:
    raise KeyError("role")


def test_an_inspection_that_raises_is_reported_with_its_place() -> None:
    broken = check("broken", inspect=lambda row: fails() if row.text == "b" else None)
    with pytest.raises(PluginError, match=r"the data check broken raised KeyError at rows\.jsonl:2: 'role'") as error:
        report([broken], texts("a", "b"))
    assert isinstance(error.value.__cause__, KeyError)
    assert "checks.names" in error.value.hint


class Broken:
    def __init__(self, *, when: str) -> None:
        self.when = when

    def see(self, row: Checked) -> None:
        if self.when == "see":
            fails()

    def found(self) -> Finding:
        return Finding() if self.when == "see" else fails() if self.when == "found" else None


@pytest.mark.parametrize(
    ("collect", "told"),
    [
        (fails, r"raised KeyError at rows\.jsonl:1"),
        (lambda settings: Broken(when="see"), r"raised KeyError at rows\.jsonl:1"),
        (lambda settings: Broken(when="found"), "raised KeyError: 'role'"),
        (lambda settings: Broken(when=""), "raised TypeError: it returned None, which is not a Finding"),
    ],
)
def test_a_collector_that_raises_is_reported(collect: Callable[[ChecksSection], Any], told: str) -> None:
    with pytest.raises(PluginError, match=f"the data check broken {told}"):
        report([check("broken", collect=collect)], texts("a"))


def test_a_comparison_that_raises_is_reported_with_the_row_it_had() -> None:
    def compare(held: Sequence[Checked], train: Iterable[Checked], settings: ChecksSection) -> Finding:
        return fails() if [row for row in train if row.line == 2] else Finding()

    seen = texts("a", "b")
    with pytest.raises(PluginError, match=r"the data check broken raised KeyError at rows\.jsonl:2"):
        report([check("broken", compare=compare)], seen, seen)


@pytest.mark.parametrize("error", [DataError("the file is gone"), OSError("the disk is gone")])
def test_what_the_source_of_the_rows_raises_is_no_fault_of_the_check(error: Exception) -> None:
    def train() -> Iterator[Checked]:
        yield from texts("a")
        raise error

    quality = Quality([check(compare=lambda held, rows, settings: Finding(rows=tuple(rows)))], ChecksSection())
    with pytest.raises(type(error), match="is gone") as raised:
        quality.compare(texts("a"), train)
    assert raised.value is error


def test_a_check_may_refuse_in_its_own_words() -> None:
    def refuses(row: Checked) -> str | None:
        raise DataError("this will not do")

    with pytest.raises(DataError, match=r"^this will not do$"):
        report([check(inspect=refuses)], texts("a"))


# --- the report read back, and what is logged and shown of it ---

NAMES = st.text("abc-", min_size=1, max_size=8)
FOUND = st.builds(
    CheckResult,
    name=NAMES,
    severity=st.sampled_from(["error", "warn", "info"]),
    summary=st.text(max_size=10),
    count=st.integers(0, 99),
    share=st.floats(0, 1),
    examples=st.lists(st.fixed_dictionaries({"file": NAMES, "line": st.integers(1, 9)}), max_size=3).map(tuple),
    details=st.dictionaries(NAMES, st.floats(0, 1), max_size=3),
    remedy=st.text(max_size=10),
    fix=st.text(max_size=10),
    removable=st.lists(st.integers(0, 9), unique=True).map(lambda indices: array("q", indices)),
)


@given(st.lists(FOUND, max_size=5, unique_by=lambda result: result.name))
def test_a_report_is_read_back_as_it_was(checks: list[CheckResult]) -> None:
    before = Report(rows=100, checks=tuple(checks))
    told = json.loads(json.dumps(before.as_dict()))
    after = Report.from_dict(told, json.loads(json.dumps(before.removable())))
    assert after.as_dict() == told
    assert after.removable() == before.removable()
    assert after.metrics() == before.metrics()
    assert after.numbers() == before.numbers()
    assert after.worst("warn") == tuple(result for result in after.checks if result.name in named(before.worst("warn")))


def named(results: Iterable[CheckResult]) -> set[str]:
    return {result.name for result in results}


def test_the_metrics() -> None:
    checks = [
        check("one", inspect=starts_with("a")),
        check("two", collect=collects(Finding(details={"metrics": {"mean": 1.5, "bad": float("nan")}, "mean": 9}))),
    ]
    found = report(checks, texts("a", "b"))
    assert found.metrics() == {"errors": 0.0, "warnings": 1.0}
    assert found.numbers() == {"check/one": 1.0, "mean": 1.5}


def test_the_numbers_of_the_built_in_checks_are_logged() -> None:
    quality = report(register_checks(), texts("One text here.", "Another text there."))
    numbers = {"tokens_mean", "tokens_p95", "near_duplicate_share"}
    assert numbers <= set(quality.numbers())
    json.dumps(quality.numbers(), allow_nan=False)


def test_the_table() -> None:
    checks = [check("one", inspect=starts_with("a")), check("two", severity="error", inspect=starts_with("z"))]
    columns, lines = report(checks, texts(*["a"] * 1234, *["b"] * 1234)).table()
    assert columns == ("check", "severity", "rows", "share", "what it means")
    assert lines == [
        ("two", "error", "0", "", "what two means"),
        ("one", "warn", "1,234", "50.0 %", "what one means"),
    ]


@pytest.mark.parametrize(
    ("share", "told"), [(0, "0.0 %"), (0.5, "50.0 %"), (0.0001, "< 0.1 %"), (0.001, "0.1 %"), (1, "100.0 %")]
)
def test_a_share_as_a_percentage(share: float, told: str) -> None:
    assert percent(share) == told


def test_what_is_found_of_many_rows_stays_small() -> None:
    quality = Quality([check(inspect=lambda row: f"{row.text} " * 100)], ChecksSection())
    row = texts("a")[0]
    for _ in range(100):
        quality.see(row)
    tracemalloc.start()
    for _ in range(20_000):
        quality.see(row)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert quality.report(20_100).checks[0].count == 20_100
    assert kept / 20_000 < 20  # bytes a row

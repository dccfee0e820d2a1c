"""Checks over all rows: duplicates, lengths, preferences."""

from __future__ import annotations

import math
import random
import tracemalloc
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_ft import Checked, Collector, Example, Finding
from mlflow_ft.builtin.checks import clusters, near_duplicates
from mlflow_ft.builtin.checks.duplicates import ConflictingAnswers, ExactDuplicates
from mlflow_ft.builtin.checks.lengths import Lengths, OverMaxLength
from mlflow_ft.builtin.checks.near_duplicates import NearDuplicates
from mlflow_ft.builtin.checks.preferences import LabelBalance, LengthBias, sign_test
from mlflow_ft.builtin.checks.words import ngrams, words
from mlflow_ft.config.schema import ChecksSection

VOCABULARY = [f"{first}{middle}{last}" for first in "bdfgk" for middle in "aeiou" for last in ("rm", "st", "lo", "nd")]
LONG = (
    "The lighthouse keeper climbed the narrow stairs every evening to light the lamp, and every morning he came down "
    "again to sleep while the ships passed safely by the rocks below."
)


def chat(question: str, answer: Any, **others: Any) -> Example:
    messages = ({"role": "user", "content": question}, {"role": "assistant", "content": answer})
    return Example(messages=messages, **others)


def pair(chosen: str, rejected: str) -> Example:
    said = ({"role": "assistant", "content": words} for words in (chosen, rejected))
    better, worse = ((text,) for text in said)
    return Example(messages=({"role": "user", "content": "Hi"},), chosen=better, rejected=worse)


def found(make: Callable[[ChecksSection], Collector], examples: Iterable[Example], **given: Any) -> Finding:
    """What a collector says about rows on lines 1, 2, 3 ... whose index is 100 more than their line."""
    collector = make(ChecksSection(**given))
    for number, example in enumerate(examples, 1):
        row = Checked(file="rows.jsonl", line=number, index=100 + number, example=example, tokens=5)
        collector.see(row)
    return collector.found()


@pytest.mark.parametrize("make", [ExactDuplicates, NearDuplicates, ConflictingAnswers, Lengths, OverMaxLength])
def test_no_rows(make: Callable[[ChecksSection], Collector]) -> None:
    assert found(make, []).rows == ()


@pytest.mark.parametrize("make", [LengthBias, LabelBalance])
def test_no_pairs(make: Callable[[ChecksSection], Collector]) -> None:
    assert found(make, []).count in (None, 0)


# --- exact duplicates ---


def test_the_same_row_again() -> None:
    rows = [
        chat("a", "b"),
        chat("c", "d"),
        chat(" a\n", "b  "),
        chat("a", "b"),
        Example(text="x y"),
        Example(text="x  y"),
    ]
    finding = found(ExactDuplicates, rows)
    assert finding.rows == (103, 104, 106)
    assert [example["line"] for example in finding.examples] == [3, 4, 6]
    assert [example["message"] for example in finding.examples] == [
        *["the same as rows.jsonl:1"] * 2,
        "the same as rows.jsonl:5",
    ]
    assert finding.details == {"groups": 2, "sizes": [3, 2]}


SYSTEM = {"role": "system", "content": "Be brief."}
CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]}
OTHER_CALL = {**CALL, "tool_calls": [{"function": {"name": "f", "arguments": {"x": 2}}}]}


@pytest.mark.parametrize(
    ("first", "other"),
    [
        (chat("a", "b"), chat("a", "B")),
        (chat("a", "b"), chat("a", "b.")),
        (chat("a", "b", label=True), chat("a", "b", label=False)),
        (chat("a", "b", label=True), chat("a", "b")),
        (chat("a", "b"), chat("a", "b", tools=({"name": "f"},))),
        (chat("a", "b"), chat("a", "b", learned=(False, False))),
        (chat("a", "b"), Example(messages=(SYSTEM, *chat("a", "b").messages))),
        (Example(messages=(CALL,)), Example(messages=(OTHER_CALL,))),
        (pair("a", "b"), pair("b", "a")),
        (
            Example(messages=(SYSTEM,), columns={"answer": 1}),
            Example(messages=(SYSTEM,), columns={"answer": 2}),
        ),
        (Example(text="a"), Example(messages=({"role": "user", "content": "a"},))),
    ],
)
def test_what_is_learned_makes_the_difference(first: Example, other: Example) -> None:
    assert found(ExactDuplicates, [first, other]).rows == ()
    assert found(ExactDuplicates, [first, first, other, other]).rows == (102, 104)


def test_only_so_many_are_shown() -> None:
    finding = found(ExactDuplicates, [chat("a", "b")] * 10, max_examples=2)
    assert len(finding.rows) == 9
    assert len(finding.examples) == 2
    assert found(ExactDuplicates, [chat("a", "b")] * 10, max_examples=0).examples == ()


# --- near duplicates ---


def texts(*values: str) -> list[Example]:
    return [Example(text=value) for value in values]


@pytest.mark.parametrize(
    "copy",
    [
        LONG.upper(),
        LONG.replace(",", " -").replace(".", "!!!"),
        f"“{LONG}”",
        LONG.replace("narrow", "narrow wooden"),
        f"{LONG} Indeed.",
        LONG.replace(" while", ", while"),
    ],
)
def test_a_copy_with_a_small_change(copy: str) -> None:
    finding = found(NearDuplicates, texts("Something else entirely stands here.", LONG, "And here.", copy))
    assert finding.rows == (104,)
    [example] = finding.examples
    assert (example["file"], example["line"]) == ("rows.jsonl", 4)
    assert "is like rows.jsonl:2: “The lighthouse keeper" in example["message"]
    assert finding.details["clusters"] == 1
    assert finding.details["sizes"] == [2]
    assert finding.details["metrics"] == {"near_duplicate_share": 0.25}


@pytest.mark.parametrize(
    ("first", "other"),
    [
        ("Please turn the lamp on in the hall", "Please turn the fan off in the kitchen"),
        (LONG, LONG),  # exact
        (LONG, LONG.replace(" ", "\n ")),  # exact, white space apart
        (LONG, " ".join(reversed(LONG.split()))),
        ("Thank you", "Thank you!"),  # too short to tell
        ("", ""),
    ],
)
def test_no_near_duplicates(first: str, other: str) -> None:
    assert found(NearDuplicates, texts(first, other)).rows == ()


def test_writing_without_spaces() -> None:
    text = "灯塔看守人每天晚上都会爬上狭窄的楼梯点亮灯火，每天早上再下来睡觉，而船只则安全地从下面的岩石旁驶过。"
    other = "今天的天气非常好，我们一起去公园散步，看见了许多美丽的花朵和飞翔的小鸟，大家都感到十分开心和满足。"
    assert found(NearDuplicates, texts(text, other, text.replace("，", "；").replace("狭窄", "窄小"))).rows == (103,)


def test_a_good_and_a_bad_answer_are_not_duplicates() -> None:
    rows = [chat("Tell me", LONG, label=True), chat("Tell me", f"{LONG} So.", label=False)]
    assert found(NearDuplicates, rows).rows == ()
    assert found(NearDuplicates, [replace(row, label=False) for row in rows]).rows == (102,)


def test_the_threshold_is_kept() -> None:
    first, other = "a b c d e f g h i j k l", "a b c d e f g h i j k x"  # 9 of 11 in common
    assert found(NearDuplicates, texts(first, other), near_duplicate=9 / 11).rows == (102,)
    assert found(NearDuplicates, texts(first, other), near_duplicate=0.82).rows == ()
    bad = [Example(messages=({"role": "assistant", "content": text},), label=False) for text in (first, other)]
    assert found(NearDuplicates, bad, near_duplicate=9 / 11).rows == (102,)
    assert found(NearDuplicates, bad, near_duplicate=0.82).rows == ()


def test_every_row_of_a_cluster_but_its_first() -> None:
    copies = [LONG, f"{LONG} One.", "Something else stands here.", f"{LONG} Two.", f"Well: {LONG}"]
    finding = found(NearDuplicates, texts(*copies))
    assert finding.rows == (102, 104, 105)
    assert finding.details["sizes"] == [4]


def test_a_bucket_whose_first_row_is_another_is_looked_through() -> None:
    """All rows meet everywhere, and those of one number are alike; the cost stays linear."""
    number, asked = np.array([0, 1, 1, 1, 4, 5, 4, 5]), 0

    def alike(first: Any, other: Any) -> Any:
        nonlocal asked
        asked += len(first)
        return number[first] == number[other]

    same = np.zeros((len(number), 128), np.uint32)
    roots = clusters.cluster(same, np.arange(len(number)), alike)
    assert roots.tolist() == [0, 1, 1, 1, 4, 5, 4, 5]
    assert asked <= clusters._LEADERS * 25 * len(number)


def test_rows_that_meet_nowhere_are_not_compared() -> None:
    apart = np.arange(7 * 128, dtype=np.uint32).reshape(7, 128)
    roots = clusters.cluster(apart, np.arange(7), lambda first, other: np.ones(len(first), bool))
    assert roots.tolist() == [*range(7)]


@given(st.lists(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=6), max_size=6))
def test_a_cluster_is_known_by_its_first_row(batches: list[list[tuple[int, int]]]) -> None:
    sets, expected = clusters._Sets(20), list(range(20))
    for batch in batches:
        pairs = np.array(batch, np.int64).reshape(-1, 2)
        still = sets.join_alike(pairs[:, 0], pairs[:, 1], lambda first, other: np.ones(len(first), bool))
        assert not still.any()
        for first, other in batch:
            joined = {expected[first], expected[other]}
            expected = [min(joined) if root in joined else root for root in expected]
    assert sets.roots.tolist() == expected


def similar(rows: Sequence[str], least: float) -> set[frozenset[int]]:
    """Clusters of two and more rows, by comparing all pairs."""
    shingles = [set(ngrams(words(row), 3).tolist()) for row in rows]
    root = list(range(len(rows)))
    for first in range(len(rows)):
        for other in range(first):
            if len(shingles[first] & shingles[other]) >= least * len(shingles[first] | shingles[other]):
                root = [root[other] if value == root[first] else value for value in root]
    clusters = [frozenset(number for number, value in enumerate(root) if value == label) for label in set(root)]
    return {cluster for cluster in clusters if len(cluster) > 1}


def test_the_clusters_are_those_of_all_pairs() -> None:
    rng = random.Random(3)
    rows: list[str] = []
    for number in range(300):
        fresh = rng.choices(VOCABULARY, k=rng.randint(20, 160))
        if number % 3 and rows:
            fresh = rng.choice(rows).split()
            for _ in range(rng.randint(1, 6)):
                fresh[rng.randrange(len(fresh))] = rng.choice(VOCABULARY)
        rows.append(" ".join(fresh))
    rows = list(dict.fromkeys(rows))
    expected = {number for cluster in similar(rows, 0.8) for number in sorted(cluster)[1:]}
    assert len(expected) > 50
    missed = expected ^ {index - 101 for index in found(NearDuplicates, texts(*rows)).rows}
    # rows of more than 128 shingles are compared by an estimate: those close to the threshold may go either way
    assert {number for number in missed if len(rows[number].split()) <= 130} == set()
    assert len(missed) <= 0.1 * len(expected)


def test_parts_that_are_joined_find_what_one_collector_finds() -> None:
    """The two pairs are exactly at the threshold, where only shingles decide, one of them across the parts."""
    first, other = "a b c d e f g h i j k", "a b c d e f g h i j l"
    said = ["nothing like these words at all", first, "p q r s t u v w x y z", other, "p q r s t u v w x y o"]
    for at in range(len(said) + 1):
        for threshold, expected in ((0.8, (103, 104)), (0.81, ())):
            parts = [NearDuplicates(ChecksSection(near_duplicate=threshold)) for _ in range(2)]
            for number, example in enumerate(texts(*said)):
                row = Checked(file="rows.jsonl", line=number + 1, index=100 + number, example=example, tokens=5)
                parts[number >= at].see(row)
            parts[0].join(parts[1])
            finding = parts[0].found()
            assert finding.rows == expected
            assert [example["line"] for example in finding.examples] == [index - 99 for index in expected]
            assert finding.details["metrics"] == {"near_duplicate_share": len(expected) / len(said)}


@given(st.lists(st.sampled_from(VOCABULARY), min_size=60, max_size=120), st.data())
def test_a_long_text_with_a_changed_word_is_found(text: list[str], data: st.DataObject) -> None:
    changed = list(text)
    place = data.draw(st.integers(0, len(text) - 1))
    edit = data.draw(st.sampled_from(["change", "drop", "add"]))
    changed[place : place + (edit != "add")] = [] if edit == "drop" else ["something"]
    first, other = set(ngrams(text, 3).tolist()), set(ngrams(changed, 3).tolist())
    alike = len(first & other) / len(first | other)
    rows = found(NearDuplicates, texts(" ".join(text), " ".join(changed))).rows
    assert rows == ((102,) if alike >= 0.8 else ())


def test_the_estimate_is_close_to_the_truth() -> None:
    """With 128 numbers a signature tells a share with a standard deviation of at most 4.4 %."""
    rng, errors = random.Random(1), []
    for _ in range(200):
        text = rng.choices(VOCABULARY, k=400)
        other = list(text)
        for _ in range(rng.randint(1, 40)):
            other[rng.randrange(400)] = rng.choice(VOCABULARY)
        first, two = (np.unique(ngrams(each, 3) >> np.uint64(32)).astype(np.uint32) for each in (text, other))
        truth = len(np.intersect1d(first, two)) / len(np.union1d(first, two))
        errors.append(float(np.mean(near_duplicates._signature(first) == near_duplicates._signature(two))) - truth)
    assert abs(float(np.mean(errors))) < 0.01
    assert float(np.std(errors)) < 0.05


def test_a_signature_of_a_long_text_is_computed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    shingles = np.unique(ngrams(VOCABULARY, 3) >> np.uint64(32)).astype(np.uint32)
    whole = near_duplicates._signature(shingles)
    monkeypatch.setattr(near_duplicates, "_BLOCK", 7)
    assert (near_duplicates._signature(shingles) == whole).all()


def many(count: int) -> Iterable[Example]:
    """Rows of one form, in which every bucket is full, some of them near duplicates."""
    rng = random.Random(count)
    form = " ".join(VOCABULARY[:20])
    for number in range(count):
        said = " ".join(rng.choices(VOCABULARY, k=40))
        yield chat(f"{form} {number % (count // 2)}", said)


def peak(count: int) -> int:
    collectors = [make(ChecksSection()) for make in (NearDuplicates, ExactDuplicates, ConflictingAnswers, Lengths)]
    tracemalloc.start()
    for number, example in enumerate(many(count)):
        row = Checked(file=f"part{number % 3}", line=number, index=number, example=example, tokens=60)
        for collector in collectors:
            collector.see(row)
    for collector in collectors:
        collector.found()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most


@pytest.mark.slow
def test_memory_grows_with_the_rows_and_no_faster() -> None:
    peak(200)  # what is kept once: caches, permutations
    small, large = peak(4_000), peak(8_000)
    assert large / small < 2.3
    assert large / 8_000 < 3_000  # bytes a row, of which 1,000 are the signature and the shingles


# --- conflicting answers ---


def test_the_same_prompt_with_another_answer() -> None:
    rows = [chat("How high is it?", "10 m"), chat("how HIGH is it", "20 m"), chat("How high is it?", "10 M.")]
    finding = found(ConflictingAnswers, [*rows, chat("How low is it?", "5 m"), rows[0]])
    assert finding.rows == (102,)
    [example] = finding.examples
    assert example["line"] == 2
    assert example["message"] == "the same prompt is answered “20 m”, and at rows.jsonl:1 “10 m”"
    assert finding.details == {"prompts": 1}


@pytest.mark.parametrize(
    ("first", "other"),
    [
        (chat("What is 2 + 3?", "5"), chat("What is 2 * 3?", "6")),
        (chat("Do it", "a"), Example(messages=(SYSTEM, *chat("Do it", "b").messages))),
        (chat("Do it", "a"), chat("Do it", "b", tools=({"name": "f"},))),
        (chat(" ", "a"), chat(" ", "b")),
        (chat("Do it", None), chat("Do it", "b")),
        (
            Example(messages=({"role": "user", "content": "Hi"}, CALL, *chat("So?", "a").messages)),
            Example(messages=({"role": "user", "content": "Hi"}, OTHER_CALL, *chat("So?", "b").messages)),
        ),
    ],
)
def test_other_prompts_do_not_conflict(first: Example, other: Example) -> None:
    assert found(ConflictingAnswers, [first, other]).rows == ()


def test_prompts_conflict_by_the_answers_in_their_columns() -> None:
    def prompt(**columns: Any) -> Example:
        return Example(messages=({"role": "user", "content": "How many?"},), columns=columns)

    assert found(ConflictingAnswers, [prompt(answer=1, id=1), prompt(answer=1, id=2)]).rows == ()
    assert found(ConflictingAnswers, [prompt(answer=1), prompt(answer=2)]).rows == (102,)
    assert found(ConflictingAnswers, [prompt(id=1), prompt(id=2)]).rows == ()


# --- lengths ---


def of_tokens(make: Callable[[ChecksSection], Collector], *tokens: int, max_length: int = 100) -> Finding:
    collector = make(ChecksSection())
    for number, count in enumerate(tokens):
        row = Checked(file="f", line=number + 1, index=number, example=Example(text="x"), tokens=count)
        collector.see(replace(row, max_length=max_length))
    return collector.found()


def test_the_spread_of_lengths() -> None:
    finding = of_tokens(Lengths, *range(1, 101))
    told = finding.details
    assert finding.rows == ()
    assert (told["min"], told["mean"], told["median"], told["max"]) == (1, 50.5, 50.5, 100)
    assert told["p95"] == pytest.approx(95.05)
    assert told["standard_deviation"] == pytest.approx(28.866, abs=1e-3)
    assert told["coefficient_of_variation"] == pytest.approx(28.866 / 50.5, abs=1e-3)
    assert told["metrics"]["tokens_mean"] == 50.5
    assert told["metrics"]["tokens_total"] == 5050
    histogram = told["histogram"]
    assert sum(histogram["counts"]) == 100
    assert len(histogram["edges"]) == len(histogram["counts"]) + 1
    assert histogram["mark"] == 100


def test_a_row_far_longer_than_the_rest() -> None:
    finding = of_tokens(Lengths, *[10, 12, 14] * 20, 57, 3000)
    assert finding.rows == (60, 61)
    assert [example["line"] for example in finding.examples] == [62, 61]
    assert finding.examples[0]["message"] == "3,000 tokens, 250 times the median"
    assert sum(finding.details["histogram"]["counts"]) == 62


def test_wide_but_even_lengths_are_no_outliers() -> None:
    assert of_tokens(Lengths, *[10] * 20, 39).rows == ()  # beyond the fence, but not four times the median
    assert of_tokens(Lengths, *range(1, 1000, 7)).rows == ()
    assert of_tokens(Lengths, 0, 0, 0).rows == ()


def test_rows_that_are_cut() -> None:
    finding = of_tokens(OverMaxLength, *[50] * 199, 100, 101, 250, 150)
    assert finding.rows == (200, 201, 202)
    assert finding.examples[1] == {"file": "f", "line": 202, "message": "250 tokens: the last 150 are cut"}
    assert finding.details == {
        "max_length": 100,
        "max_length_for_all": 250,
        "max_length_for_99_percent": 101,
        "tokens_cut": 201,
        "metrics": {"tokens_cut": 201},
    }
    assert finding.remedy == "data.max_length=250 keeps all rows whole, 101 keeps 99 % of them; or shorten the rows"


def test_rows_that_are_not_cut() -> None:
    finding = of_tokens(OverMaxLength, 100, 99)
    assert finding.rows == ()
    assert finding.remedy == ""
    assert of_tokens(OverMaxLength, 100, max_length=0).rows == ()


def test_one_number_keeps_all_and_nearly_all() -> None:
    assert of_tokens(OverMaxLength, 150).remedy == "data.max_length=150 keeps all rows whole; or shorten the rows"


# --- preferences ---


def lengths(longer: int, shorter: int, same: int = 0) -> Finding:
    pairs = [pair("x" * 30, "x" * 20)] * longer + [pair("x" * 10, "x" * 20)] * shorter + [pair("a", "b")] * same
    return found(LengthBias, pairs)


def test_the_longer_answer_is_nearly_always_the_better() -> None:
    finding = lengths(40, 10, 50)
    assert finding.count == 40
    assert finding.details["found"] is True
    assert finding.details["preferred"] == "longer"
    assert finding.details["chosen_longer_share"] == 0.8
    assert finding.details["p_value"] == pytest.approx(2.386e-5, rel=1e-3)
    assert finding.details["chosen_mean"] == pytest.approx((40 * 30 + 10 * 10 + 50) / 100)
    assert finding.details["rejected_median"] == pytest.approx(10.5)
    assert {name: sum(counts) for name, counts in finding.details["histogram"]["counts"].items()} == {
        "chosen": 100,
        "rejected": 100,
    }


def test_the_shorter_answer_may_be_it_too() -> None:
    assert lengths(10, 40).details["preferred"] == "shorter"
    assert lengths(10, 40).count == 40


@pytest.mark.parametrize(("longer", "shorter"), [(29, 0), (32, 18), (66, 36), (0, 0), (20, 10)])
def test_too_few_or_too_even_to_tell(longer: int, shorter: int) -> None:
    finding = lengths(longer, shorter, 5)
    assert finding.count == 0
    assert finding.details["found"] is False


def test_the_sign_test_is_the_binomial_one() -> None:
    from scipy.stats import binomtest

    for more, less in ((0, 0), (1, 0), (5, 5), (40, 10), (3, 17), (400, 500), (600, 550), (900, 1100)):
        exact = binomtest(more, more + less).pvalue if more + less else 1.0
        assert sign_test(more, less) == pytest.approx(exact, rel=0.02)
    assert math.isclose(sign_test(510, 490), sign_test(490, 510))


def test_labels_in_and_out_of_balance() -> None:
    def labels(good: int, bad: int) -> Finding:
        return found(LabelBalance, [chat("a", "b", label=True)] * good + [chat("a", "b", label=False)] * bad)

    assert labels(10, 90).count == 0
    assert labels(9, 91).count == 91
    assert labels(50, 0).count == 50
    told = dict(labels(9, 91).details)
    assert told == {"found": True, "good": 9, "bad": 91, "good_share": 0.09, "metrics": {"good_share": 0.09}}

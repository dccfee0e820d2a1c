"""Held-out rows among the training rows."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflow_ft import Checked, Example, Finding
from mlflow_ft.builtin.checks import contamination as check_contamination
from mlflow_ft.builtin.checks.contamination import contamination, overlap
from mlflow_ft.builtin.checks.words import ngrams, words
from mlflow_ft.config.schema import ChecksSection

LONG = (
    "The lighthouse keeper climbed the narrow stairs every evening to light the lamp, and every morning he came down "
    "again to sleep while the ships passed safely by the rocks below."
)
QUESTION = "Which of the two keepers lit the lamp every evening?"
Compare = Callable[[Sequence[Checked], Iterable[Checked], ChecksSection], Finding]


def chat(question: str, answer: str = "An answer.", **others: Any) -> Example:
    messages = ({"role": "user", "content": question}, {"role": "assistant", "content": answer})
    return Example(messages=messages, **others)


def rows(file: str, *said: Example | str) -> list[Checked]:
    examples = [Example(text=text) if isinstance(text, str) else text for text in said]
    return [
        Checked(file=file, line=number + 1, index=10 + number, example=example, tokens=5)
        for number, example in enumerate(examples)
    ]


def found(compare: Compare, train: Sequence[Example | str], held: Sequence[Example | str], **given: Any) -> Finding:
    return compare(rows("held.jsonl", *held), iter(rows("train.jsonl", *train)), ChecksSection(**given))


# --- the same ---


def test_a_held_out_row_among_the_training_rows() -> None:
    finding = found(contamination, ["One text.", f"“{LONG.upper()}”", "Another."], ["Other", LONG])
    assert finding.rows == (11,)
    [example] = finding.examples
    assert (example["file"], example["line"]) == ("train.jsonl", 2)
    assert example["message"].startswith("has the text of the held-out row held.jsonl:2: ““THE LIGHTHOUSE KEEPER")
    assert "and “The lighthouse keeper" in example["message"]
    assert finding.details == {"held_out_rows": 1, "by_text": 1, "by_prompt": 0}


def test_a_held_out_prompt_among_the_training_rows() -> None:
    finding = found(contamination, [chat(QUESTION, "The first."), chat(QUESTION, "Both.")], [chat(QUESTION, "None.")])
    assert finding.rows == (10, 11)
    assert "has the prompt of the held-out row held.jsonl:1" in finding.examples[0]["message"]
    assert finding.details == {"held_out_rows": 1, "by_text": 0, "by_prompt": 1}


@pytest.mark.parametrize(
    ("train", "held"),
    [
        (chat("Tell me a joke.", "A"), chat("Tell me a joke.", "B")),
        (chat("请写一首诗。", "好"), chat("请写一首诗。", "不")),
        (chat("Solve for x: 2x + 3 = 7, and say how.", "A"), chat("Solve for x: 2x - 3 = 7, and say how.", "B")),
        ("", ""),
        ("…", "!"),
        (LONG, f"{LONG} Indeed."),
    ],
)
def test_short_or_other_prompts_and_texts_are_not_a_leak(train: Example | str, held: Example | str) -> None:
    assert found(contamination, [train], [held]).rows == ()


def test_a_prompt_of_a_benchmark_in_a_conversation() -> None:
    prompt = Example(messages=({"role": "user", "content": QUESTION},), columns={"answer": 1})
    assert found(contamination, [chat(QUESTION)], [prompt]).rows == (10,)
    system = Example(messages=({"role": "system", "content": "Be brief."}, *chat(QUESTION, "X").messages))
    assert found(contamination, [system], [prompt]).rows == (10,)


# --- most of it ---


def test_most_of_a_held_out_row_inside_a_training_row() -> None:
    train = ["Nothing of it.", f"Long ago it was so. {LONG} And so it went on for years, they say."]
    finding = found(overlap, train, ["Unlike.", f"{LONG} And so on and on."])
    assert finding.rows == (11,)
    [example] = finding.examples
    assert (example["file"], example["line"]) == ("train.jsonl", 2)
    assert example["message"].startswith("has 90 % of the held-out row held.jsonl:2: “Long ago")
    assert finding.details["held_out_rows"] == 1
    assert finding.details["held_out_rows_compared"] == 1
    assert sum(finding.details["histogram"]["counts"]) == 1


def test_what_the_other_check_finds_is_left_to_it() -> None:
    assert found(overlap, [LONG.lower()], [LONG]).rows == ()
    assert found(overlap, [chat(QUESTION, LONG)], [chat(QUESTION, f"{LONG} Yes.")]).rows == ()


def test_the_threshold_is_kept() -> None:
    held = " ".join(f"w{number}" for number in range(27))  # 20 runs of eight words
    train = " ".join(held.split()[:21])  # 14 of them
    assert found(overlap, [train], [held], overlap=0.7).rows == (10,)
    assert found(overlap, [train], [held], overlap=0.71).rows == ()


def test_what_a_training_row_repeats_counts_once() -> None:
    held = " ".join(f"w{number}" for number in range(27))
    half = " ".join(held.split()[:17])  # 10 of its 20 runs
    assert found(overlap, [f"{half} and {half} and {half}"], [held], overlap=0.51).rows == ()


def test_short_held_out_rows_are_not_looked_for() -> None:
    held = " ".join(f"w{number}" for number in range(16))  # 9 runs
    assert found(overlap, [f"so {held}"], [held]).rows == ()
    assert found(overlap, [f"so {held} w16"], [f"{held} w16"]).rows == (10,)


def test_parts_from_several_training_rows_do_not_add_up() -> None:
    said = [f"w{number}" for number in range(40)]
    assert found(overlap, [" ".join(said[:22]), " ".join(said[18:])], [" ".join(said)]).rows == ()


def test_a_phrase_of_the_format_is_ignored() -> None:
    form = "Below is an instruction that describes a task paired with an input that gives context to it all and more"
    held = [f"{form} {' '.join(f'{letter}{number}' for number in range(14))}" for letter in "abc"]
    many = [f"{form} {number}" for number in range(60)]
    train = [f"{form} something else"]
    assert found(overlap, train, held, overlap=0.3).rows == (10,)
    finding = found(overlap, train, [*held, *many], overlap=0.3)
    assert finding.rows == ()
    assert finding.details["ignored_phrases"] == 13
    assert "more than 50 held-out rows" in finding.details["ignored"]


def slowly(train: Sequence[str], held: Sequence[str], least: float) -> list[int]:
    """Training rows that overlap enough, by comparing all pairs."""
    runs = [set(ngrams(words(text), 8).tolist()) for text in held]
    counts = {run: sum(run in run_set for run_set in runs) for run_set in runs for run in run_set}
    kept = [{run for run in run_set if counts[run] <= 50} for run_set in runs]
    hits = []
    for number, text in enumerate(train):
        mine = set(ngrams(words(text), 8).tolist())
        if (
            any(len(run_set) >= 10 and len(run_set & mine) >= least * len(run_set) for run_set in kept)
            and text not in held
        ):
            hits.append(10 + number)
    return hits


@settings(max_examples=30)
@given(st.integers(0, 2**32), st.sampled_from([0.3, 0.5, 0.7, 1.0]))
def test_the_rows_are_those_of_all_pairs(seed: int, least: float) -> None:
    rng = random.Random(seed)
    said = [rng.choices([f"w{number}" for number in range(50)], k=rng.randint(5, 60)) for _ in range(20)]
    held = [" ".join(words) for words in said[:12]]
    train = []
    for _ in range(30):
        start, middle = rng.choice(said), rng.choice(said)
        train.append(" ".join([*start[: rng.randint(0, 60)], *middle[rng.randint(0, 9) :]]))
    assert list(found(overlap, train, held, overlap=least).rows) == slowly(train, held, least)


# --- as the training rows pass ---


@pytest.mark.parametrize("compare", [contamination, overlap])
def test_the_training_rows_pass_once_and_are_not_kept(compare: Compare, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_contamination, "_BATCH", 4)
    alive: set[int] = set()
    most = 0

    class Watched(Checked):
        def __del__(self) -> None:
            alive.discard(self.index)

    def pass_by() -> Iterator[Checked]:
        nonlocal most
        for number in range(100):
            row = Watched(file="t", line=1, index=number, example=Example(text=f"{LONG} {number}"), tokens=5)
            alive.add(number)
            most = max(most, len(alive))
            yield row

    finding = compare(rows("held.jsonl", f"{LONG} {7}"), pass_by(), ChecksSection())
    assert len(finding.rows) == (1 if compare is contamination else 99)
    assert len(finding.examples) <= 5
    assert most <= 12


@pytest.mark.parametrize("compare", [contamination, overlap])
def test_nothing_to_compare(compare: Compare) -> None:
    assert found(compare, [], [LONG]).rows == ()
    assert found(compare, [LONG], []).rows == ()
    assert found(compare, ["a"], ["b"]).rows == ()

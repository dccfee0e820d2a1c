"""All data checks at once: how they are registered, what clean data says, and real data that nobody here wrote."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from mlflow_ft import Check, Checked, Example, plugins
from mlflow_ft.builtin.checks import register_checks
from mlflow_ft.builtin.checks.words import ngrams, words
from mlflow_ft.config.schema import ChecksSection
from mlflow_ft.data.quality import Quality
from mlflow_ft.registry import Registry
from mlflow_ft.values import Report

SHARED = Path(__file__).parents[4] / "shared" / "data"
ROLES = {"human": "user", "gpt": "assistant", "observation": "tool", "function_call": "assistant"}
CLEAN = (
    ("Café, naïve, Zürich, Łódź: which are names of towns?", "Zürich and Łódź. “Café” isn’t — it’s a place to sit."),
    ("Translate “good morning” into Japanese.", "「おはようございます」 (ohayō gozaimasu)."),
    ("¿Qué significa «déjà vu»?", "Es la impresión de haber vivido ya algo; viene del francés."),
    ("Which emoji stand for a family?", "👩‍👩‍👧‍👦 and 👨‍👧; a flag is 🏳️‍🌈, a shrug ¯\\_(ツ)_/¯."),
    ("What is the double negation law?", "¬¬A ⇔ A; further α → β, x² ≤ ½π ± 5 °C."),
    ("Write a Python function that adds.", "```python\ndef add(x, y):\n\treturn x @ y.T  # 1.2.3\n```\n"),
    ("How do I read a password?", 'password = os.environ["APP_PASSWORD"]; never write password = "your_password".'),
    (
        "How do I set an API key?",
        "Run `export OPENAI_API_KEY=sk-your-key-goes-here-please-do`, then api_key = '<KEY>'.",
    ),
    ("Whom do I write to?", "Write to jane@example.com or noreply@github.com, or clone git@github.com:org/repo.git."),
    ("Which numbers are for films?", "(555) 123-4567, 212-555-0187 and +1 202 555 0143 are nobody's."),
    ("When was ISBN 978-3-16-148410-0 printed?", "On 2024-05-12, version 3.141.5926, at $1,234,567.89 for 1,000,000."),
    ("Decline an invitation.", "I'm sorry, but I can't make it to the party on Friday. Have fun without me!"),
    ("Who are you in this play?", "I am an airline pilot, and as an AI researcher's friend I cannot believe it."),
    ("Add 472547338 and 960397912423686.", "472547338 + 960397912423686 = 960398384971024, not +960397912423686."),
    ("Please turn the lamp on in the hall", "The lamp is on."),
    ("Please turn the fan off in the kitchen", "The fan is off."),
    ("What is 2 + 3?", "5"),
    ("What is 12 * 13?", "156"),
)


def chat(*said: str, **others: Any) -> Example:
    roles = itertools.cycle(("user", "assistant"))
    return Example(
        messages=tuple({"role": role, "content": words} for role, words in zip(roles, said, strict=False)), **others
    )


def checked(examples: Sequence[Example], file: str = "rows.jsonl") -> list[Checked]:
    return [
        Checked(file=file, line=number + 1, index=number, example=example, tokens=20, max_length=100, special=("<s>",))
        for number, example in enumerate(examples)
    ]


def examine(rows: Sequence[Checked], held: Sequence[Checked] = ()) -> Report:
    quality = Quality(register_checks(), ChecksSection(max_examples=100))
    for row in rows:
        quality.see(row)
    quality.compare(held, lambda: rows)
    return quality.report(len(rows))


def lines(report: Report) -> dict[str, list[int]]:
    """The lines of every check that found some."""
    return {check.name: [example["line"] for example in check.examples] for check in report.checks if check.count}


def test_they_come_through_the_registry() -> None:
    registry = Registry(plugins.load({}))
    for check in register_checks():
        assert registry.checks[check.name] == check


@pytest.mark.parametrize("check", register_checks(), ids=lambda check: check.name)
def test_a_check_has_one_form_and_says_what_to_do(check: Check) -> None:
    forms = [check.inspect, check.collect, check.compare]
    assert sum(form is not None for form in forms) == 1
    assert check.summary
    assert check.remedy
    assert not check.remedy.endswith(".")


def test_what_is_fixed_and_how_bad_it_is() -> None:
    checks = {check.name: check for check in register_checks()}
    assert {name for name, check in checks.items() if check.severity == "error"} == {
        *("empty-response", "role-order", "identical-pair", "contamination")
    }
    assert {name for name, check in checks.items() if check.severity == "info"} == {"length", "language", "changed"}
    assert {name for name, check in checks.items() if check.fix} == {
        *("empty-response", "exact-duplicate", "identical-pair", "contamination")
    }


def test_clean_conversations_raise_no_alarm() -> None:
    rows = checked([chat(*turns) for turns in CLEAN])
    held = checked([chat("Who wrote the tale of the old man and the sea?", "Hemingway")], "held.jsonl")
    assert lines(examine(rows, held)) == {}


def test_clean_texts_raise_no_alarm() -> None:
    assert lines(examine(checked([Example(text=" ".join(turns)) for turns in CLEAN]))) == {}


def test_clean_preferences_raise_no_alarm() -> None:
    pairs = [
        Example(
            messages=({"role": "user", "content": question},),
            chosen=({"role": "assistant", "content": answer if number % 2 else f"{answer} I hope that helps!"},),
            rejected=({"role": "assistant", "content": "I do not care about that."},),
        )
        for number, (question, answer) in enumerate(CLEAN)
    ]
    assert lines(examine(checked(pairs))) == {}


def test_clean_labels_raise_no_alarm() -> None:
    good = [chat(*turns, label=True) for turns in CLEAN]
    bad = [chat(question, "As an AI language model, I cannot help.", label=False) for question, _ in CLEAN]
    assert lines(examine(checked([*good, *bad]))) == {}


# --- real data ---


def shared(name: str) -> list[Checked]:
    path = SHARED / f"{name}.json"
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    return checked([*map(convert, json.loads(path.read_text()))], name)


def convert(row: Mapping[str, Any]) -> Example:
    if "instruction" in row:
        return chat(" ".join(filter(None, (row["instruction"], row["input"]))), row["output"])
    if "label" in row:
        return Example(messages=tuple(row["messages"]), label=row["label"])
    messages = tuple(map(turn, row["conversations"]))
    if "chosen" in row:
        return Example(messages=messages, chosen=(turn(row["chosen"]),), rejected=(turn(row["rejected"]),))
    return Example(messages=messages, tools=tuple(json.loads(row["tools"])) if row.get("tools") else None)


def turn(said: Mapping[str, Any]) -> dict[str, Any]:
    role = ROLES.get(said["from"], said["from"])
    if said["from"] == "function_call":
        return {"role": role, "content": "", "tool_calls": [{"type": "function", "function": said["value"]}]}
    return {"role": role, "content": said["value"]}


def similar(rows: Sequence[Checked], least: float) -> Iterator[int]:
    """Lines that are near duplicates of an earlier one, by comparing all pairs."""
    shingles = [set(ngrams(words(row.text), 3).tolist()) for row in rows]
    texts: dict[str, int] = {}
    for number, row in enumerate(rows):
        texts.setdefault(" ".join(row.text.split()), number)
    distinct = [number for number in texts.values() if shingles[number]]
    for place, row in enumerate(distinct):
        for other in distinct[:place]:
            both, either = len(shingles[row] & shingles[other]), len(shingles[row] | shingles[other])
            if both / either >= least:
                yield rows[row].line
                break


LOOKED_AT = {
    "alpaca_en_demo": {"encoding": [], "secret": [], "personal-data": [], "language": [], "conflicting-answers": []},
    "dpo_en_demo": {"encoding": [16, 287], "secret": [], "personal-data": [], "language": [183], "length-bias": []},
    "kto_en_demo": {"encoding": [246, 260], "secret": [], "personal-data": [], "language": [300], "refusal": [7, 137]},
    "glaive_toolcall_en_demo": {
        "encoding": [],
        "secret": [37, 49, 97, 102, 168, 181, 218, 235],  # passwords that a tool has made up
        "personal-data": [],
        "language": [],
        "conflicting-answers": [165, 237],
    },
}
"""Every one of these was read: mojibake and a form feed; Telugu and Hindi among English; refusals."""
REPEATED = {"alpaca_en_demo": 14, "dpo_en_demo": 5, "kto_en_demo": 0, "glaive_toolcall_en_demo": 35}


@pytest.mark.parametrize("name", LOOKED_AT)
def test_real_data(name: str) -> None:
    rows = shared(name)
    report = examine(rows)
    printed = lines(report)
    assert {check: printed.get(check, []) for check in LOOKED_AT[name]} == LOOKED_AT[name]
    assert {"empty-response", "role-order", "special-token", "identical-pair", "label-balance"}.isdisjoint(printed)
    counts = {check.name: check.count for check in report.checks}
    assert counts["exact-duplicate"] == REPEATED[name]
    assert counts["refusal"] <= 0.16 * len(rows)
    assert printed.get("near-duplicate", []) == [*similar(rows, 0.8)]

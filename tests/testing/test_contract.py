"""The contract for plugins: what it says of plugins that break it, each in one way."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mlflow_ft.testing import contract

Write = Callable[[str], ModuleType]
GOOD = """
from mlflow_ft import DataFormat, Example, hookimpl

def convert(values):
    if not values.get("front"):
        raise ValueError("`front` is missing")
    turns = ({"role": "user", "content": values["front"]}, {"role": "assistant", "content": "yes"})
    return Example(messages=turns)

@hookimpl
def register_formats():
    return [DataFormat(name="fronts", summary="a front", columns=("front",), convert=convert)]

@hookimpl
def detect_format(columns, sample):
    return "fronts" if list(columns) == ["front"] else None
"""
ROWS = {"fronts": [{"front": "one"}, {"front": "two"}]}
GATE = """
from mlflow_ft import Gate, Verdict, hookimpl

def judge(about, gates):
    most = gates.options.get("strict", {{}}).get("most")
    return {verdicts}

@hookimpl
def register_gates():
    return [Gate(name="strict", summary="strict", judge=judge, options=("most",))]
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Write a module and import it; each has a name of its own."""
    monkeypatch.syspath_prepend(str(tmp_path))
    made: list[str] = []

    def write(source: str) -> ModuleType:
        name = f"contract_{tmp_path.name}_{len(made)}"
        (tmp_path / f"{name}.py").write_text(source)
        made.append(name)
        importlib.invalidate_caches()
        return importlib.import_module(name)

    yield write
    for name in made:
        sys.modules.pop(name, None)


def statically(module: ModuleType, rows: Any = ROWS) -> None:
    contract.check_alone(module, contract.Given(rows=rows))


def test_a_good_one_passes(write: Write) -> None:
    statically(write(GOOD))


KEY_ERROR = "another error than a ValueError: .*KeyError"
BROKEN = {
    "it imports torch": ("\nfrom mlflow_ft", "import torch\nfrom mlflow_ft", "imports .*torch"),
    "a hook imports numpy": ("    return [DataFormat", "    import numpy\n    return [DataFormat", "imports numpy"),
    "a parameter has a default": ("columns, sample)", "columns, sample=None)", "sample has a default"),
    "its name has capitals": ('name="fronts"', 'name="Fronts"', "lower-case"),
    "its summary is a sentence": ('summary="a front"', 'summary="A front."', "full stop"),
    "its summary has two lines": ('summary="a front"', 'summary="a\\nfront"', "several lines"),
    "a column is not in the rows": ('columns=("front",)', 'columns=("back",)', "the sample row has not"),
    "it returns a dict": ("return Example(messages=turns)", "return {}", "must return an Example"),
    "it returns another kind": ("Example(messages=turns)", "Example(text='x')", "of the kind text"),
    "a role does not exist": ('"role": "user"', '"role": "human"', "the role 'human'"),
    "learned is too short": ("messages=turns", "messages=turns, learned=(True,)", "1 values for 2 messages"),
    "nothing is learned": ("messages=turns", "messages=turns, learned=(False, False)", "nothing to learn"),
    "it changes the row": ("    turns =", "    values['x'] = 1\n    turns =", "changed the row"),
    "a KeyError": ('not values.get("front")', 'not values["front"]', KEY_ERROR),
    "a wrong row is converted": (
        'if not values.get("front")',
        'if values.get("front") == 7',
        KEY_ERROR,
    ),
    "a ValueError without words": ('ValueError("`front` is missing")', "ValueError", "no message"),
    "rows are taken for others": ('return "fronts" if', 'return "alpaca" if', "recognised as 'alpaca'"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_format_that_breaks_it_is_told_how(what: str, write: Write) -> None:
    before, after, said = BROKEN[what]
    assert before in GOOD
    with pytest.raises(AssertionError, match=said):
        statically(write(GOOD.replace(before, after)))


def test_rows_are_needed_for_a_format(write: Write) -> None:
    with pytest.raises(AssertionError, match=r'no sample rows; give some: plugin_contract\(module, rows={"fronts"'):
        statically(write(GOOD), rows={})


RECORDS = {
    "a default that is no setting": (
        "Trainer(name='mine', summary='mine', train=print, defaults={'adapter.rnak': 4})",
        "its defaults are no valid settings(.|\n)*adapter",
    ),
    "an adapter that is not there": (
        "Trainer(name='mine', summary='mine', train=print, defaults={'adapter.kind': 'lroa'})",
        "unknown adapter 'lroa'",
    ),
    "a range of no setting": (
        "Trainer(name='mine', summary='mine', train=print, ranges={'learning_rate': '1 to 2'})",
        "ranges names learning_rate",
    ),
    "a reward too few": ("Reward(name='mine', summary='mine', score=lambda completions: [1.0])", "1 rewards for 2"),
    "an endless reward": (
        "Reward(name='mine', summary='mine', score=lambda completions, **_: [float('inf'), 1.0])",
        "a finite number or None",
    ),
    "a check without a form": ("Check(name='mine', summary='mine')", "not 0"),
    "a rule without a source": (
        "PlanRule(name='mine', summary='mine', source='', applies=lambda s: False, advise=print)",
        "its source is empty",
    ),
    "advice without a reason": (
        "PlanRule(name='mine', summary='m', source='x', applies=lambda s: True, advise=lambda s: Advice(reason=''))",
        "no reason",
    ),
}


@pytest.mark.parametrize("what", RECORDS)
def test_a_record_that_breaks_it_is_told_how(what: str, write: Write) -> None:
    record, said = RECORDS[what]
    kind = record.partition("(")[0]
    hook = {"PlanRule": "register_plan_rules"}.get(kind, f"register_{kind.lower()}s")
    source = f"from mlflow_ft import *\n\n@hookimpl\ndef {hook}():\n    return [{record}]\n"
    with pytest.raises(AssertionError, match=said):
        statically(write(source))


def test_a_misspelt_hook_and_no_hook(write: Write) -> None:
    with pytest.raises(AssertionError, match="register_formts"):
        statically(write(GOOD.replace("def register_formats", "def register_formts")))
    with pytest.raises(AssertionError, match="has no hook"):
        statically(write("x = 1"))


def test_what_a_training_tells(write: Write, request: pytest.FixtureRequest, tiny_model: Path, tmp_path: Path) -> None:
    """One training for a gate that judges unasked, and for an evaluator whose score has another name."""
    unasked = write(GATE.format(verdicts="[Verdict(passed=True, found='x', wanted='y')]"))
    with pytest.raises(AssertionError, match="gate strict: it judges a model though none of its options is set"):
        contract.check(unasked, contract.Given(), fixtures=request)
    source = "from mlflow_ft import *\n\n@hookimpl\ndef register_evaluators():\n    return [Evaluator(name='mine', "
    source += "summary='mine', scores=('mine',), evaluate=lambda subject: [Score(name='other', value=1.0)])]\n"
    with pytest.raises(AssertionError, match="evaluator mine: it declares the score mine"):
        contract.check(write(source), contract.Given(), fixtures=request)

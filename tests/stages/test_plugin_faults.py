"""What a plugin's function gets wrong while a run works: the error names it, and only its own result is lost."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import mlflow
import pytest

from mlflow_ft import Adapter, Evaluator, Gate, PluginError, Score, Trainer, Verdict, hookimpl, plugins
from mlflow_ft.config.gates import Gates
from mlflow_ft.progress import Progress
from mlflow_ft.registry import Registry, chosen_gates


def plugin(hook: str, record: Any, name: str = "the_plugin") -> ModuleType:
    module = ModuleType(name)

    def register() -> list[Any]:
        return [record]

    setattr(module, hook, hookimpl(register, specname=hook))
    return module


def evaluator(evaluate: Any, **more: Any) -> ModuleType:
    return plugin("register_evaluators", Evaluator(name="mine", summary="mine", evaluate=evaluate, **more))


def raising(subject: Any) -> list[Score]:
    raise KeyError("no such thing")


def only_the_base(subject: Any) -> list[Score]:
    if subject.name == "tuned":
        raise ValueError("not this one")
    return [Score(name="mine", value=1.0)]


@pytest.mark.parametrize(
    ("evaluate", "said"),
    [
        (raising, "plugin the_plugin, evaluator 'mine': evaluate raised KeyError: 'no such thing' ("),
        (lambda subject: {"mine": 1.0}, "evaluate returned {'mine': 1.0}; it must return a list of Score"),
        (lambda subject: [Score(name="mine", value="1")], "mine is '1'"),
        (lambda subject: [Score(name="mine", value=1)] * 2, "mine comes twice"),
        (only_the_base, "evaluate raised ValueError: not this one"),
    ],
)
def test_the_fault_of_an_evaluator_costs_its_score_and_not_the_run(
    tiny_model: Path, tiny_rows: Path, fine_tune: Any, monkeypatch: pytest.MonkeyPatch, evaluate: Any, said: str
) -> None:
    warnings: list[str] = []
    monkeypatch.setattr(Progress, "warn", lambda self, text: warnings.append(text))
    outcome = fine_tune("full", evaluator(evaluate), model=tiny_model, data=tiny_rows)
    assert outcome.versions
    for scores in (outcome.scores.base, outcome.scores.tuned):
        assert "loss" in {score.name for score in scores}
        assert "mine" not in {score.name for score in scores}
    run = mlflow.get_run(outcome.run_id)
    assert run.info.status == "FINISHED"
    assert said in run.data.tags["mlflow_ft.failed_evaluators"]
    [warning] = [warning for warning in warnings if "evaluator mine" in warning]
    assert said in warning
    assert f"the trained weights are in {outcome.folder}" in warning


def test_an_evaluator_that_works_is_heard_and_can_say_that_lower_is_better(
    tiny_model: Path, tiny_rows: Path, fine_tune: Any
) -> None:
    def lengths(subject: Any) -> list[Score]:
        assert subject.config.method == "full"
        return [Score.mean("lengths", [1.0, 2.0])]

    working = evaluator(lengths, lower_is_better=("lengths",))
    outcome = fine_tune("full", working, model=tiny_model, data=tiny_rows)
    assert {score.name: score.value for score in outcome.scores.tuned}["lengths"] == 1.5
    assert "mlflow_ft.failed_evaluators" not in mlflow.get_run(outcome.run_id).data.tags
    loaded = plugins.load({})
    loaded.add(working, name="the_plugin")
    gates = Gates().knowing(Registry(loaded).lower_is_better)
    assert gates.lower("lengths")
    assert gates.lower("safety/lengths")
    assert not gates.lower("other-lengths")


@pytest.mark.parametrize(
    ("train", "said"),
    [
        (lambda job, data, model: None, "train returned None; it must return a Trained"),
        (lambda job, data, model: 1 / 0, "train raised ZeroDivisionError: division by zero ("),
    ],
)
def test_a_method_that_fails_is_named(tiny_model: Path, tiny_rows: Path, fine_tune: Any, train: Any, said: str) -> None:
    method = plugin("register_trainers", Trainer(name="mine", summary="mine", train=train))
    with pytest.raises(PluginError) as failed:
        fine_tune("mine", method, model=tiny_model, data=tiny_rows)
    assert f"plugin the_plugin, trainer 'mine': {said}" in str(failed.value)
    [run] = mlflow.search_runs(output_format="list")
    assert run.info.status == "FAILED"
    assert said in run.data.tags["mlflow_ft.error"]


def test_memory_that_ran_out_in_a_plugin_keeps_its_remedy(tiny_model: Path, tiny_rows: Path, fine_tune: Any) -> None:
    def train(job: Any, data: Any, model: Any) -> Any:
        raise MemoryError("too little")

    method = plugin("register_trainers", Trainer(name="mine", summary="mine", train=train))
    with pytest.raises(Exception, match="out of memory") as failed:
        fine_tune("mine", method, model=tiny_model, data=tiny_rows)
    assert not isinstance(failed.value, PluginError)


@pytest.mark.parametrize(
    ("name", "function", "said"),
    [
        ("training_callbacks", lambda job: [3], r"plugin the_plugin: training_callbacks returned \[3\], not a list of"),
        ("training_callbacks", lambda job: 1 / 0, "plugin the_plugin: training_callbacks raised ZeroDivisionError"),
        ("before_train", lambda job: [][1], "plugin the_plugin: before_train raised IndexError"),
        ("detect_format", lambda columns: "nothing", "plugin the_plugin: detect_format returned 'nothing', which is"),
        ("detect_format", lambda columns: {}[0], "plugin the_plugin: detect_format raised KeyError"),
    ],
)
def test_a_hook_that_fails_is_named(
    tiny_model: Path, tiny_rows: Path, fine_tune: Any, name: str, function: Any, said: str
) -> None:
    module = ModuleType("the_plugin")
    setattr(module, name, hookimpl(function, specname=name))
    with pytest.raises(PluginError, match=said):
        fine_tune("full", module, model=tiny_model, data=tiny_rows)


def test_an_adapter_that_fails_is_named(tiny_model: Path, tiny_rows: Path, fine_tune: Any) -> None:
    adapter = Adapter(name="mine", summary="mine", configure=lambda job, model: {}["r"])
    with pytest.raises(PluginError, match="plugin the_plugin, adapter 'mine': configure raised KeyError: 'r'"):
        fine_tune("lora", plugin("register_adapters", adapter), model=tiny_model, data=tiny_rows, kind="mine")


def gate(**more: Any) -> plugins.Plugins:
    judged = Gate(
        name="mine", summary="mine", judge=lambda about, gates: [Verdict(passed=True, found="x", wanted="x")], **more
    )
    loaded = plugins.load({})
    loaded.add(plugin("register_gates", judged), name="the_plugin")
    return loaded


def test_a_plugins_gate_abstains_until_it_is_asked_for() -> None:
    def verdict(loaded: plugins.Plugins, gates: Gates) -> Verdict:
        [mine] = [gate for gate in chosen_gates(Registry(loaded), gates) if gate.name == "mine"]
        [given] = mine.judge(None, gates)  # type: ignore[arg-type]  # this gate needs no evidence
        return given

    unasked = verdict(gate(), Gates())
    assert unasked.passed is None
    assert "not asked for: name it in `names`, or set options.mine" in unasked.found
    assert verdict(gate(), Gates(names=["mine"])).passed
    assert verdict(gate(options=("most",)), Gates(options={"mine": {"most": 1}})).passed
    assert verdict(gate(always=True), Gates()).passed

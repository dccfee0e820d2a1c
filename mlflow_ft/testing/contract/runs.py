"""What a plugin registers, in trainings of two steps with a tiny real model; and what its gates say of the results."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mlflow_ft.records import Adapter, Check, DataFormat, Engine, Evaluator, Exporter, Gate, Packager, Trainer, Verdict
from mlflow_ft.rows import Kind
from mlflow_ft.testing.contract.loading import Loaded, hooks
from mlflow_ft.testing.samples import rows_of_kind, write_jsonl

if TYPE_CHECKING:
    from mlflow_ft.pipeline import Outcome
    from mlflow_ft.testing.contract import Given
    from mlflow_ft.values import Score

FEWEST_ROWS = 24
IN_TRAINING = ("before_train", "training_callbacks", "after_evaluate")
USED: tuple[type, ...] = (Adapter, Check, DataFormat, Engine, Evaluator, Exporter, Gate, Packager, Trainer)
PROMPT = {"messages": [{"role": "user", "content": "red green"}]}


@dataclass(frozen=True, kw_only=True)
class Training:
    """A training to do: which method, and which settings beside the shared ones."""

    method: str
    kinds: tuple[Kind, ...] = ("conversation", "text")
    settings: Mapping[str, Any]


def check(plugin: Loaded, given: Given, fixtures: pytest.FixtureRequest) -> None:
    """Train with everything that can be used in a training, and look at what came out."""
    used = any(plugin.records(kind) for kind in USED) or any(name in IN_TRAINING for name, _ in hooks(plugin.module))
    if not used:
        return
    fine_tune: Callable[..., Outcome] = fixtures.getfixturevalue("fine_tune")
    model, folder = fixtures.getfixturevalue("tiny_model"), fixtures.getfixturevalue("tmp_path")
    modules = () if plugin.installed else (plugin.module,)
    for number, training in enumerate(trainings(plugin, given.without)):
        data = write_jsonl(folder / f"contract-{number}.jsonl", rows_for(plugin, training.kinds, given))
        settings = {"model": model, "data": data} | shared(plugin, given.without) | dict(training.settings)
        settings |= given.settings
        outcome = fine_tune(training.method, *modules, **settings)
        check_product(training.method, outcome)
        check_forms(plugin, outcome, settings)
        check_scores(plugin, outcome, settings)
        if number == 0:
            check_gates(plugin, outcome, given.gates)


def trainings(plugin: Loaded, without: Mapping[str, str]) -> Iterator[Training]:
    """One for each method; one with `lora` for each adapter and data engine; at least one."""
    trainers = [] if "trainers" in without else plugin.records(Trainer)
    adapters = [] if "adapters" in without else plugin.records(Adapter)
    engines = [] if "engines" in without else plugin.records(Engine)
    for trainer in trainers:
        yield Training(method=trainer.name, kinds=trainer.kinds, settings={})
    for adapter, engine in itertools.zip_longest(adapters, engines):
        settings = ({"adapter.kind": adapter.name} if adapter else {}) | (
            {"data.engine": engine.name} if engine else {}
        )
        yield Training(method="lora", settings=settings)
    if not (trainers or adapters or engines):
        yield Training(method="lora", settings={})


def rows_for(plugin: Loaded, kinds: Sequence[Kind], given: Given) -> list[Mapping[str, Any]]:
    """Rows of the plugin's first format of one of these kinds, repeated to be enough; else rows of the first kind."""
    for data_format in plugin.records(DataFormat):
        if data_format.kind in kinds and given.rows.get(data_format.name):
            rows = given.rows[data_format.name]
            return list(itertools.islice(itertools.cycle(rows), max(FEWEST_ROWS, len(rows))))
    return list(rows_of_kind(kinds[0]))


def shared(plugin: Loaded, without: Mapping[str, str]) -> dict[str, Any]:
    """Settings that use everything of the plugin; repeated sample rows are no reason to stop."""
    settings: dict[str, Any] = {"data.fail_on": "never", "evaluation.on_worse": "warn"}
    evaluators, exporters = plugin.records(Evaluator), plugin.records(Exporter)
    if evaluators and "evaluators" not in without:
        settings["evaluation.evaluators"] = f"[loss, {', '.join(record.name for record in evaluators)}]"
    if exporters and "exporters" not in without:
        settings["package.exports"] = f"[{', '.join(record.name for record in exporters)}]"
    return settings


def check_product(method: str, outcome: Outcome) -> None:
    """What was trained is registered, loads from the registry, and answers."""
    import mlflow

    assert outcome.versions, f"{method}: the training registered nothing"
    for version in outcome.versions:
        loaded = mlflow.pyfunc.load_model(f"models:/{version.name}/{version.version}")
        answer = loaded.predict(PROMPT)
        assert answer, f"{version.name}: the loaded model says nothing"


def check_forms(plugin: Loaded, outcome: Outcome, settings: Mapping[str, Any]) -> None:
    """Every packager and exporter made a form, which was opened and compared with the trained model."""
    from mlflow_ft.tracking import Store

    metrics = Store.connect().run(outcome.run_id).data.metrics
    for exporter in plugin.records(Exporter):
        if exporter.name in str(settings.get("package.exports", "")):
            compared = f"parity/{exporter.name}/kl_mean" in metrics
            assert compared, f"exporter {exporter.name}: its form was not opened and compared with the trained model"
    made = {path.name for path in Path(outcome.folder).rglob("*") if path.is_dir()}
    for packager in plugin.records(Packager):
        if packager.name in made:
            compared = f"parity/{packager.name}/kl_mean" in metrics
            assert compared, f"packager {packager.name}: its form was not compared with the trained model"


def check_scores(plugin: Loaded, outcome: Outcome, settings: Mapping[str, Any]) -> None:
    """Every evaluator scored both models, with the scores that it declares, in the same way."""
    wanted = str(settings.get("evaluation.evaluators", ""))
    for evaluator in plugin.records(Evaluator):
        if evaluator.name not in wanted:
            continue
        for name, scores in (("base", outcome.scores.base), ("tuned", outcome.scores.tuned)):
            check_declared(evaluator, name, scores)
    names = [[score.name for score in scores] for scores in (outcome.scores.base, outcome.scores.tuned)]
    assert names[0] == names[1], f"base and tuned model have different scores: {names[0]} and {names[1]}"


def check_declared(evaluator: Evaluator, model: str, scores: Sequence[Score]) -> None:
    """The declared scores are there, and are numbers."""
    what = f"evaluator {evaluator.name}"
    by_name = {score.name: score for score in scores}
    for declared in evaluator.scores:
        found = [score for name, score in by_name.items() if name == declared or matches(name, declared)]
        assert found, f"{what}: it declares the score {declared}, and the {model} model has none of that name"
        for score in found:
            assert isinstance(score.value, int | float), f"{what}: {score.name} is {score.value!r}, not a number"
            assert not math.isinf(score.value), f"{what}: {score.name} is infinite"


def matches(name: str, declared: str) -> bool:
    """Whether a score is one of `reward/*`."""
    return declared.endswith("*") and name.startswith(declared[:-1])


def check_gates(plugin: Loaded, outcome: Outcome, options: Mapping[str, Mapping[str, Any]]) -> None:
    """A gate judges the trained model with the options that were given, in words."""
    from mlflow_ft.config.gates import Gates

    for gate in plugin.records(Gate):
        what = f"gate {gate.name}"
        if gate.options:
            example = f'plugin_contract(module, gates={{"{gate.name}": {{"{gate.options[0]}": ...}}}})'
            assert gate.name in options, f"{what}: no options to try it with; give some: {example}"
        gates = Gates.model_validate({"options": {gate.name: options.get(gate.name, {})}})
        verdicts = judged(plugin, gate, outcome, gates)
        assert verdicts, f"{what}: it gave no verdict"
        if gate.options:
            assert any(verdict.passed is not None for verdict in verdicts), f"{what}: it abstains with its options set"
        for verdict in verdicts:
            assert verdict.found.strip(), f"{what}: its verdict does not say what it found"
            assert verdict.passed is None or verdict.wanted.strip(), f"{what}: its verdict does not say what would pass"


def judged(plugin: Loaded, gate: Gate, outcome: Outcome, gates: Any) -> Sequence[Verdict]:
    """What a gate says of the registered model, in a promotion that moves nothing."""
    from mlflow_ft.operations.promoting.decision import PromotionRequest
    from mlflow_ft.operations.promoting.promote import promote
    from mlflow_ft.progress import Progress

    version = outcome.versions[0]
    request = PromotionRequest(
        name=version.name, version=str(version.version), by="contract", now_ms=0, gates=gates, dry_run=True
    )
    decision = promote(request, plugins=plugin.plugins, progress=Progress(quiet=True))
    verdicts = [judgement.verdict for judgement in decision.judged if judgement.gate == gate.name]
    for verdict in verdicts:
        raised = verdict.passed is False and verdict.wanted == "a verdict"
        assert not raised, f"gate {gate.name}: it raised an error: {verdict.found}"
    return verdicts

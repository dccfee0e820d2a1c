"""The records of a plugin: names, summaries, settings, and the functions that need no model."""

from __future__ import annotations

import copy
import inspect
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mlflow_ft.errors import FineTuneError
from mlflow_ft.plugins.doors import PluginFaultError
from mlflow_ft.records import (
    Adapter,
    Check,
    DataFormat,
    Evaluator,
    Gate,
    GuardSet,
    Launcher,
    PlanRule,
    Record,
    Reward,
    ServingEngine,
    Trainer,
)
from mlflow_ft.rows import Example
from mlflow_ft.testing.contract.loading import Loaded

if TYPE_CHECKING:
    from mlflow_ft.config import Config

NAME = r"[a-z0-9]+([._:/-][a-z0-9]+)*"
LONGEST_SUMMARY = 160
ROLES = ("system", "developer", "user", "assistant", "tool")
Rows = Mapping[str, Sequence[Mapping[str, Any]]]


def check(plugin: Loaded, rows: Rows, *, without: Mapping[str, str]) -> None:
    """Check every record by itself."""
    for registered in plugin.plugins.registered:
        if registered.provider == plugin.name:
            check_words(registered.kind, registered.record)
    for trainer in plugin.records(Trainer):
        check_trainer(plugin, trainer)
    for adapter in plugin.records(Adapter):
        check_ranges(f"adapter {adapter.name}", adapter.ranges)
        check_reason(f"adapter {adapter.name}: refuses", adapter.refuses(resolved("lora")))
    for data_format in plugin.records(DataFormat) if "formats" not in without else ():
        check_format(plugin, data_format, rows)
    for launcher in plugin.records(Launcher):
        check_reason(f"launcher {launcher.name}: refuses", launcher.refuses(resolved("lora")))
    for engine in plugin.records(ServingEngine):
        check_reason(f"serving engine {engine.name}: refuses", engine.refuses(resolved("serve")))
    for reward in plugin.records(Reward):
        check_reward(reward)
    for rule in plugin.records(PlanRule):
        check_rule(rule)
    check_fields(plugin)


def check_fields(plugin: Loaded) -> None:
    """A check has one form; what lists names is a list of names."""
    for checked in plugin.records(Check):
        forms = [form for form in ("inspect", "collect", "compare") if getattr(checked, form) is not None]
        assert len(forms) == 1, f"check {checked.name}: one of inspect, collect and compare is needed, not {len(forms)}"
    for evaluator in plugin.records(Evaluator):
        check_names(f"evaluator {evaluator.name}: scores", evaluator.scores)
        check_reason(f"evaluator {evaluator.name}: refuses", evaluator.refuses(resolved("lora")))
    for guard in plugin.records(GuardSet):
        assert guard.path.exists(), f"guard set {guard.name}: there is no {guard.path}"
    for gate in plugin.records(Gate):
        check_names(f"gate {gate.name}: options", gate.options)


def check_names(what: str, names: object) -> None:
    """A tuple of names; a text alone would be read letter by letter."""
    listed = isinstance(names, tuple | list) and all(isinstance(name, str) for name in names)
    assert listed, f"{what} is {names!r}, not a tuple of names"


def check_words(kind: str, record: Record) -> None:
    """A name that can be typed, and a summary that fits a line."""
    what = f"{kind[:-1].replace('_', ' ')} {record.name!r}"
    assert re.fullmatch(NAME, record.name), f"{what}: use lower-case letters, digits and hyphens for a name"
    summary = record.summary
    assert summary.strip(), f"{what}: its summary is empty"
    assert "\n" not in summary, f"{what}: its summary has several lines"
    assert len(summary) <= LONGEST_SUMMARY, f"{what}: its summary has {len(summary)} characters; {LONGEST_SUMMARY} fit"
    assert not summary.rstrip().endswith("."), f"{what}: a summary is no sentence, so it ends without a full stop"


def check_reason(what: str, reason: object) -> None:
    """Why something is refused is a sentence, or None."""
    assert reason is None or (isinstance(reason, str) and reason.strip()), (
        f"{what} returned {reason!r}, not text or None"
    )


def resolved(method: str, defaults: Mapping[str, Any] | None = None) -> Config:
    """The configuration of a method with its defaults."""
    from mlflow_ft.config import resolve

    return resolve(method, defaults=defaults or {"adapter.kind": "lora"})


def check_trainer(plugin: Loaded, trainer: Trainer) -> None:
    """Its defaults are valid settings, and everything else that it names exists."""
    from mlflow_ft.config.explain import FIELDS

    what = f"trainer {trainer.name}"
    try:
        config = resolved(trainer.name, trainer.defaults or {})
        adapter = plugin.registry.adapters[config.adapter.kind]
    except FineTuneError as error:
        raise AssertionError(f"{what}: its defaults are no valid settings: {error}") from error
    check_ranges(what, trainer.ranges)
    for name in trainer.settings or ():
        known = {f"{section}.{name}" for section in ("objective", "rollout")} & set(FIELDS)
        assert known, f"{what}: settings names {name}, which is no field of objective or rollout"
    assert trainer.kinds, f"{what}: kinds is empty, so it could learn from no rows"
    check_reason(f"{what}: refuses", trainer.refuses(config, adapter))


def check_ranges(what: str, ranges: Mapping[str, str]) -> None:
    """The usual values are those of settings."""
    from mlflow_ft.config.explain import FIELDS

    for path in ranges:
        assert path in FIELDS, f"{what}: ranges names {path}, which is no setting; write it with its section"


def check_format(plugin: Loaded, data_format: DataFormat, rows: Rows) -> None:
    """Its sample rows become valid examples of its kind, unchanged; a row without columns is refused."""
    what = f"format {data_format.name}"
    samples = rows.get(data_format.name, ())
    example = f'plugin_contract(module, rows={{"{data_format.name}": [{{...}}]}})'
    assert samples, f"{what}: no sample rows; give some: {example}"
    for values in samples:
        missing = [column for column in data_format.columns if column not in values]
        assert not missing, f"{what}: it says that each row has {missing[0]!r}, and the sample row has not: {values}"
        before = copy.deepcopy(values)
        converted = data_format.convert(values)
        assert values == before, f"{what}: convert changed the row that it was given"
        check_example(what, converted, data_format.kind)
        assert data_format.convert(values) == converted, f"{what}: the same row converted twice gives two examples"
    if data_format.columns:
        check_refusal(what, data_format)
    detect = getattr(plugin.module, "detect_format", None)
    if detect:
        check_detection(plugin, data_format, detect, samples)


def check_refusal(what: str, data_format: DataFormat) -> None:
    """A row without the columns is refused with a ValueError in a sentence."""
    try:
        converted = data_format.convert({})
    except ValueError as error:
        said = str(error).strip()
    except PluginFaultError as error:
        raise AssertionError(
            f"{what}: a row without columns is refused by another error than a ValueError: {error.message}"
        ) from error
    else:
        raise AssertionError(f"{what}: a row without its columns becomes {converted}; raise ValueError with a sentence")
    assert said, f"{what}: the ValueError for a row without columns has no message"


def check_detection(plugin: Loaded, data_format: DataFormat, detect: Any, samples: Sequence[Mapping[str, Any]]) -> None:
    """What `detect_format` says of the sample rows is None, or this format."""
    values = {"columns": list(dict.fromkeys(column for row in samples for column in row)), "sample": list(samples)}
    found = detect(**{name: values[name] for name in inspect.signature(detect).parameters})
    expected = f"detect_format: the rows of {data_format.name} were recognised as {found!r}"
    assert found in (None, data_format.name), expected
    assert found is None or found in plugin.registry.formats, f"{expected}, which no plugin registers"


def check_example(what: str, example: object, kind: str) -> None:
    """An `Example` of the kind, whose messages a chat template can render."""
    assert isinstance(example, Example), f"{what}: convert returned {type(example).__name__}, not an Example"
    assert example.kind == kind, f"{what}: its rows are of the kind {example.kind}, and it declares {kind}"
    assert example.text is None or example.text.strip(), f"{what}: the text is empty"
    for turn in (*example.messages, *example.chosen, *example.rejected):
        assert isinstance(turn, Mapping), f"{what}: a message is {turn!r}, not a mapping"
        assert turn.get("role") in ROLES, (
            f"{what}: a message has the role {turn.get('role')!r}; roles: {', '.join(ROLES)}"
        )
        assert "content" in turn or "tool_calls" in turn, f"{what}: a message has no content: {turn!r}"
    if example.learned is not None:
        count = len(example.messages)
        assert len(example.learned) == count, f"{what}: learned has {len(example.learned)} values for {count} messages"
        assert any(example.learned), f"{what}: learned leaves nothing to learn"


def check_reward(reward: Reward) -> None:
    """It returns a number or None for each of two answers."""
    answers: list[list[dict[str, str]]] = [[{"role": "assistant", "content": text}] for text in ("four", "")]
    prompts = [[{"role": "user", "content": "two and two?"}]] * len(answers)
    values: dict[str, Any] = {"completions": answers, "prompts": prompts, "answer": ["four", "four"]}
    parameters = inspect.signature(reward.score).parameters.values()
    for parameter in parameters:
        if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            values.setdefault(parameter.name, ["four"] * len(answers))
    if not any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters):
        values = {parameter.name: values[parameter.name] for parameter in parameters}
    what = f"reward {reward.name}"
    scores = reward.score(**values)
    if inspect.isawaitable(scores):
        scores.close()  # type: ignore[attr-defined]  # a coroutine, which is not run here
        return
    assert len(scores) == len(answers), f"{what}: {len(scores)} rewards for {len(answers)} answers"
    numbers = [score for score in scores if score is not None]
    finite = all(isinstance(score, int | float) and math.isfinite(score) for score in numbers)
    assert finite, f"{what}: a reward is a finite number or None, not {scores!r}"


def check_rule(rule: PlanRule) -> None:
    """It names its source, and gives advice with a reason where it applies."""
    from mlflow_ft.values import Advice, Choice, Hardware, Situation

    what = f"plan rule {rule.name}"
    assert rule.source.strip(), f"{what}: its source is empty"
    for choice in (None, Choice(method="sft", weights="lora")):
        situation = Situation(
            aim="instruct",
            kind="conversation",
            rows=200,
            row_tokens=50.0,
            long_row=100,
            hardware=Hardware(gpus=1, memory=24.0),
            parameters=10**9,
            choice=choice,
        )
        applies = rule.applies(situation)
        assert isinstance(applies, bool), f"{what}: applies returned {applies!r}, not a truth value"
        if applies:
            advice = rule.advise(situation)
            assert isinstance(advice, Advice), f"{what}: it advises {advice!r}, which is no Advice"
            assert advice.reason.strip(), f"{what}: its advice has no reason"

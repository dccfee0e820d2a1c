"""The rules of a plan: the built-in ones, and those of plugins."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType

import pytest

from mlflow_ft import Advice, Hardware, PlanRule, PluginError, Situation, hookimpl, plugins
from mlflow_ft.builtin.plan_rules import settings
from mlflow_ft.operations.planning import advised
from mlflow_ft.registry import Registry
from mlflow_ft.values import Choice
from mlflow_ft.values.planning import AIMS, TRAINED_ON, USUAL_AIM

HERE = Situation(
    aim="instruct",
    kind="conversation",
    rows=20_000,
    row_tokens=300,
    long_row=1000,
    hardware=Hardware(gpus=1, memory=24),
    parameters=7_000_000_000,
    positions=8192,
)


def with_rule(rule: PlanRule) -> Registry:
    """The built-in rules and one of a plugin."""
    module = ModuleType("ours")
    module.register_plan_rules = hookimpl(specname="register_plan_rules")(lambda: [rule])  # type: ignore[attr-defined]
    loaded = plugins.load({})
    assert loaded.add(module, name="ours").error == ""
    return Registry(loaded)


def rule(advise: Callable[[Situation], Advice], *, priority: int = 1) -> PlanRule:
    return PlanRule(
        name="ours",
        summary="ours",
        source="https://example.org",
        applies=lambda situation: True,
        advise=advise,
        priority=priority,
    )


@pytest.mark.parametrize(
    ("rows", "gpus", "memory", "weights"),
    [
        (500, 1, 24, "prompt"),
        (1_000, 1, 23.9, "qlora"),
        (1_000, 1, 24, "lora"),
        (100_000, 1, 80, "lora"),
        (100_000, 4, 48, "lora"),
        (100_001, 4, 48, "full"),
        (100_001, 1, 16, "full"),
        (100_001, 0, 64, "lora"),
    ],
)
def test_the_guide_by_rows_and_memory(registry: Registry, rows: int, gpus: int, memory: float, weights: str) -> None:
    situation = replace(HERE, rows=rows, hardware=Hardware(gpus=gpus, memory=memory))
    assert advised.ask(registry, situation).names("weights")[0] == weights


def test_a_small_base_on_a_small_gpu_needs_no_quantisation(registry: Registry) -> None:
    situations = (replace(HERE, parameters=size, hardware=Hardware(gpus=1, memory=16)) for size in (10**9, 7 * 10**9))
    reasons = [advised.ask(registry, situation).reason("weights", "qlora").text for situation in situations]
    assert ["without quantisation" in reason for reason in reasons] == [True, False]


def test_several_large_gpus_may_train_every_weight(registry: Registry) -> None:
    situation = replace(HERE, hardware=Hardware(gpus=4, memory=80))
    assert advised.ask(registry, situation).names("weights")[:2] == ["lora", "full"]


def test_few_shot_is_named_before_training_on_few_rows(registry: Registry) -> None:
    advice = advised.ask(registry, replace(HERE, rows=999))
    assert "few-shot" in advice.elsewhere
    assert any("few-shot" in sentence for sentence in advice.before)


@pytest.mark.parametrize(
    ("kind", "methods"),
    [
        ("conversation", ["sft"]),
        ("text", ["sft"]),
        ("preference", ["dpo", "simpo"]),
        ("unpaired", ["kto"]),
        ("prompt", ["grpo", "rloo"]),
    ],
)
def test_the_method_by_the_kind_of_rows(registry: Registry, kind: str, methods: list[str]) -> None:
    situation = replace(HERE, kind=kind, aim=USUAL_AIM[kind])  # type: ignore[arg-type, index]  # a literal
    assert advised.ask(registry, situation).names("methods") == methods


def test_rlhf_comes_after_dpo(registry: Registry) -> None:
    advice = advised.ask(registry, replace(HERE, kind="preference", aim="preference"))
    assert advice.names("methods")[0] == "dpo"
    assert "rlhf" in advice.elsewhere


def test_preferences_on_an_untuned_base_ask_for_instruction_tuning_first(registry: Registry) -> None:
    pairs = replace(HERE, kind="preference", aim="preference")
    tuned, untuned = (advised.ask(registry, replace(pairs, chats=chats)) for chats in (True, False))
    assert (tuned.before, len(untuned.before)) == ([], 1)
    assert "align" in untuned.before[0]


def test_an_answer_column_is_the_reward(registry: Registry) -> None:
    prompts = replace(HERE, kind="prompt", aim="verifiable")
    with_answers = advised.ask(registry, replace(prompts, columns=frozenset({"prompt", "answer"})))
    assert with_answers.settings["rollout.reward_funcs"][0] == ["exact-answer"]
    assert not with_answers.before
    without = advised.ask(registry, prompts)
    assert "rollout.reward_funcs" not in without.settings
    assert "--reward_funcs" in without.before[0]


def test_every_aim_is_reached_with_rows_that_its_methods_take(registry: Registry) -> None:
    for aim in AIMS:
        for kind in TRAINED_ON[aim]:
            methods = advised.ask(registry, replace(HERE, kind=kind, aim=aim)).names("methods")
            assert kind in registry.trainers[methods[0]].kinds, (aim, kind)


def test_every_rule_says_where_it_is_from(registry: Registry) -> None:
    for record in registry.plan_rules:
        assert re.match(r"https://\S+(, https://\S+)*$", record.source), record.name


def numbers(words: str) -> list[float]:
    return [float(number) for number in re.findall(r"\d+(?:\.\d+)?(?:e-?\d+)?", words)]


@pytest.mark.parametrize("method", settings.RATES)
@pytest.mark.parametrize("weights", ["lora", "full"])
@pytest.mark.parametrize("rows", [500, 5_000, 50_000, 500_000])
def test_what_is_recommended_is_usual(registry: Registry, method: str, weights: str, rows: int) -> None:
    """Within the `ranges` of the method's record."""
    kind = registry.trainers[method].kinds[0]
    aim = "reward" if method == "reward" else USUAL_AIM[kind]
    situation = replace(HERE, kind=kind, aim=aim, rows=rows)
    chosen = advised.ask(registry, situation, Choice(method=method, weights=weights)).settings
    source = registry.trainers[weights if method == "sft" else method].ranges
    for path in ("training.learning_rate", "training.num_train_epochs", "rollout.num_generations"):
        if path in source and path in chosen:
            usual = numbers(source[path])
            assert min(usual) <= chosen[path][0] <= max(usual), path
    if weights == "lora":
        low, high = numbers(registry.trainers["lora"].ranges["adapter.r"])
        assert low <= chosen["adapter.r"][0] <= high
        assert chosen["adapter.lora_alpha"][0] == 2 * chosen["adapter.r"][0]


def test_large_models_learn_with_half_the_rate(registry: Registry) -> None:
    choice = Choice(method="sft", weights="qlora")
    rates = [
        advised.ask(registry, replace(HERE, parameters=size), choice).settings["training.learning_rate"][0]
        for size in (7 * 10**9, 33 * 10**9)
    ]
    assert rates == [2e-4, 1e-4]


def test_rows_are_no_longer_than_the_model_reads(registry: Registry) -> None:
    for weights, longest in (("lora", 1024), ("prompt", 1004)):
        situation = replace(HERE, long_row=5000, positions=1024)
        chosen = advised.ask(registry, situation, Choice(method="sft", weights=weights)).settings
        assert chosen["data.max_length"][0] == longest


def test_a_plugins_rule_comes_before_ours_by_its_priority() -> None:
    def dora(situation: Situation) -> Advice:
        return Advice(weights=("dora",), settings={"adapter.r": 4}, reason="we like it")

    for priority, first in ((1, "dora"), (0, "lora")):
        registry = with_rule(rule(dora, priority=priority))
        assert advised.ask(registry, HERE).names("weights")[0] == first
        chosen = advised.ask(registry, HERE, Choice(method="sft", weights="lora")).settings
        assert (chosen["adapter.r"][0] == 4) == (priority == 1)


def test_a_rule_that_fails_is_named() -> None:
    with pytest.raises(PluginError, match="plugin ours, plan rule 'ours': advise raised ZeroDivisionError"):
        advised.ask(with_rule(rule(lambda situation: Advice(reason=str(1 // 0)))), HERE)


@pytest.mark.parametrize("advice", [Advice(weights=("loar",), reason=""), Advice(strategies=("dpp",), reason="")])
def test_a_rule_that_advises_what_does_not_exist_is_named(advice: Advice) -> None:
    with pytest.raises(PluginError, match=r"the plan rule ours of ours advises (loar|dpp), which is not registered"):
        advised.ask(with_rule(rule(lambda situation: advice)), HERE)

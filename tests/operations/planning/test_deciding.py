"""A plan with its reasons and alternatives, what it says where nothing fits, and how long it takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlflow_ft.cli import plan_text
from mlflow_ft.config import resolve
from mlflow_ft.operations.planning import duration, recipe, remedies, typical
from mlflow_ft.operations.planning.candidates import Planner
from mlflow_ft.operations.planning.costs import Costs
from mlflow_ft.values import Choice, Hardware, Plan

PlanFor = Callable[..., Plan]
PAIRS_ON_A_SMALL_GPU: tuple[Any, ...] = (10_000, "preference", 1, 16, 7)


def test_what_fits_is_recommended_and_why_the_rest_is_not(plan_for: PlanFor) -> None:
    plan = plan_for(200_000, "conversation", 1, 24, 7)
    assert plan.recommended is not None
    assert plan.recommended.fits
    reasons = [reason.text for reason in plan.reasons]
    assert any("200,000 rows are over 100,000" in reason for reason in reasons)
    assert any(reason.startswith("full needs at least 104.") for reason in reasons)
    full = next(planned for planned in plan.alternatives if planned.choice.weights == "full")
    assert not full.fits


def test_the_alternatives_have_their_costs(plan_for: PlanFor) -> None:
    plan = plan_for(*PAIRS_ON_A_SMALL_GPU)
    assert {planned.command for planned in plan.alternatives} == {"dpo", "simpo"}
    assert all(planned.cost and planned.cost.memory for planned in plan.alternatives)
    assert "three trainings" in plan.elsewhere["rlhf"]


def test_the_rows_of_a_step_do_not_depend_on_what_fits(planner_for: Callable[..., Planner]) -> None:
    rows = set()
    for memory in (16, 24):
        planned = planner_for(10_000, "preference", 1, memory, 7).planned(Choice(method="dpo", weights="qlora"))
        assert planned.cost is not None
        rows.add(planned.cost.batch * planned.cost.accumulation)
    assert rows == {32}


def test_what_does_not_fit_on_a_shard_is_not_sharded(plan_for: PlanFor) -> None:
    """fsdp shares the weights out in training, but every process evaluates the whole model."""
    plan = plan_for(20_000, "conversation", 4, 24, 13)
    assert plan.recommended is not None
    assert (plan.recommended.choice.weights, plan.recommended.choice.strategy) == ("qlora", "ddp")
    assert plan.recommended.settings["launch.num_processes"] == 4


def test_a_merge_that_does_not_fit_is_left_for_later(plan_for: PlanFor) -> None:
    plan = plan_for(20_000, "conversation", 1, 24, 13)
    assert plan.recommended is not None
    assert plan.recommended.settings["package.packagers"] == ["adapter"]


def test_a_quantised_base_is_never_sharded(planner_for: Callable[..., Planner]) -> None:
    planned = planner_for(20_000, "conversation", 2, 24, 70).planned(
        Choice(method="sft", weights="qlora", strategy="fsdp")
    )
    assert "cannot be sharded" in planned.refused
    assert not planned.fits


def test_where_nothing_fits_it_says_what_would(planner_for: Callable[..., Planner], plan_for: PlanFor) -> None:
    setup = (20_000, "conversation", 2, 24, 70)
    plan = plan_for(*setup)
    assert plan.recommended is None
    planner = planner_for(*setup)
    assert [sentence.partition(":")[0] for sentence in remedies.on_other_hardware(planner)] == ["2 x GPU with 80 GB"]


def test_the_text_and_the_yaml_of_a_plan(plan_for: PlanFor, registry: Any, capsys: pytest.CaptureFixture[str]) -> None:
    plan = plan_for(*PAIRS_ON_A_SMALL_GPU)
    plan_text.show(plan, file="plan.yaml", is_written=False)
    shown = capsys.readouterr().out
    for words in ("Recommended: dpo with qlora", "(dpo-before-rlhf)", "Alternatives", "or rlhf:", "train dpo --config"):
        assert words in shown
    assert plan.recommended is not None
    written = recipe.as_yaml(plan, plan.recommended, file="plan.yaml")
    assert "quantize: nf4" in written
    assert "learning_rate: 2.0e-05  # an adapter takes ten times" in written


def test_a_plan_that_does_not_fit_says_so(plan_for: PlanFor, capsys: pytest.CaptureFixture[str]) -> None:
    plan = replace(plan_for(20_000, "conversation", 2, 24, 70), would_fit=["2 x GPU with 80 GB: qlora"])
    plan_text.show(plan, file="plan.yaml", is_written=False)
    shown = capsys.readouterr().out
    assert "Nothing fits:" in shown
    assert "qlora with ddp needs at least 32." in shown
    assert "What would fit:\n  - 2 x GPU with 80 GB: qlora" in shown
    assert "mlflow-ft train" not in shown


@pytest.mark.parametrize("billions", [0.135, 0.5, 1, 3, 7, 13, 34, 70])
def test_a_typical_model_has_the_size_that_was_asked_for(billions: float) -> None:
    assert typical.shape(billions * 1e9).weights == pytest.approx(billions * 1e9, rel=0.08)


def test_the_closed_form_of_these_tests_is_near_the_estimate(
    planner_for: Callable[..., Planner], registry: Any
) -> None:
    """For full fine-tuning, the quickest to estimate."""
    planner = planner_for(200_000, "conversation", 1, 80, 1)
    config = resolve("full", defaults=registry.trainers["full"].defaults)
    choice, how = Choice(method="sft", weights="full"), {"batch": 8, "eval_batch": 16, "per_device": 32}
    with typical.model(1e9, "1B") as base:
        real = Costs(base=base, registry=registry, situation=planner.situation).estimate(choice, config, **how)
    assert planner.costs.estimate(choice, config, **how).peak == pytest.approx(real.peak, rel=0.2)


def test_the_time_grows_with_rows_and_shrinks_with_devices(planner_for: Callable[..., Planner], registry: Any) -> None:
    config = resolve("lora", defaults=registry.trainers["lora"].defaults)
    about = planner_for(20_000, "conversation", 1, 24, 7).situation

    def hours(rows: int, gpus: int, strategy: str = "ddp") -> float:
        situation = replace(about, rows=rows, hardware=Hardware(gpus=gpus, memory=24))
        choice = Choice(method="sft", weights="lora", strategy=strategy)
        return duration.hours(situation, choice, config, processes=gpus, checkpointing=True)

    assert hours(40_000, 1) == pytest.approx(2 * hours(20_000, 1))
    assert hours(40_000, 2) == pytest.approx(hours(20_000, 1))
    assert hours(20_000, 2, "fsdp") > hours(20_000, 2)


@pytest.mark.parametrize(
    ("name", "memory", "peak"), [("NVIDIA A100-SXM4-80GB", 85, 312), ("NVIDIA L40S", 48, 362), ("", 16, 65)]
)
def test_the_speed_is_the_data_sheets(name: str, memory: float, peak: float) -> None:
    assert duration.tflops(Hardware(gpus=1, memory=memory, name=name)) == peak


def test_the_folder_of_a_typical_model_is_gone_after_use() -> None:
    with typical.model(1e9, "1B") as base:
        folder = Path(base.path)
        assert (folder / "config.json").is_file()
    assert not folder.exists()

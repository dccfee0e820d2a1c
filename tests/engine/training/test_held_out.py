"""The held-out loss ends a training, chooses the weights that are kept, and tells that a model overfits."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import EarlyStoppingCallback, TrainerControl, TrainerState, TrainingArguments

from mlflow_ft.engine.checkpoints import best, folder, keeper, tree
from mlflow_ft.engine.judging import judge
from mlflow_ft.engine.models import loading
from mlflow_ft.engine.training.held_out import Course
from mlflow_ft.progress import Progress
from mlflow_ft.rows import Example
from mlflow_ft.values import Resume
from tests.engine.checkpoints.test_resuming import curves, resumed, stopped, weights
from tests.engine.conftest import Bench
from tests.rarely import some_always

# --- the course of the loss, without a model


def course(losses: list[float], trained: list[float] | None = None, *, last: bool = False) -> Course:
    made = Course()
    for step, loss in enumerate(losses, start=1):
        if trained:
            made.trained(trained[step - 1])
        made.evaluated(step, loss, last=last and step == len(losses))
    return made


def stops(losses: list[float], patience: int) -> int | None:
    """The evaluation after which our training ends."""
    made = Course()
    for step, loss in enumerate(losses, start=1):
        made.evaluated(step, loss)
        if made.since >= patience:
            return step
    return None


def transformers_stops(losses: list[float], patience: int, folder: str) -> int | None:
    """The same for transformers' callback; its trainer notes the lowest loss after the callbacks."""
    arguments = TrainingArguments(
        output_dir=folder,
        load_best_model_at_end=True,
        eval_strategy="steps",
        save_strategy="steps",
        metric_for_best_model="loss",
    )
    state, control = TrainerState(), TrainerControl()
    callback = EarlyStoppingCallback(patience)
    for step, loss in enumerate(losses, start=1):
        callback.on_evaluate(arguments, state, control, {"eval_loss": loss})
        if control.should_training_stop:
            return step
        state.best_metric = loss if state.best_metric is None else min(loss, state.best_metric)
    return None


@given(st.lists(st.integers(0, 5).map(float), max_size=12), st.integers(1, 4))
def test_the_patience_is_that_of_transformers(losses: list[float], patience: int) -> None:
    assert stops(losses, patience) == transformers_stops(losses, patience, "unused")


@pytest.mark.parametrize(
    ("losses", "trained", "last", "expected"),
    [
        ([2.0, 1.0, 1.2, 1.3], [4.0, 3.0, 2.0, 1.0], False, "after step 2 (1 -> 1.3 at step 4)"),
        ([2.0, 1.0, 1.2], [4.0, 3.0, 2.0], False, ""),  # one loss may be chance
        ([2.0, 1.0, 1.2], [4.0, 3.0, 2.0], True, "after step 2 (1 -> 1.2 at step 3)"),  # there will be no other
        ([2.0, 1.0, 1.2, 0.9, 1.2], [5.0, 4.0, 3.0, 2.0, 1.0], False, ""),
        ([2.0, 1.0, 1.005, 1.009], [4.0, 3.0, 2.0, 1.0], False, ""),  # no rise to speak of
        ([2.0, 1.0, 1.2, 1.3], [4.0, 3.0, 3.1, 3.2], False, ""),  # training diverges: another problem
        ([2.0, 1.0, 1.2, 1.3], [4.0, 3.0, 2.99, 2.98], False, ""),
        ([1.0, 1.2, 1.3, 9.0], [4.0, 3.0, 2.0, 1.0], False, "after step 1 (1 -> 1.3 at step 3)"),  # the first time
        ([-1.0, -0.8, -0.7], [4.0, 3.0, 2.0], False, "after step 1 (-1 -> -0.7 at step 3)"),
        ([1.0, 1.2, 1.3], None, False, ""),  # no training loss was logged
    ],
)
def test_overfitting(losses: list[float], trained: list[float] | None, *, last: bool, expected: str) -> None:
    said = course(losses, trained, last=last).overfitting
    assert expected in said
    assert bool(said) is bool(expected)


def test_a_course_continues_where_it_was() -> None:
    losses, trained = [2.0, 1.0, 1.2, 1.3], [4.0, 3.0, 2.0, 1.0]
    whole, half = course(losses, trained), course(losses[:3], trained[:3])
    half.trained(trained[3])
    again = Course()
    again.load_state_dict(tree.put_together(tree.taken_apart(half.state_dict(), {}), {}))
    again.evaluated(4, losses[3])
    assert again.state_dict() == whole.state_dict()
    assert whole.overfitting


# --- trainings


def turn(text: str, role: str = "assistant") -> tuple[dict[str, str], ...]:
    return ({"role": role, "content": text},)


def contrary(count: int = 16, *, pairs: bool = False) -> list[Example]:
    """Rows of which the held-out quarter asks for the opposite of what is learned."""
    rows = []
    for number in range(count):
        asked, good, bad = turn(f"say {number}", "user"), "stone river lamp door", "red green blue red"
        if number >= count // 4:
            good, bad = bad, good
        rows.append(
            Example(messages=asked, chosen=turn(good), rejected=turn(bad))
            if pairs
            else Example(messages=asked + turn(good))
        )
    return rows


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "full": ("full", {"learning_rate": 0.01}),
    "lora": ("lora", {"learning_rate": 0.1}),
    "qlora": ("qlora", {"learning_rate": 0.1}),
    "prompt": ("prompt", {"learning_rate": 1}),
    "pissa": ("lora", {"learning_rate": 0.1, "adapter.init_lora_weights": "pissa"}),
    "dpo": ("dpo", {"learning_rate": 0.05}),
    "cpo": ("cpo", {"learning_rate": 0.05}),
    "simpo": ("simpo", {"learning_rate": 0.05}),
    "kto": ("kto", {"learning_rate": 0.05}),
    "reward": ("reward", {"learning_rate": 0.05}),
}
STEPS = 8


def lay(bench: Callable[..., Bench], case: str, **settings: Any) -> Bench:
    method, own = CASES[case]
    pairs = method in ("dpo", "cpo", "simpo", "kto", "reward")
    common = {"max_steps": STEPS, "eval_steps": 1, "lr_scheduler_type": "constant", "warmup_steps": 0}
    rows = contrary(pairs=pairs)
    return bench(method, rows=rows, **{"evaluation.samples": 0}, **(common | own | settings))


def held_out(setup: Bench) -> list[float]:
    """The held-out losses after the steps."""
    return setup.curve("eval/loss")[1:]


@pytest.mark.parametrize("case", some_always(CASES, "full", "qlora", "dpo"))
def test_the_training_ends_and_its_best_weights_are_kept(bench: Callable[..., Bench], case: str) -> None:
    """With a constant rate, a training of so many steps has the weights that were kept."""
    setup = lay(bench, case, early_stopping=2, save_total_limit=1)
    trained, losses = setup.train(), held_out(setup)
    assert trained.chosen is not None
    lowest, steps = losses.index(min(losses)) + 1, len(losses)
    assert (trained.chosen.step, trained.chosen.loss, trained.chosen.steps) == (lowest, min(losses), steps)
    assert steps == lowest + 2 < STEPS
    assert f"at step {steps} of {STEPS}: 2 held-out losses in a row" in trained.stopped
    assert trained.metrics["train/chosen_step"] == lowest
    assert trained.metrics["train/steps"] == steps
    assert {folder.step_of(place) for place in folder.complete(keeper.place(setup.job))} == {lowest, steps}
    until = lay(bench, case, max_steps=lowest)
    until.train()
    assert tree.differences(weights(until), weights(setup)) == []


def test_without_load_best_the_last_weights_are_kept(bench: Callable[..., Bench]) -> None:
    setup = lay(bench, "full", early_stopping=2, load_best="false")
    trained, losses = setup.train(), held_out(setup)
    assert (trained.chosen, len(losses) < STEPS, "at step" in trained.stopped) == (None, True, True)
    until = lay(bench, "full", max_steps=len(losses))
    until.train()
    assert tree.differences(weights(until), weights(setup)) == []


def test_the_best_weights_of_a_whole_training(bench: Callable[..., Bench]) -> None:
    """AdaLoRA: the ranks are those of the weights. A checkpoint between two evaluations has no held-out loss."""
    more = {"adapter.kind": "adalora", "eval_steps": 3, "save_steps": 4, "save_total_limit": 9}
    setup = lay(bench, "lora", load_best="true", **more)
    trained, losses = setup.train(), held_out(setup)
    assert trained.chosen is not None
    assert len(losses) == 3  # after steps 3, 6, and the last one, 8
    assert (trained.chosen.step, trained.chosen.loss) == ([3, 6, 8][losses.index(min(losses))], min(losses))
    assert (trained.chosen.step, trained.stopped) == (3, "")
    place, adapter = keeper.place(setup.job), trained.adapter
    assert adapter is not None
    assert [folder.facts(one)["eval_loss"] for one in folder.complete(place)] == [losses[0], None, losses[2]]
    ranks = folder.read(place / folder.name(3))["callbacks"]["AllocateCallback.1"]["ranks"]
    kept = json.loads((adapter / "adapter_config.json").read_text())["rank_pattern"]
    assert sorted(map(sum, kept.values())) == sorted(map(sum, ranks.values()))
    module = loading.load_trained(setup.job, setup.data, trained)
    rows = judge.row_losses(
        module, setup.data.eval.encoded, batch_size=4, pad_token_id=setup.data.tokenizer.pad_token_id
    )
    assert judge.mean_loss(rows) == pytest.approx(min(losses), rel=1e-5)


def test_by_default_nothing_of_it_happens(bench: Callable[..., Bench]) -> None:
    setup = lay(bench, "full")
    trained = setup.train()
    assert (trained.chosen, trained.stopped, len(held_out(setup))) == (None, "", STEPS)


def spoken(setup: Bench) -> tuple[Bench, list[str]]:
    """The bench with a progress whose lines are kept."""
    said: list[str] = []

    class Told(Progress):
        def say(self, text: str) -> None:
            said.append(text)

        def warn(self, text: str) -> None:
            said.append(f"warning: {text}")

    return replace(setup, job=replace(setup.job, progress=Told(quiet=True))), said


def test_overfitting_is_told_once_with_the_remedies(bench: Callable[..., Bench]) -> None:
    setup, said = spoken(lay(bench, "full"))
    trained = setup.train()
    (warning,) = [text for text in said if "the model overfits" in text]
    assert re.match(r"warning: the held-out loss rose after step \d+ \(.* -> .* at step \d+\) while", warning)
    for remedy in ("--training.load_best true", "--training.early_stopping 3", "--training.num_train_epochs"):
        assert remedy in warning
    (finding,) = trained.findings
    assert finding in warning
    setup, said = spoken(lay(bench, "full", early_stopping=2))
    (finding,) = setup.train().findings
    assert finding.endswith(" were kept")
    (warning,) = [text for text in said if "the model overfits" in text]
    assert "the best checkpoint is kept" in warning
    assert "--training.load_best" not in warning
    assert len([text for text in said if text.startswith("the training ends early, at step ")]) == 1


# --- resumed


def check_same(whole: Bench, parts: Bench) -> None:
    assert tree.differences(weights(whole), weights(parts)) == []
    assert tree.differences(curves(whole), curves(parts)) == []


@pytest.mark.fault("a signal in a training that ends early")
@pytest.mark.parametrize("step", some_always([4, 5, 6, 7], 5, 7))
def test_a_resumed_training_ends_at_the_same_step(bench: Callable[..., Bench], step: int) -> None:
    """Step 5 has the lowest loss, 7 is the last; after a signal in either, `resume` makes up for its evaluation."""
    whole = lay(bench, "full", early_stopping=2, save_steps=100)
    expected = whole.train()
    assert expected.chosen is not None
    assert (expected.chosen.step, expected.chosen.steps) == (5, 7)
    parts = stopped(lay(bench, "full", early_stopping=2, save_steps=100), step)
    assert folder.step_of(folder.complete(keeper.place(parts.job))[-1]) == step
    again = resumed(parts)
    check_same(whole, again)
    found = best.measured(keeper.place(again.job))[0]
    assert (found.step, found.loss) == (5, expected.chosen.loss)


@pytest.mark.parametrize("case", some_always(["full", "dpo", "lora"], "full"))
def test_what_has_ended_is_not_trained_on(bench: Callable[..., Bench], case: str) -> None:
    """Killed after the stop, before the weights were saved."""
    setup = lay(bench, case, early_stopping=2, save_total_limit=1)
    expected = setup.train()
    kept, points = weights(setup), list(setup.points)
    for name in ("adapter", "model"):
        shutil.rmtree(setup.job.folder / "train" / name, ignore_errors=True)
    again = resumed(setup)
    assert curves(again) == [point for point in points if "per_second" not in point[0] and "step_time" not in point[0]]
    assert tree.differences(kept, weights(again)) == []
    checkpoint = folder.latest(keeper.place(setup.job), print)
    assert checkpoint is not None
    assert folder.step_of(checkpoint) == expected.metrics["train/steps"] < STEPS


def test_a_best_checkpoint_that_is_lost_is_told(bench: Callable[..., Bench]) -> None:
    """Its files are damaged; the next best is kept, and the result says so."""
    setup = lay(bench, "full", early_stopping=2, save_steps=1, save_total_limit=9)
    expected = setup.train().chosen
    assert expected is not None
    place = keeper.place(setup.job)
    (place / folder.name(expected.step) / "weights.safetensors").unlink()
    shutil.rmtree(setup.job.folder / "train" / "model")
    setup, said = spoken(setup)
    second = best.measured(place)[1]
    resume = Resume(checkpoint=folder.latest(place, print))
    trained = replace(setup, job=replace(setup.job, resume=resume)).train()
    assert trained.chosen is not None
    assert (trained.chosen.step, trained.chosen.loss) == (second.step, second.loss)
    lost = f"the checkpoint of step {expected.step}, which had the lowest held-out loss ({expected.loss:.4g}), was lost"
    assert any(text.startswith(f"warning: {lost}") for text in said)
    assert any(finding.startswith(lost) for finding in trained.findings)


def test_what_cannot_be_measured_is_no_loss(tmp_path: Path) -> None:
    for step, loss in ((1, 2.0), (2, math.nan), (3, None), (4, 1.0), (5, 0.5), (6, 1.0)):
        facts = {"step": step, "eval_loss": loss, "frozen_sha256": ""}
        folder.finish(folder.write(tmp_path, step, {}), facts)
    (tmp_path / folder.name(1) / folder.FACTS).write_text("{")
    assert [one.step for one in best.measured(tmp_path)] == [5, 4, 6]
    assert [one.step for one in best.measured(tmp_path, until=4)] == [4]

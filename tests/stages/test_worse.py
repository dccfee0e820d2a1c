"""What is said of a training that made its model worse, and when: on made-up scores, by every built-in method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mlflow_ft import Score, plugins
from mlflow_ft.cli.asked import asked
from mlflow_ft.progress import Progress
from mlflow_ft.registry import Registry
from mlflow_ft.stages import evaluate, worse
from mlflow_ft.values import Worse

LOADED = plugins.load({"MLFLOW_FT_PLUGINS": "ppo"})
REGISTRY = Registry(LOADED)
TOKENS = 1000
REWARDED = ("--reward_funcs=exact-answer",)


class ListedRun:
    """Keeps the tags; MLflow itself is asked in tests/reports/test_evidence.py."""

    def __init__(self) -> None:
        self.tags = {"mlflow.note.content": "what the user wrote"}

    def set_tags(self, tags: dict[str, str]) -> None:
        self.tags |= tags

    def read(self) -> Any:
        return SimpleNamespace(data=SimpleNamespace(tags=self.tags))


def score(name: str, rows: Sequence[float | None], value: float | None = None) -> Score:
    mean = Score.mean(name, rows)
    return mean if value is None else Score(name=name, value=value, rows=mean.rows)


def looked(
    method: str, base: Sequence[Score], tuned: Sequence[Score], *more: str, said: list[str] | None = None
) -> tuple[Worse | None, dict[str, str]]:
    """What is found, and the tags of the run."""
    rewarded = REWARDED if method in ("grpo", "rloo", "ppo") else ()
    run, progress = ListedRun(), Progress(quiet=True)
    if said is not None:
        progress.warn = said.append  # type: ignore[method-assign]  # listens in
        progress.say = said.append  # type: ignore[method-assign]  # listens in
    job: Any = SimpleNamespace(
        config=asked([method, "--model=x", *rewarded, *more], LOADED), registry=REGISTRY, run=run, progress=progress
    )
    return worse.find(job, *kept(base, tuned), tokens=TOKENS), run.tags


def kept(base: Sequence[Score], tuned: Sequence[Score]) -> tuple[Any, Any]:
    """The scores of both models, and the rows of them that a run keeps."""
    scores: Any = SimpleNamespace(base=tuple(base), tuned=tuple(tuned))
    data: Any = SimpleNamespace(eval=SimpleNamespace(digest="d"), guards={})
    return scores, evaluate.row_scores(scores, data, asked(["lora", "--model=x"], LOADED))["scores"]


SCORE_OF = {
    **dict.fromkeys(("sft", "full", "lora", "qlora", "dora", "ia3", "prompt", "prefix", "ptuning", "adapter"), "loss"),
    **dict.fromkeys(("dpo", "cpo", "simpo", "orpo", "reward"), "preference_accuracy"),
    "kto": "label_margin",
    **dict.fromkeys(("grpo", "rloo", "ppo"), "weighted_reward"),
}


def test_every_method_says_what_it_is_for() -> None:
    ours = [
        trainer
        for trainer in REGISTRY.trainers
        if REGISTRY.trainers.provider(trainer.name).startswith(("builtin.", "ppo"))
    ]
    assert {trainer.name: trainer.scores[0] for trainer in ours} == SCORE_OF


@pytest.mark.parametrize("method", SCORE_OF)
def test_a_method_is_judged_by_what_it_is_for_in_the_right_direction(method: str) -> None:
    name = SCORE_OF[method]
    high, low = [1.0] * 40, [0.0] * 40
    bad, good = (high, low) if name == "loss" else (low, high)
    others = [score("exact_match", high), score("other", low)]
    verdict, tags = looked(method, [score(name, good), *others], [score(name, bad), *others])
    assert verdict
    assert (verdict.score, verdict.sure) == (name, True)
    assert tags["mlflow_ft.worse"] == verdict.sentence
    assert tags["mlflow.note.content"].startswith(f"**Worse than its base.** {verdict.sentence}")
    assert tags["mlflow.note.content"].endswith("what the user wrote")
    assert looked(method, [score(name, bad)], [score(name, good)])[0] is None
    assert looked(method, [score(name, good)], [score(name, good)])[0] is None


def test_kto_on_preferences_and_a_method_without_its_score_take_the_next() -> None:
    pairs = [score("preference_accuracy", [1.0] * 40)], [score("preference_accuracy", [0.0] * 40)]
    for method in ("kto", "lora"):
        verdict, _ = looked(method, *pairs)
        assert verdict
        assert verdict.score == "preference_accuracy"
    assert looked("lora", [score("cost", [1.0] * 40)], [score("cost", [0.0] * 40)])[0] is None  # who knows which way?


def test_what_the_training_began_with_is_named_where_it_was_trained_before() -> None:
    scores, rows = kept([score("loss", [1.0] * 40)], [score("loss", [2.0] * 40)])
    job: Any = SimpleNamespace(
        config=asked(["lora", "--model=x"], LOADED), registry=REGISTRY, run=ListedRun(), progress=Progress(quiet=True)
    )
    verdict = worse.find(job, scores, rows, tokens=TOKENS, began="tiny with the adapter models:/chat/3")
    assert verdict
    assert verdict.sentence.startswith(
        "the tuned model is worse than its base (tiny with the adapter models:/chat/3): loss"
    )


def test_what_may_be_chance_is_said_and_no_more() -> None:
    said: list[str] = []
    base, tuned = [2.0, 2.1] * 20, [2.05, 2.06] * 20
    verdict, tags = looked("lora", [score("loss", base)], [score("loss", tuned)], said=said)
    assert verdict
    assert not verdict.sure
    assert "this may be chance" in verdict.sentence
    assert "rows would be needed to tell" in verdict.sentence
    assert said == [verdict.sentence]
    assert "mlflow_ft.worse" not in tags


@pytest.mark.parametrize("rows", [1, 3, 6])
def test_few_rows_show_what_is_overwhelming_and_nothing_else(rows: int) -> None:
    before = [6.0 + 0.1 * number for number in range(rows)]
    for by, sure in ((24.0, True), (1.1, True), (0.9, False)):
        verdict, _ = looked("full", [score("loss", before)], [score("loss", [value + by for value in before])])
        assert verdict
        assert verdict.sure is sure, by
    one_better, _ = looked("full", [score("loss", [6.0, 6.0])], [score("loss", [30.0, 5.9])])
    assert one_better
    assert not one_better.sure
    wrong, _ = looked("dpo", [score("preference_accuracy", [1.0] * rows)], [score("preference_accuracy", [0.0] * rows)])
    assert wrong
    assert not wrong.sure


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("method", ["full", "dpo"])
def test_a_loss_that_is_nan_or_infinite(method: str, value: float) -> None:
    pairs = [score("preference_accuracy", [1.0] * 3)]
    verdict, tags = looked(
        method, [score("loss", [6.0] * 3), *pairs], [score("loss", [value, 6.0, 6.0], value=value), *pairs]
    )
    assert verdict
    assert (verdict.sure, verdict.broken) == (True, True)
    assert f"{value} after" in tags["mlflow_ft.worse"]
    assert looked(method, [score("loss", [value])], [score("loss", [value])])[0] is None  # the base is no better


def test_a_model_that_guesses_worse_than_chance_is_worse_whatever_it_was_trained_for() -> None:
    pairs, guess = [score("preference_accuracy", [1.0] * 5)], math.log(TOKENS)
    for method, name in (("dpo", "loss"), ("kto", "good_loss")):
        verdict, _ = looked(method, [score(name, [2.0] * 5), *pairs], [score(name, [guess + 2.1] * 5), *pairs])
        assert verdict
        assert verdict.sure
        assert "guessing among all 1,000 tokens" in verdict.sentence
        usual, _ = looked(method, [score(name, [2.0] * 5), *pairs], [score(name, [guess] * 5), *pairs])
        assert usual is None  # preferences make the chosen answers less likely, too


def test_guard_sets_and_rows_without_a_score_do_not_count() -> None:
    guard = Score(name="safety/loss", value=9.0, rows=(9.0,) * 40, guard="safety")
    before = Score(name="safety/loss", value=1.0, rows=(1.0,) * 40, guard="safety")
    assert looked("lora", [score("loss", [1.0] * 40), before], [score("loss", [0.9] * 40), guard])[0] is None
    rows = [None, *[1.0] * 39]
    verdict, _ = looked("lora", [score("loss", rows)], [score("loss", [*[1.5] * 39, None])])
    assert verdict
    assert "on 38 held-out rows" in verdict.sentence
    assert looked("lora", [score("loss", [1.0] * 40)], [score("loss", [2.0] * 39)])[0] is None  # other rows


def test_the_job_s_gates_know_which_own_scores_are_better_lower(tmp_path: Path) -> None:
    gates = tmp_path / "gates.yaml"
    gates.write_text("lower_is_better: [preference_accuracy]\n")
    pairs = [score("preference_accuracy", [0.0] * 40)], [score("preference_accuracy", [1.0] * 40)]
    assert looked("dpo", *pairs)[0] is None
    verdict, _ = looked("dpo", *pairs, f"--registry.gates={gates}")
    assert verdict
    assert verdict.sure

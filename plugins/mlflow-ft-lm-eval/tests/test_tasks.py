"""What is wrong with the tasks is said before anything is loaded."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow_ft_lm_eval
import pytest
from lm_eval.tasks import TaskManager
from mlflow_ft_lm_eval.engine import tasks
from mlflow_ft_lm_eval.options import LmEvalOptions

from mlflow_ft import ConfigError


def settings(evaluators: list[str] | None = None, **options: Any) -> Any:
    """A config as the plugin sees it."""
    own = LmEvalOptions(**options)
    return SimpleNamespace(options=lambda kind: own, evaluation=SimpleNamespace(evaluators=evaluators))


def test_without_tasks_nothing_is_run_and_nothing_is_wrong() -> None:
    assert mlflow_ft_lm_eval.refuses(settings()) is None
    assert mlflow_ft_lm_eval.evaluate(SimpleNamespace(config=settings())) == ()  # type: ignore[arg-type]  # of a config


def test_named_without_tasks_it_says_how_to_set_them() -> None:
    reason = mlflow_ft_lm_eval.refuses(settings(["lm-eval"]))
    assert reason == "no task is set; name some: --plugins.lm-eval.tasks arc_easy,my_task.yaml"


def test_without_the_harness_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    reason = mlflow_ft_lm_eval.refuses(settings(tasks=["arc_easy"]))
    assert reason == "the harness is not installed: pip install 'mlflow-ft[lm-eval]'"


def test_good_files_are_loaded(task_files: list[str]) -> None:
    assert mlflow_ft_lm_eval.refuses(settings(tasks=task_files)) is None
    assert list(tasks.load(tasks.wanted(LmEvalOptions(tasks=task_files)))["tasks"]) == ["colours", "reverse"]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    reason = mlflow_ft_lm_eval.refuses(settings(tasks=[str(tmp_path / "none.yaml")]))
    assert reason is not None
    assert reason.startswith(f"there is no task file {tmp_path / 'none.yaml'}; looked in ")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("task: broken\noutput_type: multiple_choice\n", "cannot be loaded"),
        ("task: [", "cannot be loaded"),
        ("a: 1\n", "cannot be loaded"),
        ("task: gone\ndataset_path: json\ndataset_kwargs: {data_files: {test: none.jsonl}}\n", "none.jsonl"),
    ],
)
def test_a_file_that_is_no_task_is_named(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(text)
    reason = mlflow_ft_lm_eval.refuses(settings(tasks=[str(file)]))
    assert reason is not None
    assert reason.startswith(f"the task {file} cannot be loaded: ")
    assert said in reason


def test_code_that_the_model_writes_is_not_run(task_files: list[str], tmp_path: Path) -> None:
    file = tmp_path / "unsafe.yaml"
    file.write_text(Path(task_files[0]).read_text() + "unsafe_code: true\n")
    reason = mlflow_ft_lm_eval.refuses(settings(tasks=[str(file)]))
    assert reason == "the task colours runs code that the model writes, which is not supported; leave it out"


def test_an_unknown_name_gets_the_nearest(monkeypatch: pytest.MonkeyPatch, task_files: list[str]) -> None:
    """With an index of our own tasks: that of the harness takes ten seconds or more."""
    few = TaskManager(include_defaults=False, include_path=str(Path(task_files[0]).parent))
    monkeypatch.setattr(tasks, "manager", lambda *, with_names: few)
    reason = mlflow_ft_lm_eval.refuses(settings(tasks=["colour"]))
    assert reason == "the harness has no task 'colour'; did you mean colours?"
    reason = mlflow_ft_lm_eval.refuses(settings(tasks=["qqqq"]))
    assert reason is not None
    assert "`lm-eval ls tasks` lists" in reason
    assert list(tasks.expanded(["col*", "reverse"])) == ["colours", "reverse"]
    assert mlflow_ft_lm_eval.refuses(settings(tasks=["col*", "reverse"])) is None


@pytest.mark.long
def test_the_names_of_the_harness_are_known_and_their_data_is_needed() -> None:
    reason = mlflow_ft_lm_eval.refuses(settings(tasks=["arc_esy"]))
    assert reason is not None
    assert reason.startswith("the harness has no task 'arc_esy'; did you mean arc_easy")
    reason = mlflow_ft_lm_eval.refuses(settings(tasks=["arc_eas*"]))
    assert reason is not None
    assert reason.startswith("the task arc_easy cannot be loaded: ")
    assert reason.endswith("its data comes from the Hub: is that reachable?")


@pytest.mark.parametrize(
    "wrong", [{"batch_size": 0}, {"limit": 0}, {"limit": 2.5}, {"num_fewshot": -1}, {"max_new_tokens": 0}]
)
def test_a_number_out_of_range_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        LmEvalOptions(**wrong)


def test_contract(plugin_contract: Callable[..., None], task_files: list[str]) -> None:
    plugin_contract(mlflow_ft_lm_eval, settings={"plugins.lm-eval.tasks": ",".join(task_files)})


def test_a_misspelt_option_is_refused_before_anything(fine_tune: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tasks"):
        fine_tune("lora", model=tmp_path / "none", **{"plugins.lm-eval.taks": "arc_easy"})

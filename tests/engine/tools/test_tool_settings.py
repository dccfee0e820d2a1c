"""The table of a tool's settings: every setting is sent, carried or refused, and none is dropped in silence."""

from __future__ import annotations

from typing import Any

import pytest

from mlflow_ft import plugins
from mlflow_ft.cli.asked import asked
from mlflow_ft.engine.tools.tool_settings import OURS, carried, find, only, sent, translated, unsuited

TABLE = (
    sent("training.learning_rate", "lr"),
    sent("training.gradient_checkpointing", "checkpointing", lambda on: "fast" if on else None),
    only("objective.packing", False, because="it cannot pack"),
    carried("adapter.*", "its files"),
)


def config(*pairs: str) -> Any:
    return asked(["lora", "--data", "rows.jsonl", *pairs], plugins.load({"MLFLOW_FT_PLUGINS": ""}))


def test_settings_are_sent_under_their_names_and_none_is_left_out() -> None:
    values = {"training.learning_rate": 0.1, "training.gradient_checkpointing": False}
    assert translated(TABLE, values) == {"lr": 0.1}
    assert translated(TABLE, values | {"training.gradient_checkpointing": True}) == {"lr": 0.1, "checkpointing": "fast"}


@pytest.mark.parametrize(
    ("pairs", "reason"),
    [
        (["--objective.packing", "true"], "objective.packing true: it cannot pack"),
        (["--model.dtype", "bfloat16"], "model.dtype: lora does not know this setting; remove it"),
        (["--training.log_checkpoints", "true"], "training.log_checkpoints true: the model is in another process"),
        (["--evaluation.samples", "8"], "evaluation.samples 8: the model is in another process"),
        (["--launch.launcher", "accelerate"], "launch.launcher accelerate: a single process trains"),
    ],
)
def test_what_the_tool_cannot_do_is_refused(pairs: list[str], reason: str) -> None:
    (found,) = unsuited(TABLE, config(*pairs))
    assert found.startswith(reason)


def test_what_was_not_set_is_not_refused() -> None:
    assert unsuited(TABLE, config("--adapter.r", "4")) == []


def test_an_interpreter_that_is_not_there_is_refused() -> None:
    assert "there is no interpreter /nowhere/python" in unsuited(TABLE, config(), python="/nowhere/python")[0]


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    asked_for = config()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert unsuited(TABLE, asked_for) == [
        "2 processes were started, and the tool trains in one: start the command alone"
    ]


def test_the_own_entry_of_a_tool_comes_first() -> None:
    own = sent("training.save_steps", "save_steps")
    assert find([own], "training.save_steps") is own
    assert find([], "training.save_steps") in OURS

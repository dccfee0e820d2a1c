"""Sampled answers are logged early and at every evaluation, and have no effect on training."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mlflow_ft.engine.judging import judge
from mlflow_ft.engine.models import loading
from mlflow_ft.engine.training import samples
from mlflow_ft.errors import TrackingError
from mlflow_ft.rows import Example

Bench = Callable[..., Any]


def weights(trained: Any) -> dict[str, torch.Tensor]:
    folder = trained.adapter or trained.model
    return {name: weight for file in folder.glob("*.safetensors") for name, weight in load_file(file).items()}


def test_a_table_at_every_evaluation(bench: Bench) -> None:
    setup = bench("full", eval_steps=2, learning_rate=5e-3)
    trained = setup.train()
    tables = setup.job.run.tables
    assert list(tables) == [f"samples/step_00000{step}.json" for step in (0, 1, 2, 4)]
    assert [[row["step"] for row in rows] for rows in tables.values()] == [[0] * 4, [1] * 4, [2] * 4, [4] * 4]
    asked = [example.messages for example in samples.prompts(setup.job, setup.data)]
    assert len(set(map(repr, asked))) == 4
    for rows in tables.values():
        assert [(row["prompt"], row["expected"]) for row in rows] == [(a["content"], b["content"]) for a, b in asked]
    module = loading.load_trained(setup.job, setup.data, trained)
    wanted = judge.answers(module, setup.data, samples.prompts(setup.job, setup.data), max_new_tokens=8, batch_size=4)
    assert [(row["answer"], row["finished"]) for row in tables["samples/step_000004.json"]] == [
        (answer.text, answer.finished) for answer in wanted
    ]
    assert tables["samples/step_000000.json"] != tables["samples/step_000004.json"]


@pytest.mark.parametrize(
    ("steps", "every", "sampled"),
    [
        (21, 10, [0, 3, 10, 20, 21]),
        (20, 2, [0, *range(2, 21, 2)]),
        (21, 2, [0, *range(2, 21, 2), 21]),
        (5, 0.5, [0, 1, 3, 5]),
    ],
)
def test_a_tenth_of_the_steps_is_enough_to_see_answers(
    bench: Bench, steps: int, every: float, sampled: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judge, "answers", lambda *_, **__: [])
    setup = bench("lora", max_steps=steps, eval_steps=every)
    setup.train()
    assert list(setup.job.run.tables) == [f"samples/step_{step:06}.json" for step in sampled]


@pytest.mark.parametrize(
    ("method", "more"),
    [
        pytest.param("full", {}, marks=pytest.mark.long),
        ("lora", {"lora_dropout": 0.3, "learning_rate": 1e-2, "gradient_checkpointing": True}),
        pytest.param("qlora", {"lora_dropout": 0.3, "learning_rate": 1e-2}, marks=pytest.mark.long),
    ],
)
def test_samples_change_nothing_of_what_is_learned(bench: Bench, method: str, more: dict[str, Any]) -> None:
    """Dropout draws random numbers in every step."""
    benches = [bench(method, eval_steps=2, **{"evaluation.samples": count}, **more) for count in (0, 3)]
    without, with_them = (weights(setup.train()) for setup in benches)
    assert [len(setup.job.run.tables) for setup in benches] == [0, 4]
    assert without.keys() == with_them.keys()
    assert all(torch.equal(without[name], with_them[name]) for name in without)
    assert benches[0].curve("train/loss") == benches[1].curve("train/loss")


def test_what_is_done_aside_leaves_no_trace() -> None:
    module = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Linear(2, 2))
    module.train()
    module[1].eval()
    for generator, draw in (
        (random, random.random),
        (np.random, np.random.rand),
        (torch, lambda: torch.rand(1).item()),
    ):
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        state = {random: random.getstate, np.random: np.random.get_state, torch: torch.get_rng_state}[generator]()
        with samples.aside(module), pytest.raises(ZeroDivisionError), samples.aside(module):
            assert [part.training for part in module.modules()] == [False, False, False]
            draw()
            torch.manual_seed(3)
            assert 1 / 0
        expected = draw()
        {random: random.setstate, np.random: np.random.set_state, torch: torch.set_rng_state}[generator](state)
        assert draw() == expected
    assert [part.training for part in module.modules()] == [True, True, False]


def test_prompts_differ_and_can_be_answered(bench: Bench) -> None:
    setup = bench("full")
    turns = [{"role": "user", "content": text} for text in ("a", "a", "b", "c")]
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    examples = [
        Example(text="no question"),
        Example(messages=(turns[0], call)),
        *(Example(messages=(turn, {"role": "assistant", "content": str(n)})) for n, turn in enumerate(turns)),
    ]
    held_out: Any = SimpleNamespace(eval=SimpleNamespace(examples=examples))
    assert [example.prompt[-1]["content"] for example in samples.prompts(setup.job, held_out)] == ["a", "b", "c"]
    two = bench("full", **{"evaluation.samples": 2})
    assert [example.answer for example in samples.prompts(two.job, held_out)] == ["0", "2"]
    assert samples.prompts(bench("full", **{"evaluation.samples": 0}).job, held_out) == []
    assert samples.prompts(bench("reward").job, held_out) == []


def test_answers_are_short(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def answers(*_: Any, max_new_tokens: int, **__: Any) -> list[Any]:
        asked.append(max_new_tokens)
        return []

    monkeypatch.setattr(judge, "answers", answers)
    for limit in (8, 500):
        bench("full", max_steps=1, max_new_tokens=limit).train()
    assert set(asked) == {8, samples.LONGEST}


# --- the tables' way to the server


class Server:
    """Takes tables, slowly, or is away."""

    stopping = False

    def __init__(self) -> None:
        self.taken: list[str] = []
        self.away = False
        self.open = threading.Event()
        self.open.set()

    def table(self, rows: Sequence[Mapping[str, Any]], path: str) -> None:
        self.open.wait(10)
        if self.away:
            raise TrackingError("the server is away")
        self.taken.append(path)


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def tables(server: Server) -> samples.Tables:
    return samples.Tables(SimpleNamespace(run=server))  # type: ignore[arg-type]  # all that they need of a job


def test_training_does_not_wait_for_the_server(server: Server, tables: samples.Tables) -> None:
    server.open.clear()
    begun = time.monotonic()
    tables.put([], "1")
    tables.put([], "2")
    assert time.monotonic() - begun < 1
    assert server.taken == []
    server.open.set()
    tables.close()
    assert server.taken == ["1", "2"]


def test_a_table_that_was_refused_goes_with_the_next(server: Server, tables: samples.Tables) -> None:
    server.away = True
    tables.put([], "1")
    assert tables._sending is not None
    tables._sending.result()
    server.away = False
    tables.put([], "2")
    tables.close()
    assert server.taken == ["1", "2"]


def test_what_cannot_be_delivered_is_told(
    server: Server, tables: samples.Tables, caplog: pytest.LogCaptureFixture
) -> None:
    server.away = True
    tables.put([], "samples/step_000001.json")
    with caplog.at_level(logging.WARNING):
        tables.close()
    assert "not logged, because the server was unreachable: samples/step_000001.json" in caplog.text


def test_a_run_that_stops_does_not_wait_for_it_twice(server: Server, tables: samples.Tables) -> None:
    server.away = True
    tables.put([], "1")
    assert tables._sending is not None
    tables._sending.result()
    server.away, server.stopping = False, True
    tables.close()
    assert server.taken == []


def test_they_are_in_the_run(
    tracking_store: str, fine_tune: Callable[..., Any], tiny_model: Path, tiny_rows: Path
) -> None:
    import mlflow

    outcome = fine_tune("full", model=tiny_model, data=tiny_rows, max_steps=2)
    tags = mlflow.MlflowClient().get_run(outcome.run_id).data.tags
    for step in range(3):
        path = f"samples/step_{step:06}.json"
        assert path in tags["mlflow.loggedArtifacts"]
        table = mlflow.load_table(path, run_ids=[outcome.run_id])
        assert list(table["step"]) == [step] * 2  # the rows that are held out ask for two things
        assert {"prompt", "expected", "answer"} <= set(table.columns)

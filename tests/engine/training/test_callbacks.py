"""What training reports of its time."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace

from mlflow_ft.progress import Progress
from tests.engine.conftest import Bench


def test_the_time_of_a_step_is_announced_and_kept(bench: Callable[..., Bench]) -> None:
    setup, told = bench("lora", max_steps=8), io.StringIO()
    setup = replace(setup, job=replace(setup.job, progress=Progress(stream=told)))
    setup.train()
    (line,) = [line for line in told.getvalue().splitlines() if " s a step: " in line]
    assert line.endswith(" for the other 2")
    (seconds,) = setup.curve("train/step_time")
    assert 0 < seconds < 60

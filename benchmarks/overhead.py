"""What tracking, checks and callbacks add to the steps of a training, and how long it takes until the first step.

    python benchmarks/overhead.py
    python benchmarks/overhead.py --steps 40 --model MODEL --data rows.jsonl

A whole run in which every step is logged. What computes is timed: forward and backward passes, the norm of the
gradients, and the optimizer. All other time between the first step and the last is overhead: batches, logging to the
journal, callbacks, signals. Threads that work at the same time (delivery of metrics, system metrics) slow what
computes, which this does not show.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from mlflow_ft import hookimpl, pipeline, plugins
from mlflow_ft.cli.asked import asked
from mlflow_ft.progress import Progress


class Clock:
    """Adds up the time in calls."""

    def __init__(self) -> None:
        self.total = 0.0

    def around(self, call: Any) -> Any:
        """The same function, timed."""

        def timed(*arguments: Any, **more: Any) -> Any:
            began = time.perf_counter()
            try:
                return call(*arguments, **more)
            finally:
                self.total += time.perf_counter() - began

        return timed


class Measured:
    """Times of one training; the first step, which also starts kernels and threads, is left out."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.started = time.perf_counter()
        self.first = self.began = self.ended = 0.0
        self.steps = 0


MEASURED = Measured()


@hookimpl
def training_callbacks() -> list[Any]:
    from accelerate import Accelerator
    from transformers import Trainer, TrainerCallback

    Trainer.training_step = MEASURED.clock.around(Trainer.training_step)
    Accelerator.clip_grad_norm_ = MEASURED.clock.around(Accelerator.clip_grad_norm_)

    class Callback(TrainerCallback):
        def on_train_begin(self, *_: Any, optimizer: Any, **__: Any) -> None:
            optimizer.step = MEASURED.clock.around(optimizer.step)
            MEASURED.first = time.perf_counter()

        def on_step_end(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
            if state.global_step == 1:
                MEASURED.began, MEASURED.clock.total = time.perf_counter(), 0.0
            MEASURED.ended, MEASURED.steps = time.perf_counter(), state.global_step - 1

    return [Callback()]


def main() -> None:
    """Train, and print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--data", default="demo")
    parser.add_argument("--method", default="lora")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--batch", type=int, default=4)
    given = parser.parse_args()
    loaded = plugins.load({"MLFLOW_FT_PLUGINS": ""})
    loaded.add(sys.modules[__name__], name="overhead")
    with tempfile.TemporaryDirectory() as name:
        settings = {
            "model": given.model,
            "data": given.data,
            "training.max_steps": given.steps,
            "training.per_device_train_batch_size": given.batch,
            "training.logging_steps": 1,
            "training.eval_steps": given.steps,
            "evaluation.max_rows": 2,
            "evaluation.samples": 0,
            "run.output_dir": Path(name, "outputs"),
        }
        words = [given.method, *(word for key, value in settings.items() for word in (f"--{key}", str(value)))]
        pipeline.run(asked(words, loaded), loaded, progress=Progress(quiet=True))
    whole = MEASURED.ended - MEASURED.began
    print(f"until the training began: {MEASURED.first - MEASURED.started:.1f} s")
    print(f"{MEASURED.steps} steps: {whole:.2f} s, of which {MEASURED.clock.total:.2f} s compute")
    print(f"overhead: {100 * (1 - MEASURED.clock.total / whole):.2f} % of a step")


if __name__ == "__main__":
    main()

"""What a training measures about itself in `benchmarks/train.py`: seconds and loss of each step, and its peak memory.

The same callback is in every tool. It writes to the file that STEPS_FILE names. With STEPS_FLOPS it also counts the
floating-point operations of matrix products, which makes steps slower. It imports nothing of this project: other tools
run in environments of their own.
"""

from __future__ import annotations

import json
import os
import resource
import time
from pathlib import Path
from typing import Any


def callback() -> Any:
    """The callback; transformers is imported when a training begins."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import TrainerCallback

    in_place = {torch.ops.aten.addmm_: of_sum_in_place}  # which torch leaves out

    class Steps(TrainerCallback):
        def __init__(self) -> None:
            self.times: list[float] = []
            self.losses: list[float] = []
            self.flops: list[int] = []
            self.counter = (
                FlopCounterMode(display=False, custom_mapping=in_place) if "STEPS_FLOPS" in os.environ else None
            )
            self.began = 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            if self.counter:
                self.counter.__enter__()
            self.began = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.times.append(time.perf_counter() - self.began)
            if self.counter:
                self.counter.__exit__(None, None, None)
                self.flops.append(self.counter.get_total_flops())

        def on_log(self, *_: Any, logs: dict[str, float] | None = None, **__: Any) -> None:
            if "loss" in (logs or {}):
                self.losses.append((logs or {})["loss"])

        def on_train_end(self, *_: Any, **__: Any) -> None:
            found = {
                "times": self.times,
                "losses": self.losses,
                "flops": self.flops,
                "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            }
            Path(os.environ["STEPS_FILE"]).write_text(json.dumps(found))
            os._exit(0)  # what comes after the training is not measured

    return Steps()


def of_sum_in_place(_: Any, one: tuple[int, int], other: tuple[int, int], **__: Any) -> int:
    """The operations of `addmm_`, by the shapes of the two matrices."""
    return 2 * one[0] * one[1] * other[1]

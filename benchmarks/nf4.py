"""Answers of a base in 4 bits (nf4) on a CPU: its weights dequantised once for all, beside once for every token.

    python benchmarks/nf4.py
    python benchmarks/nf4.py --prompts 1 4 16 --new 64 --rounds 5

The same prompts on both sides, which take turns; the median is shown. Compare only ratios. For training, see
`benchmarks/train.py --method qlora`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from mlflow_ft import plugins
from mlflow_ft.cli.asked import asked
from mlflow_ft.progress import Progress


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--prompts", type=int, nargs="+", default=[1, 8], help="answered together")
    parser.add_argument("--new", type=int, default=24, help="tokens of an answer")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    model = loaded(given.model)
    print("| answers | here, seconds | bitsandbytes, seconds | faster by | tokens |\n|---|---|---|---|---|")
    for prompts in given.prompts:
        here, theirs, same = answers(model, prompts, given.new, given.rounds)
        same_tokens = "the same" if same else "others"
        print(f"| {prompts} | {here:.2f} | {theirs:.2f} | {theirs / here:.2f} | {same_tokens} |", flush=True)


def loaded(name: str) -> Any:
    """The base in nf4."""
    from mlflow_ft.engine import hub
    from mlflow_ft.engine.models import loading

    config = asked([f"--model={name}", "--model.quantize=nf4"], plugins.load({"MLFLOW_FT_PLUGINS": ""}), method="qlora")
    return loading.load_base(config, hub.find(config.model, Progress(quiet=True)))


def answers(model: Any, prompts: int, new: int, rounds: int) -> tuple[float, float, bool]:
    """The median seconds of both sides, and whether all their tokens are equal."""
    import torch

    from mlflow_ft.engine.models import generation, held_weights

    ids = torch.randint(10, 40_000, (prompts, 60), generator=torch.Generator().manual_seed(0))
    lengths = {"max_new_tokens": new, "min_new_tokens": new}

    def run() -> Any:
        with torch.no_grad():
            return model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), **lengths, **generation.GREEDY, use_cache=True
            )

    spare = torch.ones(2**28)  # a gibibyte that the process has had
    del spare
    here, theirs = in_turns(run, lambda: held_weights.held(model), rounds)
    return (
        statistics.median(seconds for seconds, _ in here),
        statistics.median(seconds for seconds, _ in theirs),
        all(bool((found == theirs[0][1]).all()) for _, found in here),
    )


def in_turns(
    run: Callable[[], Any], here: Callable[[], AbstractContextManager[Any]], rounds: int
) -> tuple[list[tuple[float, Any]], list[tuple[float, Any]]]:
    """Seconds and results of a function inside of `here` and outside of it, after one run of each."""
    sides: tuple[list[tuple[float, Any]], list[tuple[float, Any]]] = ([], [])
    for _ in range(rounds + 1):
        for side, context in zip(sides, (here, nullcontext), strict=True):
            began = time.perf_counter()
            with context():
                result = run()
            side.append((time.perf_counter() - began, result))
    return sides[0][1:], sides[1][1:]


if __name__ == "__main__":
    main()

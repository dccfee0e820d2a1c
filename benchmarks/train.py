"""Seconds a step and peak memory of this project, beside TRL on the same rows, order, settings and machine.

    python benchmarks/train.py                                  # the built-in model and data
    python benchmarks/train.py --method dpo --data pairs.json --steps 6
    python benchmarks/train.py --method dpo --sides mlflow-ft "mlflow-ft, again" TRL
    python benchmarks/train.py --method qlora --rounds 3 --model MODEL --data rows.json
    python benchmarks/train.py --matmul             # and the share of the processor's rate of matrix products
    python benchmarks/train.py --sides mlflow-ft LLaMA-Factory --llamafactory /path/of/its/environment/bin/python

The runs take turns, each in a process of its own. The time of a side is the sum of its steps without the first; the
median of its rounds is shown. Only ratios mean something on a shared machine. Both sides draw LoRA's weights
themselves: the first loss must agree, the others differ a little.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RATE, RANK = 2e-4, 16
HELD_OUT = 2
AGAIN = "mlflow-ft, again"
"""A second run on the same rows and base, with what the first left in the cache."""
OURS = {"mlflow-ft": "auto", AGAIN: "auto", "mlflow-ft, padded": "padded"}
"""The sides of this project, and `training.batching` of each."""
FACTORY = "LLaMA-Factory"


def main() -> None:
    """Measure all sides, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=("lora", "qlora", "dpo"), default="lora")
    parser.add_argument("--model", help="a folder; the built-in model if not given")
    parser.add_argument("--data", type=Path, default=ROOT / "mlflow_ft" / "examples" / "demo" / "train.jsonl")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=512, help="tokens of a row, at most")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--sides", nargs="+", default=["mlflow-ft", "TRL"], choices=[*OURS, "TRL", FACTORY])
    parser.add_argument("--llamafactory", default="python", help="Python of an environment with llamafactory 0.9.5")
    parser.add_argument("--matmul", action="store_true")
    asked = parser.parse_args()
    if AGAIN in asked.sides and "mlflow-ft" not in asked.sides[: asked.sides.index(AGAIN)]:
        parser.error(f"{AGAIN!r} comes after 'mlflow-ft'")
    if FACTORY in asked.sides and asked.method == "qlora":
        parser.error(f"{FACTORY}'s side has no qlora")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = prepare(asked, folder)
        measured: dict[str, list[dict[str, Any]]] = {side: [] for side in asked.sides}
        for _ in range(asked.rounds):
            for side, runs in measured.items():
                runs.append(run(side, asked, model, folder))
                print(f"{side}: {runs[-1]}", file=sys.stderr)
        report(measured)
        for side in asked.sides if asked.matmul else ():
            flops = run(side, asked, model, folder, STEPS_FLOPS="1")["flops"]
            print(f"{side}: {share_of_rate(flops, measured[side]):.2f} of the rate of matrix products")


def share_of_rate(flops: list[int], runs: list[dict[str, Any]]) -> float:
    """The rate of matrix products in the steps but the first, over that of products alone: 512 x 576 by 576 x 1536."""
    import torch

    one, other = torch.randn(512, 576), torch.randn(576, 1536)
    alone = []
    for _ in range(20):
        began = time.perf_counter()
        for _ in range(20):
            torch.mm(one, other)
        alone.append(20 * 2 * 512 * 576 * 1536 / (time.perf_counter() - began))
    seconds = statistics.median(sum(run["times"][1:]) for run in runs)
    return sum(flops[1:]) / seconds / statistics.median(alone)


def prepare(asked: argparse.Namespace, folder: Path) -> Path:
    """Write the rows that all sides read; return the folder of the model."""
    from mlflow_ft.config.schema import ModelSection
    from mlflow_ft.engine import hub
    from mlflow_ft.progress import Progress

    base = hub.find(ModelSection(**({"name": asked.model} if asked.model else {})), Progress(quiet=True))
    text = asked.data.read_text(encoding="utf-8")
    rows = json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.splitlines() if line]
    kept = rows[: asked.rows + HELD_OUT]
    parts = {"rows": kept[: asked.rows], "held_out": kept[asked.rows :]}
    for name, part in parts.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, part)), encoding="utf-8")
    return base.path


def run(side: str, asked: argparse.Namespace, model: Path, folder: Path, **environment: str) -> dict[str, Any]:
    """One training in a process of its own: `times`, `losses` and `peak`."""
    file, cache = folder / "steps.json", folder / "cache"
    file.unlink(missing_ok=True)
    if side != AGAIN:
        shutil.rmtree(cache, ignore_errors=True)
    environ = os.environ | {
        "MLFLOW_FT_DATA_CACHE": str(cache),
        "STEPS_FILE": str(file),
        "PYTHONPATH": str(ROOT),
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/runs.db",
        "HF_HUB_OFFLINE": "1",
        **environment,
    }
    command = ours(side, asked, model, folder) if side in OURS else theirs(side, asked, model, folder)
    done = subprocess.run(command, env=environ, cwd=folder, capture_output=True, text=True, check=False)
    if not file.is_file():
        sys.exit(f"{side} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def ours(side: str, asked: argparse.Namespace, model: Path, folder: Path) -> list[str]:
    """The command of this project; nothing but the training is measured, so the rest is kept short."""
    settings = {
        "model": model,
        "data": folder / "rows.jsonl",
        "data.eval_path": folder / "held_out.jsonl",
        "data.max_length": asked.length,
        "data.fail_on": "never",
        "training.batching": OURS[side],
        "max_steps": asked.steps,
        "per_device_train_batch_size": asked.batch,
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "adapter.r": RANK,
        "adapter.lora_alpha": 2 * RANK,
        "adapter.lora_dropout": 0,
        "eval_steps": 10_000,
        "save_steps": 10_000,
        "evaluation.max_rows": 1,
        "evaluation.max_new_tokens": 1,
        "evaluation.samples": 0,
        "package.round_trip": "false",
        "run.output_dir": folder / "outputs",
    }
    pairs = [f"--{key}={value}" for key, value in settings.items()]
    return [sys.executable, "-m", "benchmarks.our_side", asked.method, *pairs]


def theirs(side: str, asked: argparse.Namespace, model: Path, folder: Path) -> list[str]:
    """The command of another tool's side."""
    values = (asked.method, model, folder / "rows.jsonl", asked.steps, asked.batch, asked.length)
    if side == FACTORY:
        return [asked.llamafactory, "-m", "benchmarks.llamafactory_side", *map(str, values)]
    return [sys.executable, "-m", "benchmarks.trl_side", *map(str, values)]


def arguments(*, steps: int, batch: int) -> dict[str, Any]:
    """The arguments of transformers' Trainer that every other tool takes."""
    return {
        "max_steps": steps,
        "per_device_train_batch_size": batch,
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "logging_steps": 1,
        "save_strategy": "no",
        "seed": 42,
        "data_seed": 42,
        "disable_tqdm": True,
    }


def report(measured: dict[str, list[dict[str, Any]]]) -> None:
    """Print the table."""
    seconds = {side: statistics.median(sum(one["times"][1:]) for one in runs) for side, runs in measured.items()}
    peaks = {side: statistics.median(one["peak"] for one in runs) for side, runs in measured.items()}
    losses = {side: runs[-1]["losses"] for side, runs in measured.items()}
    last = list(measured)[-1]
    print(f"| | seconds | faster than {last} by | peak, GiB | of {last}'s | first loss | losses differ by at most |")
    print("|---|---|---|---|---|---|---|")
    for side in measured:
        apart = max(abs(a - b) / b for a, b in zip(losses[side], losses[last], strict=True))
        print(
            f"| {side} | {seconds[side]:.1f} | {seconds[last] / seconds[side]:.2f} | {peaks[side] / 2**30:.2f} "
            f"| {peaks[side] / peaks[last]:.2f} | {losses[side][0]:.4f} | {apart:.1%} |"
        )


if __name__ == "__main__":
    main()

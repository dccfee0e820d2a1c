"""Rows per second and peak memory of preparing and checking data, compared with TRL's preparation of the same rows.

    python benchmarks/data.py                                  10,000 and 100,000 rows
    python benchmarks/data.py --rows 10000 100000 1000000      minutes to an hour
    python benchmarks/data.py --model /path/of/a/model

Each figure is measured in a separate process. On a shared machine, compare only ratios within one table.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

WORDS = 20_000
SYLLABLES = [letter + vowel for letter in "bdfgklmnprst" for vowel in "aeio"]


def write_rows(file: Path, count: int) -> None:
    """Conversations of about 80 words, all different except 1 % near and 1 % exact duplicates."""
    draw = random.Random(count)
    words = ["".join(draw.choices(SYLLABLES, k=draw.randint(1, 4))) for _ in range(WORDS)]
    weights = list(itertools.accumulate(1 / (rank + 10) for rank in range(WORDS)))
    earlier: list[tuple[str, str]] = []
    spans = ((8, 25), (20, 110))
    with file.open("w", encoding="utf-8") as stream:
        for _ in range(count):
            chance = draw.random()
            question, answer = (
                " ".join(draw.choices(words, cum_weights=weights, k=draw.randint(*span))) for span in spans
            )
            if earlier and chance < 0.02:
                question, answer = draw.choice(earlier)
                answer = answer if chance < 0.01 else f"{answer} indeed"
            elif len(earlier) < 1000:
                earlier.append((question, answer))
            turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            stream.write(json.dumps({"messages": turns}) + "\n")


def ours(file: Path, model: Path, *, checks: str) -> None:
    """Load, convert, tokenise and mask, with or without the checks."""
    from mlflow_ft import plugins
    from mlflow_ft.cli.asked import asked
    from mlflow_ft.engine import hub
    from mlflow_ft.engine.tokens import tokenizers
    from mlflow_ft.preparing import dataset
    from mlflow_ft.progress import Progress
    from mlflow_ft.registry import Registry

    loaded = plugins.load({"MLFLOW_FT_PLUGINS": ""})
    selection = [] if checks == "all" else [f"--checks.names={checks}"]
    config = asked([f"--data={file}", f"--model={model}", *selection], loaded, method="prepare")
    progress = Progress(quiet=True)
    tokenizer = tokenizers.load(config, hub.find(config.model, progress, weights=False))
    prepared = dataset.prepare(config, tokenizer, plugins=loaded, registry=Registry(loaded), progress=progress)
    assert prepared.data.train.counts["rows"]


def trl(file: Path, model: Path) -> None:
    """What SFTTrainer does with the same rows before its first step: template, tokens, assistant mask, truncation."""
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = tokenizer.chat_template.replace(  # TRL cannot mask without these markers
        "{{ message['content'] }}<|im_end|>",
        "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}<|im_end|>{% endgeneration %}"
        "{% else %}{{ message['content'] }}<|im_end|>{% endif %}",
    )
    with tempfile.TemporaryDirectory() as cache:
        rows = load_dataset("json", data_files=str(file), split="train", cache_dir=cache)
        settings = SFTConfig(
            output_dir=cache, assistant_only_loss=True, max_length=1024, report_to=[], use_cpu=True, bf16=False
        )
        loaded = AutoModelForCausalLM.from_pretrained(model)
        SFTTrainer(model=loaded, args=settings, train_dataset=rows, processing_class=tokenizer)


WORK: dict[str, Callable[[Path, Path], None]] = {
    "prepare": lambda file, model: ours(file, model, checks="[]"),
    "prepare + checks": lambda file, model: ours(file, model, checks="all"),
    "trl": trl,
}


def measured(name: str, file: Path, model: Path) -> dict[str, Any]:
    """Run one task in a separate process; its seconds and its peak memory, including its workers'."""
    command = [sys.executable, __file__, "--work", name, "--file", str(file), "--model", str(model)]
    with tempfile.TemporaryFile("w+") as errors:
        started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        peak = 0
        while started.poll() is None:
            peak = max(peak, resident(started.pid))
            time.sleep(0.2)
        if started.returncode:
            errors.seek(0)
            raise SystemExit(f"{name}: {errors.read()[-2000:]}")
        assert started.stdout
        result: dict[str, Any] = json.loads(started.stdout.read().splitlines()[-1])
    return {**result, "peak_mib": max(peak / 2**20, result["peak_mib"])}


def resident(pid: int) -> int:
    """Bytes held now by a process and its children; shared memory counts once per process."""
    total = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        for process in (parent, *parent.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
    return total


def work(name: str, file: Path, model: Path) -> None:
    """The process that `measured` starts."""
    import transformers  # noqa: F401  # its import is not measured

    start = time.perf_counter()
    WORK[name](file, model)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": time.perf_counter() - start, "peak_mib": peak}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--model", type=Path)
    parser.add_argument("--only", nargs="+", choices=list(WORK), default=list(WORK))
    parser.add_argument("--work", choices=list(WORK), help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work, options.file, options.model)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = options.model or tiny_model(folder / "model")
        print(f"{'rows':>10} {'work':<18} {'seconds':>9} {'rows/s':>9} {'peak MiB':>9}")
        for count in options.rows:
            write_rows(folder / f"{count}.jsonl", count)
            for kind in options.only:
                result = measured(kind, folder / f"{count}.jsonl", model)
                rate = count / result["seconds"]
                print(
                    f"{count:>10,} {kind:<18} {result['seconds']:>9.1f} {rate:>9,.0f} {result['peak_mib']:>9,.0f}",
                    flush=True,
                )
            (folder / f"{count}.jsonl").unlink()


def tiny_model(folder: Path) -> Path:
    """The tests' tiny model: a real tokenizer with few weights."""
    from mlflow_ft.testing import make_tiny_model

    return make_tiny_model(folder)


if __name__ == "__main__":
    main()

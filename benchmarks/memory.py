"""How well the estimate of memory agrees with what a training takes: predicted over measured peak, for 12 settings.

    python benchmarks/memory.py                 all
    python benchmarks/memory.py lora            those with this in their name

Each setting is trained for a few steps on full-length rows in a process of its own; measured is the process's highest
resident set (on a GPU: what torch allocated) beyond what it had after importing everything. On a CPU, models are made
at random, except SmolLM2-135M.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

SIZES: Mapping[str, Mapping[str, int]] = {
    "narrow": {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 8, "vocab_size": 49152},
    "wide": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 4, "vocab_size": 8192},
    "words": {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 2, "vocab_size": 128000},
    "rehearsal": {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 49152},
}
SMOLLM2 = "smollm2-135m"
STEPS = 3
ROWS = 12


@dataclass(frozen=True, kw_only=True)
class Case:
    """A setting of the benchmark."""

    name: str
    model: str
    method: str
    length: int = 256
    settings: Mapping[str, Any] = field(default_factory=dict)


CASES = (
    Case(name="narrow lora", model="narrow", method="lora", settings={"batch": 8}),
    Case(name="narrow full", model="narrow", method="full", settings={"batch": 8}),
    Case(name="narrow qlora", model="narrow", method="qlora", settings={"batch": 8}),
    Case(name="narrow full, checkpointing", model="narrow", method="full", settings={"batch": 16, "checkpoint": True}),
    Case(name="wide lora", model="wide", method="lora", settings={"batch": 8}),
    Case(name="wide full, accumulation", model="wide", method="full", settings={"batch": 4, "accumulate": 2}),
    Case(name="wide qlora, checkpointing", model="wide", method="qlora", settings={"batch": 16, "checkpoint": True}),
    Case(name="words lora", model="words", method="lora", settings={"batch": 8}),
    Case(name="words full", model="words", method="full", settings={"batch": 8}),
    Case(name="words dpo", model="words", method="dpo", settings={"batch": 4}),
    Case(name="smollm2 lora", model=SMOLLM2, method="lora", settings={"batch": 2}),
    Case(name="smollm2 full, checkpointing", model=SMOLLM2, method="full", settings={"batch": 4, "checkpoint": True}),
)


# --- in the process of a case


class Quiet:
    """Stands in for the MLflow run."""

    stopping = False
    deferring_stop = nullcontext

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


def make_model(name: str, folder: Path) -> str:
    """A model of a size in SIZES, with random weights and SmolLM2's tokenizer."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from mlflow_ft.config.schema import ModelSection
    from mlflow_ft.engine import hub
    from mlflow_ft.progress import Progress

    if name == SMOLLM2:
        return name
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 4096}
    config = LlamaConfig(**SIZES[name], **heads, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2)
    LlamaForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(hub.find(ModelSection(), Progress(quiet=True)).path).save_pretrained(folder)
    return str(folder)


def job_of(case: Case, model: str, folder: Path) -> tuple[Any, Any, Any]:
    """The job of a case, its rows and its base."""
    from mlflow_ft import plugins
    from mlflow_ft.cli.asked import asked
    from mlflow_ft.engine import hub
    from mlflow_ft.engine.tokens import tokenizers
    from mlflow_ft.job import Job
    from mlflow_ft.progress import Progress
    from mlflow_ft.registry import Registry

    names = {
        "batch": "training.per_device_train_batch_size",
        "accumulate": "training.gradient_accumulation_steps",
        "checkpoint": "training.gradient_checkpointing",
    }
    given = {"model": model, "data.max_length": case.length, "max_steps": STEPS, "evaluation.samples": 0}
    given |= {"evaluation.per_device_eval_batch_size": 4, "eval_steps": 100}
    given |= {names.get(name, name): value for name, value in case.settings.items()}
    loaded = plugins.load({"MLFLOW_FT_PLUGINS": ""})
    config = asked([case.method, *(f"--{key}={value}" for key, value in given.items())], loaded)
    registry = Registry(loaded)
    base = replace(hub.find(config.model, Progress(quiet=True)), task=registry.trainers[case.method].task)
    run: Any = Quiet()
    job = Job(config=config, plugins=loaded, registry=registry, run=run, folder=folder, progress=Progress(quiet=True))
    return job, rows_of(case, tokenizers.load(config, base)), base


def rows_of(case: Case, tokenizer: Any) -> Any:
    """Rows of random tokens, all of them learned."""
    from mlflow_ft.data.store import Column
    from mlflow_ft.rows import Encoded, Example, Place
    from mlflow_ft.values import Data, Split

    chance = random.Random(case.name)

    def ids() -> tuple[int, ...]:
        return tuple(chance.randrange(3, 8000) for _ in range(case.length))

    def split(name: Any, count: int) -> Split:
        texts = [ids() for _ in range(count)]
        pair = case.method == "dpo"
        others = [Encoded(input_ids=row, labels=row) if pair else None for row in (ids() for _ in texts)]
        rows = [Encoded(input_ids=row, labels=row, rejected=other) for row, other in zip(texts, others, strict=True)]
        return Split(
            name=name,
            sources=("random",),
            source_type="local",
            rows=[Place(file="random", line=number) for number in range(count)],
            examples=[Example(messages=({"role": "user", "content": "a"},))] * count,
            encoded=Column.of(rows),
            columns=(),
            counts={},
            digest=name,
        )

    batch = case.settings["batch"] * case.settings.get("accumulate", 1)
    return Data(
        train=split("train", STEPS * batch),
        eval=split("eval", 4),
        format="random",
        kind="preference" if case.method == "dpo" else "conversation",
        tokenizer=tokenizer,
        stop_token_ids=(2,),
    )


def trained(job: Any, data: Any, base: Any) -> None:
    """Load the model and train it."""
    from mlflow_ft.engine.training import trainable

    job.registry.trainers[job.config.method].train(job, data, trainable.prepare(job, data, base))


def measure(case: Case) -> dict[str, float]:
    """Predicted and measured bytes; after a small training of the same method, which imports and starts everything."""
    from mlflow_ft.engine.memory import configured, estimating, measuring

    with tempfile.TemporaryDirectory() as scratch:
        small = replace(case, model="rehearsal", length=16)
        trained(*job_of(small, make_model("rehearsal", Path(scratch, "small")), Path(scratch, "first")))
        job, data, base = job_of(case, make_model(case.model, Path(scratch, "model")), Path(scratch, "second"))
        estimate = estimating.estimate(configured.setting_of(job.config, job.registry, base))
        meter = measuring.Meter()
        trained(job, data, base)
        parts = dict(estimate["training"].parts)
        return {"predicted": estimate["training"].total, "measured": meter.peak(), "parts": parts}


# --- the table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", default="", help="a part of the names of the settings to measure")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measure(next(case for case in CASES if case.name == arguments.child))))
        return
    print("| setting | rows x tokens | predicted, MiB | measured, MiB | predicted / measured |\n|---|---|---|---|---|")
    for case in (case for case in CASES if arguments.name in case.name):
        command = [sys.executable, __file__, "--child", case.name]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)  # this file
        numbers = json.loads(done.stdout.splitlines()[-1])
        predicted, measured = numbers["predicted"], numbers["measured"]
        size = f"{case.settings['batch']} x {case.length}"
        sizes = f"{predicted / 2**20:,.0f} | {measured / 2**20:,.0f} | {predicted / measured:.2f}"
        print(f"| {case.name} | {size} | {sizes} |", flush=True)


if __name__ == "__main__":
    main()

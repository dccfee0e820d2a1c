"""An imported configuration, trained by LLaMA-Factory and by mlflow-ft on the same rows: both loss curves.

    python benchmarks/imported.py                    # SmolLM2, 12 steps; installs LLaMA-Factory the first time
    python benchmarks/imported.py --template smollm2

Both shuffle with transformers' sampler and the same seed, so that the rows come in the same order. The new weights of
LoRA are drawn by each tool itself: from the second step on, the curves differ a little. The exit code is 1 if a step
differs by more than 2 % of the loss of the first step.

LLaMA-Factory imports torchaudio for sounds; where torch is a build for CPUs no torchaudio fits, and as no row has a
sound, an empty module stands in for it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from mlflow_ft.config.schema import ModelSection
from mlflow_ft.engine import environments, hub
from mlflow_ft.progress import Progress
from mlflow_ft.tracking import Store

REQUIREMENTS = [
    *("torch==2.13.0", "transformers==5.6.0", "peft==0.18.1", "trl==0.24.0", "accelerate==1.11.0", "datasets==4.0.0"),
    *("omegaconf==2.4.0", "fire==0.7.1", "tyro==0.8.14", "einops", "sentencepiece", "tiktoken", "scipy", "matplotlib"),
    *("av<=16.0.0", "fastapi", "uvicorn", "sse-starlette", "pandas", "pydantic", "psutil", "modelscope"),
]
TOOL = ["llamafactory==0.9.5", "torchdata==0.11.0"]
"""Installed without what they need: torchvision and torchaudio, which have no build that fits torch's for CPUs."""
ROWS, HELD_OUT, TOLERANCE = 24, 2, 0.02
LINE_BREAKS = ("smollm2", "chatml", "qwen")
"""Templates of LLaMA-Factory with a line break after each turn, which it learns."""
DEMO = Path(__file__).parents[1] / "mlflow_ft" / "examples" / "demo"
SETTINGS = {
    "stage": "sft",
    "do_train": True,
    "finetuning_type": "lora",
    "lora_rank": 8,
    "lora_target": "all",
    "dataset": "rows",
    "eval_dataset": "held_out",
    "cutoff_len": 256,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "per_device_train_batch_size": 2,
    "learning_rate": 1e-3,
    "num_train_epochs": 1.0,
    "lr_scheduler_type": "cosine",
    "warmup_ratio": 0.1,
    "data_seed": 42,
    "disable_gradient_checkpointing": True,
}
"""The configuration; what it does not say has LLaMA-Factory's defaults."""


def environment() -> environments.Environment:
    """LLaMA-Factory in an environment of its own.

    Raises:
        PluginError: pip failed.
    """
    made = environments.find_or_make("llamafactory", REQUIREMENTS, progress=Progress())
    install = [str(made.python), "-m", "pip", "install", "-q", "--no-deps", *TOOL]
    if "llamafactory" not in subprocess.run([*install[:3], "list"], capture_output=True, text=True, check=True).stdout:
        subprocess.run(install, check=True, env=made.variables())
    return made


def write_inputs(folder: Path, *, template: str, model: Path) -> Path:
    """The rows, dataset_info.json and the configuration in `folder`; returns the configuration."""
    columns = {"prompt": "instruction", "query": "input", "response": "output", "system": "system"}
    entries = {}
    for name, source, count in (("rows", "train", ROWS), ("held_out", "heldout", HELD_OUT)):
        lines = (DEMO / f"{source}.jsonl").read_text().splitlines()[:count]
        turns = [json.loads(line)["messages"] for line in lines]
        columns_of = ("system", "instruction", "output")
        rows = [dict(zip(columns_of, (turn["content"] for turn in row), strict=True)) for row in turns]
        (folder / f"{name}.json").write_text(json.dumps([row | {"input": ""} for row in rows]))
        entries[name] = {"file_name": f"{name}.json", "columns": columns}
    (folder / "dataset_info.json").write_text(json.dumps(entries))
    file = folder / "llamafactory.yaml"
    more: dict[str, Any] = {"model_name_or_path": str(model), "template": template}
    places = {"dataset_dir": str(folder), "output_dir": str(folder / "theirs")}
    file.write_text(yaml.safe_dump(SETTINGS | more | places))
    return file


def in_float32(folder: Path) -> Path:
    """A copy of SmolLM2 whose weights are float32, in which both tools then compute."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = hub.find(ModelSection(), Progress()).path
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


def theirs(file: Path, tool: environments.Environment) -> list[float]:
    """The losses of LLaMA-Factory, step by step."""
    stand_in = file.parent / "stand_in" / "torchaudio"
    stand_in.mkdir(parents=True)
    (stand_in / "__init__.py").touch()
    code = "from llamafactory.train.tuner import run_exp; run_exp()"
    more = {
        "PYTHONPATH": str(stand_in.parent),
        "HF_HUB_OFFLINE": "1",
        "DISABLE_VERSION_CHECK": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    subprocess.run([tool.python, "-c", code, file], check=True, env=tool.variables(more), cwd=file.parent)
    lines = (file.parent / "theirs" / "trainer_log.jsonl").read_text().splitlines()
    return [step["loss"] for line in lines if "loss" in (step := json.loads(line))]


def ours(file: Path) -> tuple[list[float], float]:
    """The losses of mlflow-ft with the imported configuration, step by step, and the mean learned tokens of a row."""
    store, config = f"sqlite:///{file.parent / 'mlflow.db'}", file.parent / "ours.yaml"
    command = [sys.executable, "-m", "mlflow_ft"]
    subprocess.run([*command, "import", file, "--out", config], check=True)
    quick = ["--evaluation.max_rows", "1", "--evaluation.samples", "0", "--evaluation.on_worse", "warn"]
    quick += ["--max_new_tokens", "2", "--package.round_trip", "false", "--package.packagers", "adapter"]
    train = [*command, "train", "--config", config, *quick, "--run.output_dir", file.parent / "ours"]
    subprocess.run(train, check=True, env=os.environ | {"MLFLOW_TRACKING_URI": store})
    import mlflow

    mlflow.set_tracking_uri(store)
    [run] = mlflow.search_runs(["0"], output_format="list")
    curve = Store.connect(store).curves(run, prefixes=["train/loss"])["train/loss"]
    learned, rows = (float(run.data.params[f"data/train/{name}"]) for name in ("supervised_tokens", "rows"))
    return [curve[step] for step in sorted(curve)], learned / rows


def difference(mine: list[float], other: list[float]) -> float:
    """The largest difference of two curves, as a share of the loss of the first step."""
    return max(abs(one - two) for one, two in zip(mine, other, strict=True)) / other[0]


def compare(folder: Path, *, template: str) -> tuple[list[float], list[float]]:
    """Both curves: LLaMA-Factory's, then ours, as means over the same tokens.

    With templates whose turns end in a line break LLaMA-Factory learns it, after the token that ends the turn. Its loss
    is next to nothing, and makes the mean smaller by one token in each row.
    """
    tool = environment()
    file = write_inputs(folder, template=template, model=in_float32(folder / "model"))
    other, (mine, tokens) = theirs(file, tool), ours(file)
    more = 1 + 1 / tokens if template in LINE_BREAKS else 1.0
    return [loss * more for loss in other], mine


def main() -> int:
    """Print both curves; the exit code says whether they agree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--template", default="vicuna", help="a template of LLaMA-Factory (vicuna)")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    try:
        other, mine = compare(folder, template=arguments.template)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for step, (one, two) in enumerate(zip(other, mine, strict=True), 1):
        print(f"step {step:>3}  LLaMA-Factory {one:.4f}  mlflow-ft {two:.4f}  {(two - one) / one:+.2%}")  # a script
    print(f"largest difference: {difference(mine, other):.2%} of the first loss")  # a script
    return int(difference(mine, other) > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())

"""Two processes over one: seconds a step of this project, and of a plain script of transformers and accelerate.

    python benchmarks/processes.py

A random model with 8 layers is fully fine-tuned on rows of 256 tokens: one process with a batch of 8, two with a batch
of 4. Each process has one thread. The median step of a run is compared; only ratios mean something on a shared machine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

STEPS, ROWS = 12, 96
SIZE = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 8, "vocab_size": 8192}
PLAIN = """
import json, sys, time
import torch
from torch.utils.data import DataLoader
from accelerate import Accelerator
from transformers import AutoModelForCausalLM

folder, file, batch, steps = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
rows = [torch.tensor(row) for row in json.load(open(file))]
accelerator = Accelerator(cpu=True)
model = AutoModelForCausalLM.from_pretrained(folder)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(rows, batch_size=batch))
times = []
while len(times) < steps:
    for ids in loader:
        began = time.monotonic()
        accelerator.backward(model(input_ids=ids, labels=ids).loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.monotonic() - began)
if accelerator.is_main_process:
    print(json.dumps(sorted(times[1:])[len(times) // 2]))
"""


def main() -> None:
    """Measure both, and print a table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        table = {"mlflow-ft": [ours(folder, number) for number in (1, 2)]}
        table["accelerate script"] = [plain(folder, number) for number in (1, 2)]
    print("| | 1 process, s/step | 2 processes, s/step | faster by |\n|---|---|---|---|")
    for title, (alone, together) in table.items():
        print(f"| {title} | {alone:.3f} | {together:.3f} | {alone / together:.2f} |")


def prepare(folder: Path) -> None:
    """Write a model, and the same rows for both."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from mlflow_ft.testing import make_tiny_tokenizer, write_jsonl

    tokenizer = make_tiny_tokenizer()
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SIZE, eos_token_id=tokenizer.eos_token_id)).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    words = ["red green blue round flat heavy small apple " * 40] * ROWS
    texts = [f"{number} {text}" for number, text in enumerate(words)]
    write_jsonl(folder / "rows.jsonl", [{"text": text} for text in texts])
    ids = [tokenizer(text)["input_ids"][:256] for text in texts]
    (folder / "rows.json").write_text(json.dumps(ids))


def ours(folder: Path, processes: int) -> float:
    """The median step of a training by this project."""
    import mlflow

    uri = f"sqlite:///{folder}/{processes}.db"
    settings = {
        "model": folder / "model",
        "data": folder / "rows.jsonl",
        "data.max_length": 256,
        "data.fail_on": "never",
        "max_steps": STEPS,
        "per_device_train_batch_size": 8 // processes,
        "save_steps": 10_000,
        "eval_steps": 10_000,
        "package.round_trip": "false",
        "evaluation.max_rows": 1,
        "run.output_dir": folder / "outputs",
    }
    if processes > 1:
        settings |= {"launch.launcher": "accelerate", "launch.num_processes": processes}
    pairs = [f"--{key}={value}" for key, value in settings.items()]
    command = [sys.executable, "-m", "mlflow_ft", "train", "full", *pairs, "--quiet"]
    subprocess.run(command, check=True, env=environ() | {"MLFLOW_TRACKING_URI": uri})
    mlflow.set_tracking_uri(uri)
    return float(mlflow.search_runs()["metrics.train/step_time"][0])


def plain(folder: Path, processes: int) -> float:
    """The median step of the script."""
    script = folder / "plain.py"
    script.write_text(PLAIN)
    several = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    before = several if processes > 1 else []
    arguments = [folder / "model", folder / "rows.json", 8 // processes, STEPS]
    command = [sys.executable, *before, str(script), *map(str, arguments)]
    result = subprocess.run(command, check=True, env=environ(), capture_output=True, text=True)
    return float(json.loads(result.stdout.splitlines()[-1]))


def environ() -> dict[str, str]:
    """One thread a process."""
    return os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}


if __name__ == "__main__":
    main()

"""Time and peak memory of merging a LoRA adapter, tensor by tensor and with PEFT, and whether the results are equal.

    python benchmarks/merge.py                               135M and 0.5B
    python benchmarks/merge.py --sizes 135M 0.5B 1B 3B       `--peft-up-to 1B` skips PEFT for larger models
    python benchmarks/merge.py --folder /big/disk

The models have random bfloat16 weights of a real architecture (Llama), with LoRA of rank 16 on all linear layers. Each
figure is measured in a separate process. Peak memory is what the process adds during the merge (torch, transformers and
PEFT are already imported), including mapped files. `peft` is `from_pretrained` in float32,
`merge_and_unload(safe_merge=True)` and `save_pretrained` in bfloat16, which gives the same bits; `peft-bf16` does
everything in bfloat16, the usual way, which rounds twice.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SIZES: dict[str, dict[str, Any]] = {
    "135M": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "vocab_size": 49152},
    "0.5B": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "vocab_size": 64000},
    "1B": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "vocab_size": 128256},
    "3B": {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "vocab_size": 128256},
    "8B": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "vocab_size": 128256},
}
WAYS = ("stream", "peft", "peft-bf16")


def make(folder: Path, size: str) -> None:
    """Write a base in bfloat16, tensor by tensor, and an adapter for it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    from mlflow_ft.engine import weight_files
    from mlflow_ft.engine.merging import tensor_files
    from mlflow_ft.engine.merging.tensor_files import Entry

    heads = SIZES[size]["hidden_size"] // 64
    config = LlamaConfig(num_attention_heads=heads, num_key_value_heads=heads, tie_word_embeddings=True, **SIZES[size])
    config.dtype, config.architectures = torch.bfloat16, ["LlamaForCausalLM"]
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    base, adapter = folder / "base", folder / "adapter"
    base.mkdir(parents=True)
    config.save_pretrained(base)
    torch.manual_seed(0)
    entries = [
        Entry(name=name, shape=tuple(weight.shape), dtype=weight.dtype) for name, weight in model.named_parameters()
    ]
    shared = tensor_files.shards(entries, limit=5 * 10**9)
    for name, group in shared.items():
        tensor_files.write(
            base / name, group, lambda entry: torch.empty(entry.shape, dtype=entry.dtype).normal_(0, 0.02)
        )
    if len(shared) > 1:
        (base / weight_files.INDEX).write_text(json.dumps(tensor_files.index(shared)))
    settings = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM", inference_mode=True)
    wrapped = get_peft_model(model, settings)
    settings.save_pretrained(str(adapter))
    weights = {
        name.replace(".default", ""): torch.empty(weight.shape).normal_(0, 0.02)
        for name, weight in wrapped.named_parameters()
        if "lora_" in name
    }
    save_file(weights, adapter / "adapter_model.safetensors", metadata={"format": "pt"})


def measure(folder: Path, way: str) -> dict[str, float]:
    """Merge in this process."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from mlflow_ft.engine.merging import stream_merge

    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    started = time.perf_counter()
    out = folder / way
    if way == "stream":
        plan = stream_merge.plan(
            stream_merge.Merge(base=folder / "base", adapter=folder / "adapter", dtype=torch.bfloat16)
        )
        stream_merge.write(plan, out)
    else:
        dtype = torch.float32 if way == "peft" else torch.bfloat16
        model: Any = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=dtype)
        merged: Any = PeftModel.from_pretrained(model, folder / "adapter").merge_and_unload(safe_merge=True)
        merged.to(torch.bfloat16).save_pretrained(out)
        for file in out.iterdir():  # wait for the disk, as the streaming merge does
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "peak_mib": memory("VmHWM") - before}


def memory(kind: str) -> float:
    """MiB that this process holds now (VmRSS) or at most (VmHWM); `getrusage` would include the parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{kind}:"))


def compare(folder: Path, left_way: str, right_way: str) -> str:
    """How many weights differ, and by how much."""
    import torch

    from mlflow_ft.engine.merging.tensor_files import ModelFiles

    first, second = ModelFiles(folder / left_way), ModelFiles(folder / right_way)
    assert set(first.places) == set(second.places)
    different, weights, furthest = 0, 0, 0
    for name in first.places:
        left, right = first.read(name), second.read(name)
        steps = (left.view(torch.int16).int() - right.view(torch.int16).int()).abs()
        furthest = max(furthest, int(steps[left.sign() == right.sign()].max()))
        different += int((steps > 0).sum())
        weights += steps.numel()
    return (
        "equal bit for bit"
        if not different
        else f"{different / weights:.1%} of the weights differ, by up to {furthest} ulp"
    )


def run(folder: Path, way: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--measure", str(folder), way]
    completed = subprocess.run(command, capture_output=True, text=True, check=True)
    result: dict[str, float] = json.loads(completed.stdout.splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["135M", "0.5B"], choices=list(SIZES))
    parser.add_argument("--peft-up-to", default="1B", choices=list(SIZES))
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--measure", nargs=2)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(Path(options.measure[0]), options.measure[1])))
        return
    largest = list(SIZES).index(options.peft_up_to)
    print(f"{'size':>6} {'way':<10} {'seconds':>8} {'peak MiB':>9} {'base MiB':>9}  compared with `peft`")
    for size in options.sizes:
        folder = Path(tempfile.mkdtemp(dir=options.folder))
        try:
            make(folder, size)
            ways = WAYS if list(SIZES).index(size) <= largest else WAYS[:1]
            base = sum(file.stat().st_size for file in (folder / "base").glob("*.safetensors")) / 2**20
            results = {way: run(folder, way) for way in ways}
            for way, result in results.items():
                difference = compare(folder, way, "peft") if "peft" in results and way != "peft" else ""
                seconds, peak = result["seconds"], result["peak_mib"]
                print(
                    f"{size:>6} {way:<10} {seconds:>8.1f} {peak:>9,.0f} {base:>9,.0f}  {difference}",
                    flush=True,
                )
        finally:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()

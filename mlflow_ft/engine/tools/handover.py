"""What the tool gets from us, and what we take back: rows, the untrained adapter, the trained one, its logits."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import torch
from peft import set_peft_model_state_dict
from safetensors.torch import load_file

from mlflow_ft.engine.adapters import files, fitting
from mlflow_ft.engine.judging import reference
from mlflow_ft.engine.tools import inside
from mlflow_ft.engine.training import starts
from mlflow_ft.errors import ModelError, RefusedError
from mlflow_ft.values import Data, Job, Split

BATCH = 1000
SAME = ("r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "fan_in_fan_out")
"""Settings of a LoRA that decide what its weights do."""
TOKENS = 24
"""Compared positions of each row."""


def write_rows(split: Split, file: Path) -> int:
    """Write rows as Parquet with the columns input_ids, attention_mask and labels; returns their number."""
    ids = pyarrow.list_(pyarrow.int32())
    schema = pyarrow.schema({"input_ids": ids, "attention_mask": ids, "labels": ids})
    rows: datasets.Dataset = split.encoded.dataset()
    with pyarrow.parquet.ParquetWriter(file, schema) as writer:
        for batch in rows.iter(BATCH):
            columns = {name: batch[name] for name in inside.ROWS}
            columns["attention_mask"] = [[1] * len(row) for row in batch["input_ids"]]
            writer.write_table(pyarrow.table(columns, schema=schema))
    return len(rows)


def write_adapter(module: Any, folder: Path, base: Path) -> None:
    """Write the adapter to train, with the base model's folder on this machine in its config."""
    starts.save(module, folder)
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text(encoding="utf-8")) | {"base_model_name_or_path": str(base), "revision": None}
    file.write_text(json.dumps(config, indent=2), encoding="utf-8")


def expected(module: Any, data: Data) -> dict[str, Any]:
    """What the tool has to train, and on which rows; see `inside.misfit`."""
    weights = {name: list(weight.shape) for name, weight in module.named_parameters() if weight.requires_grad}
    rows = data.train.encoded.dataset()
    return {"weights": weights, "rows": len(rows), "digest": inside.digest(rows)}


def compared(data: Data) -> list[dict[str, Any]]:
    """Held-out rows, and the positions at which the logits of two models are compared."""
    rows = [row for row in itertools.islice(data.eval.encoded, reference.FIRST) if len(row.input_ids) > 1]
    return [
        {"input_ids": list(row.input_ids), "positions": reference.compared(row)[:TOKENS]}
        for row in rows[: reference.ROWS]
    ]


@contextmanager
def put_aside(module: Any) -> Iterator[None]:
    """Move a model to the CPU for the duration of a block, so that the tool has the GPU; bitsandbytes may refuse it."""
    device = module.device
    moved = device.type == "cuda"
    if moved:
        try:
            module.to("cpu")
        except (ValueError, RuntimeError):
            moved = False
        torch.cuda.empty_cache()
    yield
    if moved:
        module.to(device)


def take(module: Any, folder: Path, *, tool: str) -> None:
    """Load the adapter that a tool has trained into the model that it was made for; every weight must match.

    Raises:
        ModelError: it is missing, or is another adapter.
    """
    if not (folder / "adapter_config.json").is_file():
        raise ModelError(f"{tool} has left no adapter in {folder}", hint="its output.log says why")
    theirs, ours = files.config(folder), module.peft_config["default"]
    for name in SAME:
        wanted, found = getattr(ours, name, None), getattr(theirs, name, None)
        if (wanted or None) != (found or None):
            raise ModelError(f"{tool} trained an adapter with {name}={found!r}, not {wanted!r}")
    fit = fitting.fitted(module, files.tensors(folder), where=folder)
    set_peft_model_state_dict(module, fit.state)
    fitting.prove(module, fit, where=folder)


def agree(job: Job, module: Any, rows: list[dict[str, Any]], file: Path, *, tool: str) -> Mapping[str, float]:
    """Compare the model with the logits that the tool's own had after training (`inside.write_logits`).

    Returns:
        `train/tool_kl`: the mean divergence from them, in nats per token.

    Raises:
        RefusedError: it is above `package.max_kl`: what would be packaged is not what the tool has trained.
    """
    theirs, sums, count = load_file(file), 0.0, 0
    module.eval()
    for number, row in enumerate(rows):
        positions = torch.tensor(row["positions"])
        ours = reference.logits_at(module, torch.tensor(row["input_ids"]), positions)
        width = min(ours.shape[1], theirs[f"{number}.logits"].shape[1])
        sums += float(reference.kl(theirs[f"{number}.logits"][:, :width], ours[:, :width]).sum())
        count += len(positions)
    kl = sums / max(1, count)
    if not kl <= job.config.package.max_kl:
        raise RefusedError(
            f"the adapter of {tool} is not the model that it trained: its logits differ by {kl:.2g} nats per token "
            f"(package.max_kl is {job.config.package.max_kl:g})",
            hint=f"it is in {file.parent}; train with our own method, or raise package.max_kl",
        )
    return {"train/tool_kl": kl}

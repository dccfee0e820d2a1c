"""LLaMA-Factory's side of `benchmarks/train.py`: what one would type there, in an environment of its own."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks import measured, train

OF_MESSAGES = {
    "formatting": "sharegpt",
    "columns": {"messages": "messages"},
    "tags": {
        "role_tag": "role",
        "content_tag": "content",
        "user_tag": "user",
        "assistant_tag": "assistant",
        "system_tag": "system",
    },
}
OF_PAIRS = {
    "formatting": "sharegpt",
    "ranking": True,
    "columns": {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"},
}


def main(method: str, model: str, file: str, count: int, batch: int, length: int) -> None:
    """Train."""
    from llamafactory.train.tuner import run_exp

    folder = Path("llamafactory-data")
    folder.mkdir(exist_ok=True)
    (folder / "dataset_info.json").write_text(json.dumps({"rows": {"file_name": file, **_format(Path(file))}}))
    settings: dict[str, Any] = {
        "stage": "dpo" if method == "dpo" else "sft",
        "do_train": True,
        "model_name_or_path": str(_in_float32(Path(model))),
        "template": "smollm2",
        "dataset": "rows",
        "dataset_dir": str(folder),
        "overwrite_cache": True,
        "cutoff_len": length,
        "finetuning_type": "lora",
        "lora_rank": train.RANK,
        "lora_alpha": 2 * train.RANK,
        "lora_dropout": 0.0,
        "lora_target": "all",
        "output_dir": "llamafactory",
        **train.arguments(steps=count, batch=batch),
        "report_to": "none",
        "use_cpu": True,
        "disable_gradient_checkpointing": True,
    }
    run_exp(settings, callbacks=[measured.callback()])


def _in_float32(model: Path) -> Path:
    """The model in the type that the other sides compute in; LLaMA-Factory takes that of the model's config."""
    folder = Path("llamafactory-model")
    folder.mkdir(exist_ok=True)
    for file in model.iterdir():
        if file.name != "config.json" and not (folder / file.name).exists():
            (folder / file.name).symlink_to(file)
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "float32"}))
    return folder


def _format(file: Path) -> dict[str, Any]:
    """How the rows of a file are written, in LLaMA-Factory's words; Alpaca's need none."""
    with file.open(encoding="utf-8") as stream:
        row = json.loads(stream.readline())
    return OF_PAIRS if "chosen" in row else OF_MESSAGES if "messages" in row else {}


if __name__ == "__main__":
    main(*sys.argv[1:4], *map(int, sys.argv[4:]))

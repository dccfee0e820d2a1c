"""TRL's side of `benchmarks/train.py`: what one would type instead."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from benchmarks import measured, train


def main(method: str, model: str, file: str, count: int, batch: int, length: int) -> None:
    """Train."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = [converted(json.loads(line)) for line in Path(file).read_text(encoding="utf-8").splitlines()]
    quantised = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    more = {"quantization_config": quantised} if method == "qlora" else {}
    settings: dict[str, Any] = {
        "output_dir": "trl",
        **train.arguments(steps=count, batch=batch),
        "report_to": [],
        "bf16": False,
        "use_cpu": not torch.cuda.is_available(),
        "max_length": length,
        "gradient_checkpointing": False,
    }
    kind, arguments = (DPOTrainer, DPOConfig(**settings)) if method == "dpo" else (SFTTrainer, SFTConfig(**settings))
    trainer = kind(
        model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, **more),
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=train.RANK,
            lora_alpha=2 * train.RANK,
            lora_dropout=0.0,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        ),
        callbacks=[measured.callback()],
    )
    trainer.train()


def converted(row: dict[str, Any]) -> dict[str, Any]:
    """A row of Alpaca's, of messages, or a preference in ShareGPT's words, as TRL reads it."""
    if "chosen" in row:
        ask = [{"role": names(turn["from"]), "content": turn["value"]} for turn in row["conversations"]]
        sides = {side: [{"role": "assistant", "content": row[side]["value"]}] for side in ("chosen", "rejected")}
        return {"prompt": ask, **sides}
    if "messages" in row:
        return {"prompt": row["messages"][:-1], "completion": row["messages"][-1:]}
    asked = "\n\n".join(filter(None, [row["instruction"], row.get("input")]))
    return {
        "prompt": [{"role": "user", "content": asked}],
        "completion": [{"role": "assistant", "content": row["output"]}],
    }


def names(role: str) -> str:
    """ShareGPT's roles in OpenAI's words."""
    return {"human": "user", "gpt": "assistant"}.get(role, role)


if __name__ == "__main__":
    main(*sys.argv[1:4], *map(int, sys.argv[4:]))

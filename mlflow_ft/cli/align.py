"""mlflow-ft align: instruction tuning, then preference tuning."""

from __future__ import annotations

from mlflow_ft.cli.chain import command_of

ABOUT = """Instruction tuning, then preference tuning: sft -> dpo.

\b
mlflow-ft align --model MODEL --sft.data chat.jsonl --dpo.data pairs.jsonl
mlflow-ft align --model MODEL --sft.data chat.jsonl --dpo.data pairs.jsonl --dpo.beta 0.3 --adapter.r 8

A setting applies to every stage; prefix it with a stage's name to limit it to that stage. Each stage is a nested run.
"""
command = command_of("align", ABOUT)

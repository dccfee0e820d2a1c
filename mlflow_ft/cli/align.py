"""mlflow-ft align: instruction tuning, then preferences."""

from __future__ import annotations

from mlflow_ft.cli.chain import command_of

ABOUT = """Instruction tuning, then preferences: sft -> dpo.

\b
mlflow-ft align --model MODEL --sft.data chat.jsonl --dpo.data pairs.jsonl
mlflow-ft align --model MODEL --sft.data chat.jsonl --dpo.data pairs.jsonl --dpo.beta 0.3 --adapter.r 8

A setting is every stage's, or one stage's with its name in front. Each stage is a nested run.
"""
command = command_of("align", ABOUT)

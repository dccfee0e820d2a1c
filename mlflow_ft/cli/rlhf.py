"""mlflow-ft rlhf: instruction tuning, a reward model, then PPO against it."""

from __future__ import annotations

from mlflow_ft.cli.chain import command_of

ABOUT = """Instruction tuning, a reward model, then PPO against it: sft -> reward -> ppo.

\b
mlflow-ft rlhf --model MODEL --sft.data chat.jsonl --reward.data pairs.jsonl --ppo.data prompts.jsonl

A setting applies to every stage; prefix it with a stage's name to limit it to that stage. Each stage is a nested run.
"""
command = command_of("rlhf", ABOUT)

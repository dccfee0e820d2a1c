"""mlflow-ft rlhf: instruction tuning, a reward model, and PPO against it."""

from __future__ import annotations

from mlflow_ft.cli.chain import command_of

ABOUT = """Instruction tuning, a reward model, and PPO against it: sft -> reward -> ppo.

\b
mlflow-ft rlhf --model MODEL --sft.data chat.jsonl --reward.data pairs.jsonl --ppo.data prompts.jsonl

A setting is every stage's, or one stage's with its name in front. Each stage is a nested run.
"""
command = command_of("rlhf", ABOUT)

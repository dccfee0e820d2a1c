"""Training a reward model: TRL's trainer on pairs that are already tokenised; a head gives each answer a score."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback
from trl import RewardConfig, RewardTrainer

from mlflow_ft.engine.training import loop
from mlflow_ft.values import Data, Job, Model, Split, Trained


def train(job: Job, data: Data, model: Model) -> Trained:
    """Train with the Bradley-Terry loss, arXiv 2203.02155: the chosen answer must score higher than the rejected one.

    The score is read at the last token of the rendered conversation.
    """
    arguments = loop.arguments(RewardConfig, job, job.folder / "train", {"max_length": None})

    def make(callbacks: list[TrainerCallback]) -> RewardTrainer:
        return RewardTrainer(
            model=model.module,
            args=arguments,
            train_dataset=whole(data.train),
            eval_dataset=whole(data.eval),
            processing_class=data.tokenizer,
            callbacks=callbacks,
        )

    return loop.run(job, data, model, make)


def whole(split: Split) -> Any:
    """One side of the split as a `datasets.Dataset` with `chosen_ids` and `rejected_ids`."""
    rows = split.encoded.dataset(("input_ids", "rejected_ids"), fingerprint=split.digest)
    return rows.rename_column("input_ids", "chosen_ids")

"""The methods that ship inside: supervised ones here, the others beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_ft import Trainer, hookimpl
from mlflow_ft.builtin import online_methods, preference_methods, sft_methods

if TYPE_CHECKING:
    from mlflow_ft.job import Data, Job, Model, Trained


def train_sft(job: Job, data: Data, model: Model) -> Trained:
    """Supervised fine-tuning on the assistant's tokens."""
    from mlflow_ft.engine import sft

    return sft.train(job, data, model)


@hookimpl
def register_trainers() -> list[Trainer]:
    return [
        Trainer(
            name="sft",
            summary="instruction tuning, or going on with pre-training on text, with the adapter that is named",
            train=train_sft,
            defaults=sft_methods.LORA,
            paper="https://arxiv.org/abs/2203.02155",
            needs="conversations: messages, ShareGPT, Alpaca, question and answer ..., or plain text; or preferences, "
            "of which the chosen answers are learned",
            kinds=("conversation", "text", "preference"),
            settings=("packing", "options"),
            scores=("loss",),
            use_for="the first step of most alignments, and of the chains align and rlhf",
            memory="that of the adapter: see lora, full",
            ranges=sft_methods.LORA_RANGES | {"training.num_train_epochs": "1 to 5"},
        ),
        *sft_methods.records(train_sft),
        *preference_methods.records(),
        *online_methods.records(),
    ]

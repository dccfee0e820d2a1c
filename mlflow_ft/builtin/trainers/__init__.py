"""The built-in methods: sft here, the others in this package's modules."""

from __future__ import annotations

from mlflow_ft import Trainer, hookimpl
from mlflow_ft.builtin.trainers import online, preference, sft


@hookimpl
def register_trainers() -> list[Trainer]:
    return [
        Trainer(
            name="sft",
            summary="instruction tuning, or continued pre-training on text, with the adapter of your choice",
            train=sft.train,
            defaults=sft.LORA,
            paper="https://arxiv.org/abs/2203.02155",
            needs="conversations: messages, ShareGPT, Alpaca, question and answer ..., or plain text; or preferences, "
            "whose chosen answers are learned",
            kinds=("conversation", "text", "preference"),
            settings=("packing", "options"),
            options=sft.options,
            scores=("loss",),
            held_out_loss=True,
            use_for="the first step of most alignments, and of the chains align and rlhf",
            memory="depends on the adapter: see lora, full",
            ranges=sft.LORA_RANGES | {"training.num_train_epochs": "1 to 5"},
        ),
        *sft.records(),
        *preference.records(),
        *online.records(),
    ]

"""The methods that are supervised fine-tuning with one adapter each: one training function with different defaults."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from mlflow_ft import Trainer

if TYPE_CHECKING:
    from mlflow_ft import Data, Job, Model, Trained

RATE = "training.learning_rate"
LORA = {"adapter.kind": "lora", "adapter.r": 16, RATE: 2e-4}
LORA_RANGES = {"adapter.r": "4 to 64", "adapter.lora_alpha": "r to 2r", RATE: "5e-5 to 5e-4"}
PROMPT_RANGES = {"adapter.num_virtual_tokens": "8 to 128"}


options: Callable[[], type] = partial(resolve_name, "trl:SFTConfig")


def train(job: Job, data: Data, model: Model) -> Trained:
    """Supervised fine-tuning on the assistant's tokens."""
    from mlflow_ft.engine.training import sft

    return sft.train(job, data, model)


def records() -> list[Trainer]:
    """full, lora, qlora, dora, ia3, prompt, prefix, ptuning and adapter: supervised fine-tuning, one adapter each."""
    trainer: Callable[..., Trainer] = partial(
        Trainer,
        train=train,
        settings=("packing", "options"),
        options=options,
        scores=("loss",),
        held_out_loss=True,
        in_parts=lambda config: not config.objective.packing,
    )
    return [*_of_the_weights(trainer), *_beside_the_weights(trainer)]


def _of_the_weights(trainer: Callable[..., Trainer]) -> list[Trainer]:
    return [
        trainer(
            name="full",
            summary="every weight trains: the most memory, the most capacity",
            defaults={"adapter.kind": "none", RATE: 1e-5},
            use_for="much data, a new language or domain, small models",
            memory="the most: 16 bytes per weight in float32 with AdamW, and the activations",
            ranges={RATE: "5e-6 to 5e-5"},
        ),
        trainer(
            name="lora",
            summary="low-rank updates of all linear layers on a frozen base",
            defaults=LORA,
            paper="https://arxiv.org/abs/2106.09685",
            use_for="nearly everything; start here",
            memory="the base in 2 bytes per weight (4 on a CPU), and its activations",
            ranges=LORA_RANGES,
        ),
        trainer(
            name="qlora",
            summary="LoRA on a base in 4 bits (NF4, double quantisation): the least memory",
            defaults=LORA | {"model.quantize": "nf4", "model.double_quant": True},
            paper="https://arxiv.org/abs/2305.14314",
            use_for="large models on small GPUs",
            memory="the base in about half a byte per weight, and its activations",
            ranges=LORA_RANGES,
        ),
        trainer(
            name="dora",
            summary="LoRA on the direction of the weights, with their magnitude trained separately",
            defaults=LORA | {"adapter.kind": "dora"},
            paper="https://arxiv.org/abs/2402.09353",
            use_for="low ranks, where LoRA falls short of full fine-tuning",
            memory="as lora, with more activations and time",
            ranges=LORA_RANGES | {"adapter.r": "4 to 32"},
        ),
        trainer(
            name="ia3",
            summary="scales keys, values and the feed-forward block by learned vectors; merges",
            defaults={"adapter.kind": "ia3", RATE: 5e-3},
            paper="https://arxiv.org/abs/2205.05638",
            use_for="few rows and many tasks: an adapter of tens of kilobytes",
            memory="the base and its activations",
            ranges={RATE: "1e-3 to 1e-2"},
        ),
    ]


def _beside_the_weights(trainer: Callable[..., Trainer]) -> list[Trainer]:
    front: dict[str, Any] = {"adapter.num_virtual_tokens": 20}
    memory = "the base and its activations, for longer sequences"
    return [
        trainer(
            name="prompt",
            summary="prompt tuning: virtual tokens before the text; base and adapter are served together",
            defaults=front | {"adapter.kind": "prompt", RATE: 3e-2},
            paper="https://arxiv.org/abs/2104.08691",
            use_for="many tasks on one large base that is served once; start from a text (adapter.init_text)",
            memory=memory,
            ranges=PROMPT_RANGES | {RATE: "3e-3 to 3e-1"},
        ),
        trainer(
            name="prefix",
            summary="prefix tuning: learned keys and values before the text in every layer; served with the base",
            defaults=front | {"adapter.kind": "prefix", RATE: 1e-2, "training.gradient_checkpointing": False},
            paper="https://arxiv.org/abs/2101.00190",
            use_for="as prompt, with more to learn: it reaches every layer",
            memory=memory,
            ranges=PROMPT_RANGES | {RATE: "1e-3 to 3e-2"},
        ),
        trainer(
            name="ptuning",
            summary="p-tuning: virtual tokens from a small network that is used in training only; served with the base",
            defaults=front | {"adapter.kind": "ptuning", RATE: 1e-3},
            paper="https://arxiv.org/abs/2103.10385",
            use_for="as prompt, where that trains unstably",
            memory=memory,
            ranges=PROMPT_RANGES | {RATE: "1e-4 to 1e-2"},
        ),
        trainer(
            name="adapter",
            summary="LLaMA-Adapter: prompts in the attention of the upper layers, with a gate that starts at zero",
            defaults={"adapter.kind": "adaption-prompt", "adapter.num_virtual_tokens": 10, RATE: 9e-3},
            paper="https://arxiv.org/abs/2303.16199",
            use_for="following instructions with about a million weights (Llama and Mistral)",
            memory=memory,
            ranges={"adapter.num_virtual_tokens": "8 to 20", RATE: "1e-3 to 3e-2"},
        ),
    ]

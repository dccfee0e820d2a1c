"""The methods `unsloth-lora` and `unsloth-qlora`: Unsloth trains, on a GPU, in an environment of its own.

mlflow-ft train unsloth-qlora --model MODEL --data rows.jsonl
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from mlflow_ft import Adapter, Options, Trainer, hookimpl
from mlflow_ft_unsloth.options import UnslothOptions

if TYPE_CHECKING:
    from mlflow_ft import Config, Data, Job, Model, Trained

LORA = {"adapter.kind": "lora", "adapter.r": 16, "training.learning_rate": 2e-4}
RANGES = {"adapter.r": "4 to 64", "adapter.lora_alpha": "r to 2r", "training.learning_rate": "5e-5 to 5e-4"}


def train(job: Job, data: Data, model: Model) -> Trained:
    """Let Unsloth train the adapter."""
    from mlflow_ft_unsloth.engine import training

    return training.train(job, data, model)


def refuses(config: Config, adapter: Adapter) -> str | None:
    """Why Unsloth cannot do what these settings ask for, or cannot run here."""
    from mlflow_ft_unsloth.engine import mapping

    return mapping.refuses(config)


@hookimpl
def register_options() -> list[Options]:
    return [Options(name="unsloth", summary="which Unsloth trains", fields=UnslothOptions)]


@hookimpl
def register_trainers() -> list[Trainer]:
    trainer = partial(Trainer, train=train, refuses=refuses, settings=("options",), scores=("loss",), ranges=RANGES)
    return [
        trainer(
            name="unsloth-lora",
            summary="LoRA, trained by Unsloth on a GPU, in an environment of its own",
            defaults=LORA,
            use_for="Unsloth's kernels on one GPU, with everything else as for lora",
            memory="as lora, or less",
        ),
        trainer(
            name="unsloth-qlora",
            summary="LoRA on a base in 4 bits (NF4), trained by Unsloth on a GPU, in an environment of its own",
            defaults=LORA | {"model.quantize": "nf4", "model.double_quant": True},
            use_for="as unsloth-lora, with less memory",
            memory="as qlora, or less",
        ),
    ]

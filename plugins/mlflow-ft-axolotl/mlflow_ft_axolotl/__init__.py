"""The methods `axolotl-lora` and `axolotl-qlora`: Axolotl trains, in an environment of its own.

mlflow-ft train axolotl-lora --model MODEL --data rows.jsonl
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from mlflow_ft import Adapter, Options, Trainer, hookimpl
from mlflow_ft_axolotl.options import AxolotlOptions

if TYPE_CHECKING:
    from mlflow_ft import Config, Data, Job, Model, Trained

LORA = {"adapter.kind": "lora", "adapter.r": 16, "training.learning_rate": 2e-4}
RANGES = {"adapter.r": "4 to 64", "adapter.lora_alpha": "r to 2r", "training.learning_rate": "5e-5 to 5e-4"}


def train(job: Job, data: Data, model: Model) -> Trained:
    """Let Axolotl train the adapter."""
    from mlflow_ft_axolotl.engine import training

    return training.train(job, data, model)


def refuses(config: Config, adapter: Adapter) -> str | None:
    """Why Axolotl cannot do what these settings ask for."""
    from mlflow_ft_axolotl.engine import mapping

    return mapping.refuses(config)


@hookimpl
def register_options() -> list[Options]:
    return [Options(name="axolotl", summary="which Axolotl trains", fields=AxolotlOptions)]


@hookimpl
def register_trainers() -> list[Trainer]:
    trainer = partial(Trainer, train=train, refuses=refuses, settings=("options",), scores=("loss",), ranges=RANGES)
    return [
        trainer(
            name="axolotl-lora",
            summary="LoRA, trained by Axolotl in an environment of its own",
            defaults=LORA,
            use_for="Axolotl's kernels and optimizers, with everything else as for lora",
            memory="as lora; on a CPU, twice: the model is in two processes",
        ),
        trainer(
            name="axolotl-qlora",
            summary="LoRA on a base in 4 bits (NF4), trained by Axolotl in an environment of its own",
            defaults=LORA | {"model.quantize": "nf4", "model.double_quant": True},
            use_for="as axolotl-lora, with less memory",
            memory="as qlora; on a CPU, twice: the model is in two processes",
        ),
    ]

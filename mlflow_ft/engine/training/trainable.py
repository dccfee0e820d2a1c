"""Load the base model with the adapter to train."""

from __future__ import annotations

import re
from typing import Any

import torch
from peft import PeftModel, TaskType
from transformers import PreTrainedModel, set_seed

from mlflow_ft.config.schema import Config
from mlflow_ft.engine import heap
from mlflow_ft.engine.adapters import unmergeable
from mlflow_ft.engine.hub import quiet_transformers
from mlflow_ft.engine.models import experts, loading, pooling
from mlflow_ft.engine.training import starts
from mlflow_ft.errors import ModelError
from mlflow_ft.values import BaseModel, Data, Job, Model

REFUSALS = (ValueError, TypeError, RuntimeError, AssertionError, LookupError, AttributeError, Warning, re.error)
"""What PEFT and torch raise for an adapter that they cannot attach."""


def prepare(job: Job, data: Data, base: BaseModel) -> Model:
    """Load the base model for training, with the adapter named by `adapter.kind`.

    Raises:
        ModelError: nothing would be trained, or the adapter does not fit, or could not be merged after training.
    """
    heap.keep_compact()
    config = job.config
    adapter = job.registry.adapters[config.adapter.kind]
    module: Any = loading.load_base(config, base)
    loading.agree(module, data)
    module.config.use_cache = False
    if config.model.quantize != "none":
        freeze(module)
    model = Model(base=base, module=module, trainable=0, total=_count(module))
    set_seed(config.run.seed)  # the trainer sets its seed only after the adapter has been initialised
    if base.start:
        module = loading.with_adapter(module, base.start, trainable=True, say=job.progress.say)
    elif (peft_config := adapter.configure(job, model)) is None:
        module.requires_grad_(requires_grad=True).train()
    else:
        if base.task == "score":
            peft_config.task_type = TaskType.SEQ_CLS
        module = _attach(module, peft_config, job=job, data=data, base=base)
    for peft_config in getattr(module, "peft_config", {}).values():  # PEFT wrote the path on this machine
        peft_config.base_model_name_or_path = base.name_or_path
        peft_config.revision = None if base.revision.startswith("sha256:") else base.revision
    if loading.learns_prompt(module) and base.task == "score":
        pooling.read_at_end(module)
    trainable = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    if not trainable:
        raise ModelError(f"adapter {adapter.name!r} leaves nothing to train", hint="check adapter.target_modules")
    if isinstance(module, PeftModel) and adapter.merges:
        _check_mergeable(module, config)
    return Model(base=base, module=module, trainable=trainable, total=model.total)


def freeze(module: PreTrainedModel) -> None:
    """Prepare a quantised base for an adapter: freeze it, and convert weights that are not quantised to float32.

    As PEFT's `prepare_model_for_kbit_training`, except for the experts of a mixture, which bitsandbytes does not
    quantise: they are most of the model, and keep the type in which they were loaded. On a CPU the others are copied:
    they may be parts of a mapped file, which has every weight that was quantised, and stays in memory with them.
    """
    kept = {id(weight) for weight in experts.fused(module).values()}
    for weight in module.parameters():
        weight.requires_grad = False
        half = weight.dtype in (torch.float16, torch.bfloat16) and type(weight).__name__ != "Params4bit"
        if half and id(weight) not in kept:
            weight.data = weight.data.float()
        elif type(weight) is torch.nn.Parameter and weight.device.type == "cpu":
            weight.data = weight.data.clone()


def _attach(module: PreTrainedModel, peft_config: Any, *, job: Job, data: Data, base: BaseModel) -> Any:
    try:
        with loading.quiet_peft(), quiet_transformers():
            wrapped: Any = starts.attach(module, peft_config, job=job, data=data, base=base)
    except REFUSALS as error:
        raise starts.refused(error) from error
    loading.as_float32(wrapped)
    return wrapped


def _check_mergeable(module: PeftModel, config: Config) -> None:
    wanted = "merged" in (config.package.packagers or ("merged",))
    if wanted and (reason := unmergeable.of_model(module)):
        raise ModelError(
            f"the adapter could not be merged after training: adapter {config.adapter.kind}: {reason}",
            hint="change adapter.options, or keep only the adapter with --package.packagers adapter",
        )


def _count(module: torch.nn.Module) -> int:
    """Number of weights; bitsandbytes packs two 4-bit weights into a byte."""
    return sum(
        parameter.numel() * (2 if type(parameter).__name__ == "Params4bit" else 1) for parameter in module.parameters()
    )

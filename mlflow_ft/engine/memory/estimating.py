"""The estimate of a setting's memory."""

from __future__ import annotations

from typing import Any

from mlflow_ft.config.schema import Config
from mlflow_ft.engine import hardware
from mlflow_ft.engine.memory.values import Estimate, Phase, Setting
from mlflow_ft.engine.models import skeleton
from mlflow_ft.values import BaseModel


def estimate(setting: Setting) -> Estimate:
    """The memory that a setting needs, in seconds, without a weight.

    Raises:
        UnsuitedError: the model cannot be built without weights.
    """
    try:
        model = skeleton.bare_model(setting.model, task=setting.task)
    except skeleton.FAILURES as error:
        raise skeleton.UnsuitedError(str(error)) from error
    count = sum(weight.numel() for weight in model.parameters())
    size = {"none": 2 if setting.dtype != "float32" else 4, "int8": 1, "nf4": 0.52}[setting.quantize]
    full = setting.adapter is None
    weights = int(count * (4 if full else size))
    trained = count if full else count // 100
    text = model.config.get_text_config()
    tokens = setting.batch * setting.length
    layers, hidden = text.num_hidden_layers, text.hidden_size
    activations = tokens * hidden * 4 * (layers * (1 if setting.checkpointing else 16))
    parts = {
        "weights": weights,
        "adapter": 0 if full else 4 * trained,
        "gradients": 4 * trained,
        "optimizer": 8 * trained,
        "activations": activations,
        "logits": min(tokens, 1024) * text.vocab_size * 12,
    }
    return Estimate(phases=[Phase(name="training", parts=parts)])


def setting_of(config: Config, registry: Any, base: BaseModel, **changes: Any) -> Setting:
    """The setting of a run's configuration on this machine; `changes` replace fields of it."""
    training = config.training
    values: dict[str, Any] = {
        "model": base.path,
        "task": base.task,
        "method": config.method,
        "batch": training.per_device_train_batch_size,
        "length": config.data.max_length,
        "dtype": str(hardware.compute_dtype(config.model.dtype)).removeprefix("torch."),
        "quantize": config.model.quantize,
        "checkpointing": hardware.checkpointing(config),
        "optimizer": hardware.optimizer(config),
    }
    return Setting(**values | changes)

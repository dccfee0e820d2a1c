"""Liger's Triton kernels for norms and gated MLPs of a model that is trained on a GPU: arXiv 2410.10989.

The loss and the output layer stay as they are: they are computed for the learned tokens only. Only the model that is
trained gets the kernels: those that are compared with it are computed by transformers' own code.
"""

from __future__ import annotations

import sys
from importlib import metadata, util
from typing import Any

import torch
from transformers.integrations.liger import apply_liger_kernel

from mlflow_ft.config.schema import Config
from mlflow_ft.errors import ConfigError

KERNELS = {
    "rms_norm": True,
    "layer_norm": True,
    "swiglu": True,
    "geglu": True,
    "rope": False,
    "cross_entropy": False,
    "fused_linear_cross_entropy": False,
}
"""Which kernels replace parts of a model; the loss is computed by `engine.loss`."""


def wanted(config: Config) -> bool:
    """Whether Liger's kernels are used (`training.liger`)."""
    return config.training.liger is not False and not _why_not(config)


def check(config: Config) -> str:
    """Say what is used where it is asked for.

    Raises:
        ConfigError: Liger's kernels cannot be used here.
    """
    if reason := _why_not(config):
        raise ConfigError(f"training.liger is true, but {reason}", hint="with auto they are used where they can be")
    return f"liger-kernel {metadata.version('liger-kernel')}"


def _why_not(config: Config) -> str:
    if util.find_spec("liger_kernel") is None:
        return "liger-kernel is not installed (pip install liger-kernel)"
    if not torch.cuda.is_available():
        return "there is no GPU"
    return "training.compile replaces the same layers" if config.training.compile else ""


def apply(model: Any) -> None:
    """Use the kernels in a model, with or without an adapter; layers that Liger does not know stay as they are.

    Liger also replaces the classes of this architecture, which later models would be made of: they are put back.
    """
    modules = [module for name, module in sys.modules.items() if name.startswith("transformers.models.")]
    before = [dict(vars(module)) for module in modules]
    apply_liger_kernel(model, KERNELS)
    for module, names in zip(modules, before, strict=True):
        vars(module).update(names)

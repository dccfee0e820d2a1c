"""The work itself, and the only place that imports torch, transformers, peft and trl at module level.

`PUBLIC` lists what plugins may use; it is imported as `from mlflow_ft.engine import sft`, wherever the module is.
"""

import importlib
import logging
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow_ft.engine import aside, environments, hardware, options
    from mlflow_ft.engine.checkpoints import own_loop
    from mlflow_ft.engine.judging import judge, paired, parity, reference
    from mlflow_ft.engine.merging import fold, quantised
    from mlflow_ft.engine.models import left_padding, linear, loading
    from mlflow_ft.engine.rewards import reward_judges
    from mlflow_ft.engine.serving import bundle
    from mlflow_ft.engine.tokens import clock, masking, render, tokenizers, vocabulary
    from mlflow_ft.engine.tools import by_tool, tool_settings
    from mlflow_ft.engine.training import loop, online, preference, reward, sft, unpaired

PUBLIC: Mapping[str, tuple[str, ...]] = {
    "training.sft": ("train",),
    "training.preference": ("dpo", "cpo", "orpo"),
    "training.unpaired": ("kto",),
    "training.reward": ("train",),
    "training.online": ("grpo", "rloo"),
    "training.loop": ("arguments", "callbacks", "keep"),
    "checkpoints.own_loop": ("checkpoints",),
    "models.loading": ("load_saved", "token_ids"),
    "models.left_padding": ("batches", "padded"),
    "models.linear": ("names", "smallest", "common_side"),
    "tokens.tokenizers": ("load",),
    "tokens.render": ("prompt_ids",),
    "tokens.masking": ("encode",),
    "tokens.vocabulary": ("token_layers", "tied"),
    "tokens.clock": ("current", "held"),
    "rewards.reward_judges": ("load", "of_answers", "weighted"),
    "judging.judge": ("answers", "row_losses", "mean_loss"),
    "judging.paired": ("paired_test", "row_differences"),
    "judging.parity": ("measure",),
    "judging.reference": ("keep",),
    "merging.fold": ("merge", "copy_model"),
    "merging.quantised": ("write", "opened"),
    "serving.bundle": ("copy_adapter", "complete"),
    "hardware": ("device", "compute_dtype"),
    "options": ("typed", "made"),
    "aside": ("aside",),
    "environments": ("find_or_make",),
    "tools.by_tool": ("train",),
    "tools.tool_settings": ("sent", "carried", "only", "unsuited", "translated"),
}
"""The public functions by module below `mlflow_ft.engine`; docs/api.md describes each."""

__all__ = [
    "PUBLIC",
    "aside",
    "bundle",
    "by_tool",
    "clock",
    "environments",
    "fold",
    "hardware",
    "judge",
    "left_padding",
    "linear",
    "loading",
    "loop",
    "masking",
    "online",
    "options",
    "own_loop",
    "paired",
    "parity",
    "preference",
    "quantised",
    "reference",
    "render",
    "reward",
    "reward_judges",
    "sft",
    "tokenizers",
    "tool_settings",
    "unpaired",
    "vocabulary",
]

# When it is imported on a CPU, bitsandbytes warns that an optional package for faster inference is not there.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
# LLM.int8() takes its inputs in float16, and would say so at every layer.
logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
# peft 0.21 reads an attribute that transformers 5 has renamed; a user can do nothing about it.
warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)


def __getattr__(name: str) -> Any:
    for module in PUBLIC:
        if module.rpartition(".")[2] == name:
            return importlib.import_module(f"{__name__}.{module}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

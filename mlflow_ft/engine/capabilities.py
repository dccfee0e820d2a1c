"""Whether this machine can do what settings ask of it, found out before any weight is loaded."""

from __future__ import annotations

import importlib
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.import_utils import is_flash_attn_2_available, is_flash_attn_3_available

from mlflow_ft.config.schema import Config
from mlflow_ft.engine import hardware
from mlflow_ft.errors import ConfigError, brief
from mlflow_ft.values.inspected import Caution

ONLY_ON_GPU = ("flash_attention", "flash_attn", "flash-attn")
"""Parts of the names of attention implementations that no CPU can run."""
INSTALLED = {"flash_attention_2": is_flash_attn_2_available, "flash_attention_3": is_flash_attn_3_available}
GPU_FILES = ("/dev/nvidiactl", "/dev/kfd")
"""Exist where the driver of an NVIDIA or an AMD GPU is loaded."""


def check_device() -> str | Caution:
    """The device; a caution if there is a GPU that torch cannot use."""
    if not torch.cuda.is_available() and (there := [file for file in GPU_FILES if Path(file).exists()]):
        built = f"was built for CUDA {torch.version.cuda}" if torch.version.cuda else "was built without CUDA"
        return Caution(
            message=f"training will run on the CPU, although this machine has a GPU ({there[0]}): torch cannot use it",
            remedy=f"torch {torch.__version__} {built}; install one that suits the driver (`nvidia-smi`), and check "
            "CUDA_VISIBLE_DEVICES",
        )
    return hardware.describe()


def check_dtype(config: Config) -> str:
    """Whether the device can compute in `model.dtype`.

    Raises:
        ConfigError: it cannot.
    """
    dtype = hardware.compute_dtype(config.model.dtype)
    if dtype is torch.float16 and not torch.cuda.is_available():
        raise ConfigError(
            "model.dtype float16: a CPU cannot train in it, as mixed precision in float16 needs a GPU",
            hint="use --model.dtype float32 (or bfloat16, which is slow on most CPUs)",
        )
    on_gpu = torch.cuda.is_available()
    if dtype is torch.bfloat16 and on_gpu and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ConfigError(
            f"model.dtype bfloat16: {torch.cuda.get_device_name()} does not have it",
            hint="use --model.dtype float16, or float32; or leave it out",
        )
    return str(dtype).removeprefix("torch.")


def check_attention(config: Config) -> str:
    """Whether `model.attn_implementation` exists here and runs on this device.

    Raises:
        ConfigError: it does not.
    """
    name = config.model.attn_implementation
    if name is None:
        return "chosen by transformers"
    known = ["eager", *ALL_ATTENTION_FUNCTIONS.valid_keys()]
    if name not in known and "/" not in name:  # with a slash it is a kernel on the Hub
        raise ConfigError(
            f"model.attn_implementation: transformers has no {name!r}", hint=f"it has {', '.join(sorted(known))}"
        )
    flash = any(part in name for part in ONLY_ON_GPU)
    if flash and not torch.cuda.is_available():
        raise ConfigError(
            f"model.attn_implementation {name} needs a GPU, and torch has none here",
            hint="leave it out, or use sdpa",
        )
    if name in INSTALLED and not INSTALLED[name]():
        raise ConfigError(
            f"model.attn_implementation {name}: its package is not installed",
            hint="install flash-attn (flash_attention_2) or flash-attn-3, or use sdpa",
        )
    if flash and hardware.compute_dtype(config.model.dtype) is torch.float32:
        raise ConfigError(
            f"model.attn_implementation {name} does not compute in float32",
            hint="use --model.dtype bfloat16 (or float16 on an older GPU), or sdpa",
        )
    return name


def check_rollout(engine: str) -> str:
    """Whether `rollout.engine` can sample answers here.

    Raises:
        ConfigError: it cannot.
    """
    if engine != "vllm":
        return engine
    if not torch.cuda.is_available():
        raise ConfigError(
            "rollout.engine vllm needs a GPU: on a CPU, vLLM repacks its weights and cannot take those of later steps",
            hint="leave it out: transformers then samples the answers",
        )
    if find_spec("vllm") is None:
        raise ConfigError(
            "rollout.engine vllm: vLLM is not installed in this environment",
            hint="pip install 'trl[vllm]', or leave it out: transformers then samples the answers",
        )
    package = metadata.packages_distributions().get("vllm", ["vllm"])[0]  # builds of vLLM have names of their own
    return f"vLLM {metadata.version(package)}"


def check_quantization(quantize: str) -> str:
    """Whether bitsandbytes can be imported; `quantize` is nf4 or int8, from the settings or the base's own files.

    Raises:
        ConfigError: it cannot.
    """
    try:
        package = importlib.import_module("bitsandbytes")
    except Exception as error:  # its native library may fail in many ways
        raise ConfigError(
            f"{quantize} needs bitsandbytes, which cannot be imported: {brief(error, with_type=True)}",
            hint="install it again (pip install bitsandbytes), or use a base in full precision with "
            "--model.quantize none",
        ) from error
    return f"{quantize}, by bitsandbytes {package.__version__}"

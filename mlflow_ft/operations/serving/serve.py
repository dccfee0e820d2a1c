"""Serve models over HTTP until a signal comes: bind the port, load the models, answer requests."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mlflow_ft.errors import ConfigError
from mlflow_ft.operations.serving import served_models
from mlflow_ft.progress import Progress

if TYPE_CHECKING:
    from mlflow_ft.engine.serving.loaded_models import Served

HERE = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, kw_only=True)
class ServeRequest:
    """What to serve, and where."""

    model: str | None = None
    """One model; with adapters, their base."""
    adapters: Mapping[str, str] = field(default_factory=dict)
    """By the name that requests select them by."""
    base: str | None = None
    """The base of the adapters; the recorded one if not given."""
    host: str = "127.0.0.1"
    port: int = 5001
    timeout: int = 600
    """Seconds until the first token, or until the whole answer if it is not streamed."""


def serve(request: ServeRequest, progress: Progress, ready: Callable[[str, Served], None]) -> None:
    """Load the models and answer requests; `ready` is called with the address and the models before the first.

    Raises:
        StoppedError: a signal came. ConfigError, ModelError, RefusedError: a model cannot be served.
    """
    from mlflow_ft.engine.serving import http_server
    from mlflow_ft.tracking import chat_signature
    from mlflow_ft.tracking.signals import StopSignals

    check(request)
    stopping = threading.Event()
    with StopSignals().installed(), http_server.bound(request.host, request.port) as listener:
        models = load(request, progress)
        from mlflow_ft.engine.serving import openai_api

        os.environ["MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT"] = str(request.timeout)  # MLflow's server reads it there
        app = openai_api.make_app(models, chat_signature(), stopping)
        url = f"http://{_shown(request.host)}:{listener.getsockname()[1]}"
        if request.host not in HERE:
            progress.warn(f"anyone who can reach {url} can use the model: there is no authentication")
        http_server.run(app, listener, stopping=stopping, ready=lambda: ready(url, models))


def check(request: ServeRequest) -> None:
    """Raise ConfigError if no model is named, or the base twice."""
    if not request.model and not request.adapters:
        raise ConfigError("no model was named", hint=f"mlflow-ft serve MODEL; MODEL is {served_models.FORMS}")
    if request.adapters and request.model and request.base:
        raise ConfigError("the base of the adapters was named twice", hint="leave out MODEL or --base")


def load(request: ServeRequest, progress: Progress) -> Served:
    """The models, ready to answer."""
    if request.adapters:
        return served_models.together(request.adapters, base=request.base or request.model, progress=progress)
    return served_models.alone(request.model or "", base=request.base, progress=progress)


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host

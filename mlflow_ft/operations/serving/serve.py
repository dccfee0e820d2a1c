"""Serve models over HTTP until a signal comes: bind the port, find the models, hand them to a serving engine."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from mlflow_ft.config.schema import Config
from mlflow_ft.errors import ConfigError
from mlflow_ft.operations.serving import about, proof, served_models
from mlflow_ft.plugins import Plugins
from mlflow_ft.progress import Progress
from mlflow_ft.records import ServingEngine
from mlflow_ft.registry import Registry
from mlflow_ft.values import ServedModel, Serving

HERE = ("127.0.0.1", "localhost", "::1")
OWN = "transformers"
"""The engine that needs nothing else."""


@dataclass(frozen=True, kw_only=True)
class ServeRequest:
    """What to serve, where, and with which engine."""

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
    engine: str = OWN
    follow: float | None = None
    """Seconds between two looks at where the aliases point; None: never."""
    config: Config = field(default_factory=lambda: Config(method="serve"))
    """The options of plugins."""


Ready = Callable[[str, Sequence[str], str], None]
"""Gets the address, the names of the models, and the route of an example request."""


def serve(request: ServeRequest, plugins: Plugins, progress: Progress, ready: Ready) -> None:
    """Find the models and let the engine answer requests; `ready` is called before the first.

    Raises:
        StoppedError: a signal came. ConfigError, ModelError, RefusedError: a model cannot be served.
    """
    from mlflow_ft.engine.serving import http_server
    from mlflow_ft.tracking.signals import StopSignals

    engine = check(request, Registry(plugins))
    with StopSignals().installed(), http_server.bound(request.host, request.port) as listener:
        url = f"http://{_shown(request.host)}:{listener.getsockname()[1]}"
        if request.host not in HERE:
            progress.warn(f"anyone who can reach {url} can use the model: there is no authentication")
        with tempfile.TemporaryDirectory() as scratch:
            engine.serve(_serving(request, listener, url, progress, ready, scratch=Path(scratch)))


def _serving(
    request: ServeRequest, listener: socket.socket, url: str, progress: Progress, ready: Ready, *, scratch: Path
) -> Serving:
    from mlflow_ft.tracking import chat_signature

    return Serving(
        models=find(request, progress),
        together=bool(request.adapters),
        listener=listener,
        url=url,
        timeout=request.timeout,
        follow=request.follow,
        config=request.config,
        signature=chat_signature(),
        progress=progress,
        ready=partial(ready, url),
        prove=partial(proof.prove, progress=progress, scratch=scratch),
        look_up=partial(_look_up, request, progress=progress),
    )


def check(request: ServeRequest, registry: Registry) -> ServingEngine:
    """The engine of a request that it can serve.

    Raises:
        ConfigError: no model is named, or the base twice; no such engine, or it cannot do what is asked.
    """
    if not request.model and not request.adapters:
        raise ConfigError("no model was named", hint=f"mlflow-ft serve MODEL; MODEL is {served_models.FORMS}")
    if request.adapters and request.model and request.base:
        raise ConfigError("the base of the adapters was named twice", hint="leave out MODEL or --base")
    engine = registry.serving_engines[request.engine]
    if request.follow is not None and not engine.follows:
        able = ", ".join(other.name for other in registry.serving_engines if other.follows)
        raise ConfigError(
            f"--follow: the engine {engine.name} cannot change a model while it serves",
            hint=f"engines that can: {able}" if able else "start the server again after a promotion",
        )
    if request.follow is not None and not any(map(_may_move, (request.model or "", *request.adapters.values()))):
        raise ConfigError(
            "--follow: no model is named by an alias", hint="write NAME@champion; what else there is never changes"
        )
    if reason := engine.refuses(request.config):
        raise ConfigError(f"--engine {engine.name}: {reason}")
    return engine


def find(request: ServeRequest, progress: Progress) -> list[ServedModel]:
    """The models with their files, the first one first.

    Raises:
        ModelError: there is no such model or base. TrackingError: the tracking server does not answer.
    """
    if not request.adapters:
        return [about.described(served_models.found(request.model or "", base=request.base, progress=progress))]
    base = request.base or request.model
    return [
        about.described(served_models.found(adapter, name=name, base=base, progress=progress))
        for name, adapter in request.adapters.items()
    ]


def _look_up(request: ServeRequest, model: ServedModel, *, progress: Progress) -> ServedModel | None:
    name = request.adapters.get(model.name, request.model or "")
    if not _may_move(name) or served_models.pinned(name) == model.uri:
        return None
    base = request.base or (request.model if request.adapters else None)
    return served_models.found(name, name=model.name, base=base, progress=progress)


def _may_move(name: str) -> bool:
    """Whether a name may mean another model later: an alias, or the latest version."""
    uri = served_models.uri_of(name)
    return uri.startswith("models:/") and ("@" in uri or uri.endswith("/latest"))


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host

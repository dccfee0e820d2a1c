"""One uvicorn server in this process, which tells when it answers and stops at once when it is asked to."""

from __future__ import annotations

import copy
import socket
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.config import LOGGING_CONFIG

from mlflow_ft.errors import ConfigError

GRACE_SECONDS = 10
"""How long answers that are being written have to end when the server is stopped."""


class Server(uvicorn.Server):
    """A signal ends the answers that are being written; then uvicorn hands it on to whoever waited for it before."""

    def __init__(self, config: uvicorn.Config, *, stopping: threading.Event, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self.stopping, self.ready = stopping, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self.ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.stopping.set()
        super().handle_exit(sig, frame)


def bound(host: str, port: int) -> socket.socket:
    """A socket of its own, taken before a model is loaded; it does not listen yet. Port 0 is any that is free.

    Raises:
        ConfigError: the host is not of this machine, or the port is taken.
    """
    found = None
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError as error:
        if found:
            found.close()
        raise ConfigError(
            f"{host}:{port} cannot be bound: {getattr(error, 'strerror', None) or error}",
            hint="choose another address with --host and --port; --port 0 picks a free port",
        ) from error
    return found


def run(app: Any, listener: socket.socket, *, stopping: threading.Event, ready: Callable[[], None]) -> None:
    """Answer until a signal comes; `ready` is called when requests are answered."""
    logs = copy.deepcopy(LOGGING_CONFIG)
    logs["handlers"]["access"]["stream"] = "ext://sys.stderr"  # stdout is for machines
    logs["loggers"]["uvicorn.error"]["level"] = "WARNING"
    config = uvicorn.Config(app, log_config=logs, timeout_graceful_shutdown=GRACE_SECONDS)
    Server(config, stopping=stopping, ready=ready).run(sockets=[listener])

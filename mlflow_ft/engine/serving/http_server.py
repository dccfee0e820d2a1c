"""A uvicorn server in this process that reports when it is ready and stops at once on a signal."""

from __future__ import annotations

import copy
import errno
import socket
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.config import LOGGING_CONFIG

from mlflow_ft.errors import ConfigError

GRACE_SECONDS = 10
"""How long unfinished answers may take to end when the server is stopped."""


class Server(uvicorn.Server):
    """A signal ends unfinished answers; uvicorn then passes it on to the previous handler.

    It also ends when `stopping` is set by a request.
    """

    def __init__(self, config: uvicorn.Config, *, stopping: threading.Event, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self.stopping, self.ready = stopping, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self.ready()

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or self.stopping.is_set()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.stopping.set()
        super().handle_exit(sig, frame)


def bound(host: str, port: int) -> socket.socket:
    """Bind a socket before a model is loaded; it does not listen yet. Port 0 picks a free port.

    Raises:
        ConfigError: the host does not belong to this machine, or the port is in use.
    """
    listener = None
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        if listener:
            listener.close()
        raise ConfigError(
            f"{host}:{port} cannot be bound: {getattr(error, 'strerror', None) or error}",
            hint="choose another port with --port (0: any free one)"
            if getattr(error, "errno", None) == errno.EADDRINUSE
            else "choose another address with --host and --port; --port 0 picks a free port",
        ) from error
    return listener


def run(
    app: Any, listener: socket.socket, *, stopping: threading.Event, ready: Callable[[], None], access_log: bool = True
) -> None:
    """Serve until a signal comes or `stopping` is set; `ready` is called when the server accepts requests."""
    logs = copy.deepcopy(LOGGING_CONFIG)
    logs["handlers"]["access"]["stream"] = "ext://sys.stderr"  # stdout is for machines
    logs["loggers"]["uvicorn.error"]["level"] = "WARNING"
    config = uvicorn.Config(app, log_config=logs, access_log=access_log, timeout_graceful_shutdown=GRACE_SECONDS)
    Server(config, stopping=stopping, ready=ready).run(sockets=[listener])

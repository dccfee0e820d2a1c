"""An HTTP proxy before a real MLflow server that fails on request: 500, 401, hangs, lost answers, cut connections.

with FaultyProxy(server.uri) as proxy:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.uri)
    proxy.fail("lost", "logged-models$", times=1)  # executed, but the client gets no answer
    ...
    proxy.heal()
"""

from __future__ import annotations

import http.client
import re
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import urlsplit

Kind = Literal["cut", "lost", "hang", "slow"] | int
"""cut: the connection is closed before the request is executed; lost: after it; hang: no answer until `heal`; slow: the
answer comes after `seconds`; a number: this status, without executing the request."""
OWN_HEADERS = {"connection", "transfer-encoding", "content-length", "keep-alive", "server", "date"}


@dataclass
class Failure:
    """Requests that fail: how, which ones, and how many of them."""

    kind: Kind
    pattern: re.Pattern[str]
    method: str = ""
    times: int | None = None
    since: re.Pattern[str] | None = None
    """Nothing fails before a request to this path."""
    seconds: float = 0.5
    hits: int = 0
    """How many requests have failed."""
    healed: threading.Event = field(default_factory=threading.Event)


class FaultyProxy:
    """Passes requests to `upstream` and answers back, except for those that a `Failure` matches."""

    def __init__(self, upstream: str) -> None:
        self.upstream = urlsplit(upstream)
        self.requests: list[str] = []
        """Every request as `METHOD PATH`, in order."""
        self._failures: list[Failure] = []
        self._lock = threading.Lock()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def __getattr__(self, name: str) -> Callable[[], None]:
                if not name.startswith("do_"):
                    raise AttributeError(name)
                return lambda: proxy.handle(self)

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.uri = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> FaultyProxy:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.heal()
        self.fail("cut")  # connections that a client keeps open
        self._server.shutdown()
        self._server.server_close()

    def fail(
        self,
        kind: Kind,
        path: str = "",
        *,
        method: str = "",
        times: int | None = None,
        since: str = "",
        seconds: float = 0.5,
    ) -> Failure:
        """Let requests fail whose path matches the expression: all, or `times` of them; from `since` on, if given."""
        failure = Failure(kind, re.compile(path), method, times, re.compile(since) if since else None, seconds)
        with self._lock:
            self._failures.append(failure)
        return failure

    def heal(self) -> None:
        """Pass everything again; what hangs is passed too."""
        with self._lock:
            failures, self._failures = self._failures, []
        for failure in failures:
            failure.healed.set()

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        """Answer one request."""
        with self._lock:
            self.requests.append(f"{request.command} {request.path}")
            failure = next(filter(lambda each: _hit(each, request), self._failures), None)
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        kind = failure.kind if failure else ""
        if isinstance(kind, int):
            _answer(request, kind, [], b"" if request.command == "HEAD" else b"the proxy refuses")
            return
        if failure and kind in ("hang", "slow"):
            failure.healed.wait(None if kind == "hang" else failure.seconds)
        if kind != "cut":
            status, headers, content = self._passed(request, body)
        if failure and kind == "lost" and status >= 400:  # the check of a store asks for what is refused: not this one
            with self._lock:
                failure.hits -= 1
            kind = ""
        if kind in ("cut", "lost"):
            request.close_connection = True
            request.connection.shutdown(socket.SHUT_RDWR)
            return
        _answer(request, status, headers, content)

    def _passed(self, request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(self.upstream.hostname or "", self.upstream.port, timeout=60)
        try:
            headers = {name: value for name, value in request.headers.items() if name.lower() not in OWN_HEADERS}
            connection.request(request.command, request.path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        except OSError:  # the server itself is away
            return 502, [], b"bad gateway"
        finally:
            connection.close()


def _hit(failure: Failure, request: BaseHTTPRequestHandler) -> bool:
    """Whether this request is one that fails, which counts it."""
    path = request.path.partition("?")[0]
    if failure.since and not failure.since.search(path):
        return False
    failure.since = None
    if failure.method not in ("", request.command) or not failure.pattern.search(path):
        return False
    if failure.times is not None and failure.hits >= failure.times:
        return False
    failure.hits += 1
    return True


def _answer(request: BaseHTTPRequestHandler, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
    try:
        request.send_response(status)
        for name, value in headers:
            if name.lower() not in OWN_HEADERS:
                request.send_header(name, value)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(content)
    except OSError:  # the client has given up
        request.close_connection = True

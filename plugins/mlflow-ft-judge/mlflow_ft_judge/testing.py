"""For tests: a judge over real HTTP on 127.0.0.1 that does what a script says: verdicts, errors, silence."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from mlflow_ft import Answer
from mlflow_ft_judge.settings import JudgeOptions

TEXT = re.compile(r"<(text-[0-9a-f]{12}):([^>]+)>\n(.*?)\n</\1:\2>", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Say:
    """What the server does with a request."""

    text: str = ""
    status: int = 200
    error: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    usage: dict[str, int] | None = field(default_factory=lambda: {"prompt_tokens": 100, "completion_tokens": 10})


@dataclass(kw_only=True)
class Server:
    """The server's address, and everything that it was asked."""

    url: str
    script: Callable[[dict[str, Any]], Say | str]
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    def options(self, **more: Any) -> JudgeOptions:
        """Settings with this server as the judge, without long waits."""
        settings: dict[str, Any] = {
            "endpoint": self.url,
            "model": "scripted",
            "backoff": 0.01,
            "retries": 2,
            "timeout": 5.0,
            "traces": 0,
        }
        return JudgeOptions(**(settings | more))


def texts(body: dict[str, Any]) -> dict[str, str]:
    """The texts that a request shows to the judge, by name."""
    return {name: text for _, name, text in TEXT.findall(body["messages"][1]["content"])}


def fair(body: dict[str, Any]) -> str:
    """A judge that likes the word `good`: the more often, the better."""
    shown = texts(body)
    if "answer" in shown:
        return json.dumps({"reason": "counted", "mark": min(5, 1 + shown["answer"].count("good"))})
    first, second = shown["answer A"].count("good"), shown["answer B"].count("good")
    return json.dumps({"reason": "counted", "winner": "A" if first > second else "B" if second > first else "tie"})


class Handler(BaseHTTPRequestHandler):
    """Answers one request as the script says."""

    server: Any
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.answer(Say(), {"object": "list", "data": [{"id": "scripted"}, {"id": "other"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        scripted: Server = self.server.scripted
        scripted.bodies.append(body)
        scripted.headers.append(dict(self.headers))
        said = scripted.script(body)
        said = Say(text=said) if isinstance(said, str) else said
        time.sleep(said.seconds)
        if said.status != 200:
            return self.answer(said, {"error": {"message": said.error}})
        choice = {"index": 0, "message": {"role": "assistant", "content": said.text}, "finish_reason": "stop"}
        self.answer(said, {"object": "chat.completion", "choices": [choice], "usage": said.usage})
        return None

    def answer(self, said: Say, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        try:
            self.send_response(said.status)
            for name, value in {
                "Content-Type": "application/json",
                "Content-Length": len(data),
                **said.headers,
            }.items():
                self.send_header(name, str(value))
            self.end_headers()
            self.wfile.write(data)
        except (BrokenPipeError, ConnectionResetError):  # who asked has given up
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the name in the standard library
        pass


@contextmanager
def serving(script: Callable[[dict[str, Any]], Say | str] = fair) -> Iterator[Server]:
    """A server that follows a script, while the block runs."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    scripted = Server(url=f"http://127.0.0.1:{server.server_address[1]}/v1", script=script)
    server.scripted = scripted  # type: ignore[attr-defined]  # read by the handler
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield scripted
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def answered(text: str, *, asked: str = "Which?", expected: str = "good") -> Answer:
    """An answer to be judged."""
    return Answer(prompt=({"role": "user", "content": asked},), expected=expected, text=text, finished=True)

"""`mlflow-ft serve --engine vllm`: vLLM behind a front that routes requests to proved models."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import replace

from mlflow_ft import FineTuneError, ServedModel, Serving, StoppedError
from mlflow_ft.engine.serving import http_server
from mlflow_ft_vllm.engine import front
from mlflow_ft_vllm.engine.fleet import Fleet
from mlflow_ft_vllm.options import VllmOptions

WATCH_SECONDS = 0.5


def serve(serving: Serving) -> None:
    """Serve until a signal comes, or until vLLM ends; nothing of it is left running.

    Raises:
        StoppedError: a signal came. FineTuneError: the models cannot be served, or vLLM has ended.
    """
    fleet = Fleet(serving, serving.config.options(VllmOptions))
    stopping = threading.Event()
    keeper = Keeper(fleet, stopping)
    try:
        fleet.start()
        keeper.thread.start()
        app = front.make_app(fleet.targets, timeout=serving.timeout)
        names = fleet.targets.names
        http_server.run(
            app, serving.listener, stopping=stopping, ready=lambda: serving.ready(names, "v1/chat/completions")
        )
    except StoppedError:
        if keeper.failure:
            raise keeper.failure from None
        raise
    finally:
        stopping.set()
        fleet.stop()


class Keeper:
    """A thread that watches vLLM, releases what is no longer used, and follows the names of the models."""

    def __init__(self, fleet: Fleet, stopping: threading.Event) -> None:
        self.fleet, self.stopping = fleet, stopping
        self.failure: FineTuneError | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self._seen: dict[str, ServedModel] = {}
        """The models that were looked at last, by name, served or refused."""
        self._said = ""

    def _run(self) -> None:
        interval = self.fleet.serving.follow
        due = time.monotonic() + (interval or 0)
        while not self.stopping.wait(WATCH_SECONDS):
            if ended := next((process for process in self.fleet.processes if process.ended), None):
                self.failure = ended.fault()
                os.kill(os.getpid(), signal.SIGTERM)  # ends the server in the main thread
                return
            self.fleet.release()
            if interval is not None and time.monotonic() >= due:
                self.follow()
                due = time.monotonic() + interval

    def follow(self) -> None:
        """Look every name up again, and change what it serves; what cannot be served is told once."""
        progress = self.fleet.serving.progress
        for asked in self.fleet.serving.models:
            present = self.fleet.targets.by_name[asked.name].model
            try:
                new = self.fleet.serving.look_up(self._seen.get(asked.name, present))
            except FineTuneError as error:  # tell it once, and go on with what there is
                self._say(f"{asked.name} cannot be looked up: {error.message}")
                continue
            self._said = ""
            if new is None:
                continue
            self._seen[asked.name] = replace(new, name=asked.name)
            if new.uri == present.uri:  # back at what is served
                continue
            try:
                self.fleet.change(new)
            except FineTuneError as error:
                progress.warn(f"{asked.name} is {new.uri} now, but stays {present.uri}: {error}")
            else:
                progress.say(f"{asked.name}: {new.uri} answers from now on, instead of {present.uri}")

    def _say(self, text: str) -> None:
        if text != self._said:
            self.fleet.serving.progress.warn(text)
            self._said = text

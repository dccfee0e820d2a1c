"""`mlflow-ft serve --engine vllm`: vLLM behind a front that routes requests to proved models."""

from __future__ import annotations

import os
import signal
import threading

from mlflow_ft import FineTuneError, ServedModel, Serving, StoppedError, TrackingError
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
        keeper.start()
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
    """Watches vLLM and releases what is no longer used, in one thread; in another, follows the names of the models."""

    def __init__(self, fleet: Fleet, stopping: threading.Event) -> None:
        self.fleet, self.stopping = fleet, stopping
        self.failure: FineTuneError | None = None
        self._seen: dict[str, ServedModel] = {}
        """The models that were looked at last, by name, served or refused."""
        self._said = ""

    def start(self) -> None:
        """Start the threads, which end when the server stops."""
        threading.Thread(target=self._watch, daemon=True).start()
        if self.fleet.serving.follow is not None:
            threading.Thread(target=self._follow, args=(self.fleet.serving.follow,), daemon=True).start()

    def _watch(self) -> None:
        while not self.stopping.wait(WATCH_SECONDS):
            if ended := self.fleet.ended:
                self.failure = ended.fault()
                os.kill(os.getpid(), signal.SIGTERM)  # ends the server in the main thread
                return
            self.fleet.release()

    def _follow(self, seconds: float) -> None:
        while not self.stopping.wait(seconds):
            for asked in self.fleet.serving.models:
                try:
                    self.look_up(asked.name)
                    self._said = ""
                except StoppedError:
                    return
                except FineTuneError as error:  # such as a tracking server that is away: it is asked again
                    self._say(f"{asked.name} cannot be looked up: {error.message}")

    def look_up(self, name: str) -> None:
        """Look a name up again, and change what it serves; a version that cannot be served is told once.

        Raises:
            TrackingError, ModelError: it cannot be looked up.
        """
        progress = self.fleet.serving.progress
        present = self.fleet.targets.by_name[name].model
        new = self.fleet.serving.look_up(self._seen.get(name, present))
        if new is None:
            return
        if new.uri != present.uri:
            try:
                self.fleet.change(new)
            except (TrackingError, StoppedError):
                raise
            except FineTuneError as error:
                progress.warn(f"{name} is {new.uri} now, but {present.uri} goes on answering: {error}")
            else:
                progress.say(f"{name}: {new.uri} answers from now on, instead of {present.uri}")
        self._seen[name] = new

    def _say(self, text: str) -> None:
        if text != self._said:
            self.fleet.serving.progress.warn(text)
            self._said = text

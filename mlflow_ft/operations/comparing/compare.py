"""A blind comparison: both models answer, people vote on a page, the votes become a result in a run of its own."""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from mlflow_ft.config.schema import Config
from mlflow_ft.errors import RefusedError, StoppedError
from mlflow_ft.operations.comparing import asking, recorded, result
from mlflow_ft.operations.comparing.pairs import PAIRS_FILE, RESULT_FILE, Asked, Comparison, drawn
from mlflow_ft.operations.comparing.result import Result
from mlflow_ft.operations.comparing.session import Session
from mlflow_ft.plugins import Plugins
from mlflow_ft.progress import Progress

if TYPE_CHECKING:
    from socket import socket

    from mlflow.entities import Run

    from mlflow_ft.tracking import ActiveRun
    from mlflow_ft.tracking.votes import VoteStore

HOST = "127.0.0.1"


@dataclass(frozen=True, kw_only=True)
class CompareRequest:
    """What to compare, and where to show it."""

    first: str = ""
    second: str = ""
    """Its win rate over the first is the result."""
    resume: str = ""
    """The run of a comparison to continue, instead of two models."""
    config: Config = field(default_factory=lambda: Config(method="compare"))
    """Its section `data` names the rows."""
    limit: int | None = None
    needed: int | None = None
    """Votes after which nothing more is asked."""
    seed: int = 0
    temperature: float = 0.0
    max_tokens: int = 256
    base: str | None = None
    port: int = 0
    by: str = ""

    @property
    def options(self) -> dict[str, Any]:
        """How the models are asked."""
        return {"temperature": self.temperature, "max_tokens": self.max_tokens, "seed": self.seed}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of it."""

    run_id: str
    result: Result | None
    """None: nobody voted."""
    stopped: StoppedError | None = None
    """The signal that ended it while there was something left to vote on."""
    left: int = 0
    """Pairs that are left to vote on."""


Ready = Callable[[str], None]
"""Gets the address of the page."""


def compare(request: CompareRequest, plugins: Plugins, progress: Progress, ready: Ready) -> Outcome:
    """Ask, let people vote until they finish or a signal comes, and log the result.

    Raises:
        ConfigError: the models are the same, the port is in use, or nothing is left to vote on. ModelError, DataError:
        a model or the rows cannot be used. RefusedError: the models answer everything alike.
    """
    from mlflow_ft.engine.serving import http_server
    from mlflow_ft.tracking import vanished

    outcome: Outcome | None = None
    with http_server.bound(HOST, request.port) as listener:
        vanished.reap_quietly()
        run, fresh = _begun(request, plugins, progress)
        try:
            with _opened(run, fresh, plugins) as active:
                active.begin("compare")
                comparison = fresh.ask(active, progress) if fresh else recorded.comparison(active.run_id)
                outcome = _vote(request, comparison, active, listener, ready)
                if outcome.stopped:  # the run is KILLED, and can be continued
                    raise outcome.stopped
        except StoppedError:
            if outcome is None:
                raise
    return outcome


@dataclass(frozen=True, kw_only=True)
class _Fresh:
    """A comparison that no run has begun."""

    asked: Asked
    models: asking.Models

    @property
    def name(self) -> str:
        return f"compare {self.asked.first.uri} and {self.asked.second.uri}"

    def ask(self, active: ActiveRun, progress: Progress) -> Comparison:
        """Generate the answers, and keep them in the run with a trace for each pair."""
        active.set_tags(recorded.tags(self.asked))
        comparison = asking.answer(self.asked, self.models, progress)
        if all(pair.alike for pair in comparison.pairs):
            raise RefusedError(
                f"both models answer all {len(comparison.pairs)} rows alike: there is nothing to choose",
                hint="name rows on which they differ, or more of them",
            )
        comparison = comparison.traced(recorded.traces(active, comparison, progress))
        active.artifact_text(comparison.dumps(), PAIRS_FILE)
        active.set_tags({recorded.READY: "true"})
        return comparison


def _begun(request: CompareRequest, plugins: Plugins, progress: Progress) -> tuple[Run, None] | tuple[None, _Fresh]:
    """The run to continue, or what to begin."""
    if request.resume:
        return recorded.to_resume(request.resume), None
    prompts = asking.prompts(request.config, plugins=plugins, progress=progress)
    chosen = drawn(prompts, limit=request.limit, seed=request.seed)
    models = asking.find(request.first, request.second, base=request.base, progress=progress)
    first, second = models.contestants
    asked = Asked(first=first, second=second, prompts=chosen, seed=request.seed, options=request.options)
    if run := recorded.unfinished(asked):
        progress.say(f"run {run.info.run_id} began this comparison: it is continued, and no vote is asked for again")
        return run, None
    return None, _Fresh(asked=asked, models=models)


@contextmanager
def _opened(run: Run | None, fresh: _Fresh | None, plugins: Plugins) -> Iterator[ActiveRun]:
    from mlflow_ft.tracking import open_operation, unfinished

    with (
        unfinished.reopening(run) if run else nullcontext(),
        open_operation(fresh.name if fresh else "", plugins=plugins) as active,
    ):
        yield active


def _vote(
    request: CompareRequest,
    comparison: Comparison,
    active: ActiveRun,
    listener: socket,
    ready: Ready,
) -> Outcome:
    from mlflow_ft.engine.serving import http_server, voting

    store = recorded.vote_store(active)
    end = partial(_keep_result, comparison, store, active)
    session = Session(comparison.pairs, store.votes(), store, request.by, end, needed=request.needed)
    token, stopping = secrets.token_urlsafe(16), threading.Event()
    app = voting.make_app(session, own_token=token, stopping=stopping)
    url = f"http://{HOST}:{listener.getsockname()[1]}/?token={token}"
    stopped = None
    try:
        http_server.run(app, listener, stopping=stopping, ready=lambda: ready(url), access_log=False)
    except StoppedError as error:
        stopped = error
    found = session.result or end()
    return Outcome(
        run_id=active.run_id,
        result=found,
        stopped=None if session.complete else stopped,
        left=session.view()["left_to_vote"],
    )


def _keep_result(comparison: Comparison, store: VoteStore, active: ActiveRun) -> Result | None:
    """Count the votes that MLflow has, and log the result before anybody sees it; None where there are none."""
    found = result.of(comparison, store.votes())
    if found is not None:
        active.artifact_text(json.dumps(found.as_dict(), indent=2, ensure_ascii=False), RESULT_FILE)
        active.metrics(found.metrics(), step=found.votes)
        active.set_tags(recorded.result_tags(found, active.read()))
    return found

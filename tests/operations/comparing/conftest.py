"""Real comparisons: two tiny models with random weights, a real server on 127.0.0.1, votes in SQLite."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import requests
from mlflow import MlflowClient

from mlflow_ft import plugins
from mlflow_ft.config import pairs, resolve
from mlflow_ft.operations.comparing import compare
from mlflow_ft.operations.comparing.compare import CompareRequest, Outcome
from mlflow_ft.progress import Progress
from mlflow_ft.testing import make_tiny_model, write_jsonl

LOADED = plugins.load({"MLFLOW_FT_PLUGINS": ""})
PROMPTS = ("blue lamp", "red door", "a small stone", "green song", "the heavy apple", "flat")


class Page:
    """The page's requests, as its script makes them."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.base, _, self.token = url.partition("/?token=")

    def get(self) -> Any:
        return self.send("/state").json()

    def post(self, path: str, **body: Any) -> Any:
        return self.send(path, body).json()

    def send(self, path: str, body: Any = None, **headers: str) -> requests.Response:
        headers = {"X-Token": self.token} | headers
        if body is None:
            return requests.get(self.base + path, headers=headers, timeout=30)
        return requests.post(self.base + path, json=body, headers=headers, timeout=30)

    def vote(self, choice: str) -> Any:
        return self.post("/vote", pair=self.get()["pair"], choice=choice)


class Models(NamedTuple):
    first: Path
    second: Path


@pytest.fixture(scope="session")
def two_models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    folder = tmp_path_factory.mktemp("contestants")
    return Models(make_tiny_model(folder / "ann", seed=1), make_tiny_model(folder / "bob", seed=2))


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    turns = [[{"role": "user", "content": text}, {"role": "assistant", "content": "?"}] for text in PROMPTS]
    return write_jsonl(tmp_path / "rows.jsonl", [{"messages": messages} for messages in turns])


Compare = Callable[..., Outcome]


@pytest.fixture
def comparing(tracking_store: str, two_models: Models, rows: Path) -> Compare:
    """`comparing(drive, **settings)`: a comparison in which a thread calls `drive(page)` once the page is there."""

    def call(drive: Callable[[Page], object], **settings: Any) -> Outcome:
        given = {"first": str(two_models.first), "second": str(two_models.second), "max_tokens": 6, "by": "eve"}
        given["config"] = resolve("compare", defaults={}, command_line=pairs(["--data", str(rows)]))
        given = ({} if "resume" in settings else given) | settings
        failures: list[BaseException] = []

        def driven(url: str) -> None:
            try:
                drive(Page(url))
            except BaseException as error:  # raised again in the test
                failures.append(error)
                Page(url).post("/finish")

        threads: list[threading.Thread] = []

        def ready(url: str) -> None:
            threads.append(threading.Thread(target=driven, args=[url]))
            threads[0].start()

        try:
            return compare.compare(CompareRequest(**given), LOADED, Progress(quiet=True), ready)
        finally:
            for thread in threads:
                thread.join()
            if failures:
                raise failures[0]

    return call


@pytest.fixture
def client(tracking_store: str) -> MlflowClient:
    return MlflowClient(tracking_store)

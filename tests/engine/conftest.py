"""A workbench: a job on a tiny model without MLflow, whose training curves are kept in a list."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mlflow_ft import plugins
from mlflow_ft.cli.asked import asked
from mlflow_ft.data import fingerprint
from mlflow_ft.data.store import Column
from mlflow_ft.engine import hub
from mlflow_ft.engine.models import loading
from mlflow_ft.engine.tokens import masking, tokenizers
from mlflow_ft.engine.training import trainable
from mlflow_ft.job import Job
from mlflow_ft.progress import Progress
from mlflow_ft.registry import Registry
from mlflow_ft.rows import Encoded, Example, Place
from mlflow_ft.testing import make_rows
from mlflow_ft.values import Data, Split, Trained
from tests.reports.conftest import small as small


class ListedRun:
    """Keeps what training would tell MLflow."""

    stopping = False
    run_id = "0123456789abcdef0123456789abcdef"

    def __init__(self) -> None:
        self.points: list[tuple[str, int, float]] = []
        self.tables: dict[str, list[dict[str, Any]]] = {}
        self.texts: dict[str, str] = {}
        self.uploaded: list[str] = []
        self.tags: dict[str, str] = {}

    def metric(self, key: str, value: float, *, step: int = 0, **_: Any) -> None:
        self.points.append((key, step, value))

    def table(self, rows: list[dict[str, Any]], path: str) -> None:
        self.tables[path] = rows

    def artifact_text(self, text: str, path: str) -> None:
        self.texts[path] = text

    def set_tags(self, tags: Mapping[str, str]) -> None:
        self.tags |= tags

    def upload_checkpoint(self, folder: Path, *, beside: Path | None = None) -> None:
        self.uploaded.append(folder.name)

    def deferring_stop(self) -> AbstractContextManager[None]:
        return nullcontext()


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A job, its base model and its rows."""

    job: Job
    data: Data
    base: Any
    points: list[tuple[str, int, float]] = field(default_factory=list)

    def train(self) -> Trained:
        method = self.job.registry.trainers[self.job.config.method]
        return method.train(self.job, self.data, trainable.prepare(self.job, self.data, self.base))

    def curve(self, key: str) -> list[float]:
        return [value for name, _, value in self.points if name == key]


def split(name: Any, rows: list[Example], tokenizer: Any, max_length: int = 256) -> Split:
    """Examples as a split, with a mask that must be proved."""
    encoded = masking.encode(tokenizer, rows, max_length=max_length)
    proved = [row for row in encoded if isinstance(row, Encoded)]
    assert len(proved) == len(encoded)
    return Split(
        name=name,
        sources=("rows",),
        source_type="local",
        rows=[Place(file="rows", line=number) for number in range(len(rows))],
        examples=rows,
        encoded=Column.of(proved),
        columns=("messages",),
        counts={"rows": len(rows), "tokens": 0, "supervised_tokens": 0, "truncated": 0, "dropped": 0},
        digest=fingerprint.digest([repr(row).encode() for row in proved], template=name),
    )


@cache
def built_in() -> plugins.Plugins:
    """The built-in plugins. Not to be changed."""
    return plugins.load({"MLFLOW_FT_PLUGINS": ""})


def lay(
    folder: Path,
    method: str,
    *,
    model: Path,
    rows: list[Example] | None = None,
    start: Path | None = None,
    loaded: plugins.Plugins | None = None,
    **settings: Any,
) -> Bench:
    """Make a bench under `folder`; a quarter of the rows is held out."""
    loaded = loaded or built_in()
    quick = {"max_steps": 4, "max_new_tokens": 8, "eval_steps": 100, "per_device_train_batch_size": 4}
    given = quick | {"model": model} | settings
    config = asked([method, *(f"--{key}={value}" for key, value in given.items())], loaded)
    progress, run = Progress(quiet=True), ListedRun()
    rows = rows or [Example(messages=tuple(row["messages"])) for row in make_rows(32)]
    registry = Registry(loaded)
    base = replace(hub.find(config.model, progress), task=registry.trainers[method].task, start=start)
    tokenizer = tokenizers.load(config, base)
    held = max(1, len(rows) // 4)
    train, held_out = split("train", rows[held:], tokenizer), split("eval", rows[:held], tokenizer)
    data = Data(
        train=train,
        eval=held_out,
        format="messages",
        kind=rows[0].kind,
        tokenizer=tokenizer,
        stop_token_ids=masking.end_tokens(train.encoded),
    )
    job = Job(
        config=config,
        plugins=loaded,
        registry=registry,
        run=run,  # type: ignore[arg-type]  # stands in for tracking.ActiveRun
        folder=folder,
        progress=progress,
    )
    return Bench(job=job, data=data, base=base, points=run.points)


@pytest.fixture
def bench(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Bench]:
    """`bench("lora", **{"adapter.r": 4}).train()`: each bench has its own folder and, unless given, cache."""
    made = iter(range(100))

    def make(method: str = "lora", *, model: Path = tiny_model, cache: Path | None = None, **more: Any) -> Bench:
        folder = tmp_path / f"job{next(made)}"
        monkeypatch.setenv("MLFLOW_FT_DATA_CACHE", str(cache or folder / "cache"))
        return lay(folder, method, model=model, **more)

    return make


@pytest.fixture(scope="session")
def learned(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A full run that knows its rows by heart: the bench and what it left. Not to be changed."""
    setup = lay(
        tmp_path_factory.mktemp("learned"),
        "full",
        model=tiny_model,
        max_steps=80,
        learning_rate=5e-3,
        per_device_train_batch_size=8,
    )
    return SimpleNamespace(bench=setup, trained=setup.train())


@pytest.fixture(scope="session")
def module(learned: SimpleNamespace) -> Any:
    """The model that knows its rows, loaded; not to be changed."""
    return loading.load_trained(learned.bench.job, learned.bench.data, learned.trained)


@pytest.fixture(scope="session")
def adapted(learned: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A LoRA run on top of it that changed the model visibly: the bench and what it left. Not to be changed."""
    setup = lay(tmp_path_factory.mktemp("adapted"), "lora", model=learned.trained.model, learning_rate=3e-2)
    return SimpleNamespace(bench=setup, trained=setup.train())

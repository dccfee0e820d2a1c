"""The data engine `ray`: the findings on a cluster are those on one machine."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow_ft_ray.engine import cluster as connection
from mlflow_ft_ray.engine import rows

from mlflow_ft import DataError, plugins
from mlflow_ft.cli.asked import asked
from mlflow_ft.engine import hub
from mlflow_ft.engine.tokens import tokenizers
from mlflow_ft.preparing import across, dataset
from mlflow_ft.preparing.dataset import CheckedData
from mlflow_ft.progress import Progress
from mlflow_ft.registry import Registry
from mlflow_ft.testing import write_jsonl

# Ray Data 2.60 warns of settings of its own whenever it copies its context
pytestmark = pytest.mark.filterwarnings(r"ignore:.use_\w+. is deprecated:DeprecationWarning")
LOADED = plugins.load({"MLFLOW_FT_PLUGINS": "ray"})
WORDS = [f"{first}{middle}{last}" for first in "bdfgklm" for middle in "aeiou" for last in ("rm", "st", "lo", "nd")]


def planted(count: int) -> list[dict[str, Any]]:
    """Rows with exact and near duplicates, conflicting answers, empty answers and a secret."""
    rng = random.Random(count)
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(12, 50))) for _ in range(count // 3)]
    made: list[dict[str, Any]] = []
    for number in range(count):
        text = rng.choice(texts)
        words = text.split()
        for place in rng.sample(range(len(words)), rng.choice((0, 1, 2))):
            words[place] = rng.choice(WORDS)
        answer = "" if number % 90 == 7 else " ".join(words)
        answer += ' password = "s9Kd!2nQx7"' if number % 100 == 9 else ""
        row = {"instruction": f"what about {text[:40]}", "output": answer}
        made.append(rng.choice(made) if made and rng.random() < 0.1 else row)
    return made


def checked(data: Path, model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> CheckedData:
    monkeypatch.setenv("MLFLOW_FT_DATA_CACHE", str(cache))
    pairs = [f"--{key}={value}" for key, value in {"data": data, "model": model, **settings}.items()]
    config, progress = asked(pairs, LOADED, method="prepare"), Progress(quiet=True)
    tokenizer = tokenizers.load(config, hub.find(config.model, progress, weights=False))
    return dataset.prepare(
        config, tokenizer, plugins=LOADED, registry=Registry(LOADED), progress=progress, strict=False
    )


@pytest.fixture(scope="module")
def connected(cluster: Any) -> Iterator[None]:
    """A connection of this process, which the engine uses."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", cluster.address)
        with connection.connected():
            yield


def refuse() -> None:
    raise DataError("this row is no good", hint="write another")


@pytest.mark.usefixtures("connected")
def test_the_findings_are_those_of_one_machine(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(across, "ROWS", 170)
    monkeypatch.setattr(across, "BYTES", 40_000)
    monkeypatch.setattr(rows, "GROUPED", 7_000)
    data = write_jsonl(tmp_path / "rows.jsonl", planted(500))
    here = checked(data, tiny_model, tmp_path / "here", monkeypatch)
    there = checked(data, tiny_model, tmp_path / "there", monkeypatch, **{"data.engine": "ray"})
    counts = {check.name: check.count for check in here.report.checks}
    assert all(counts[name] for name in ("exact-duplicate", "near-duplicate", "conflicting-answers", "secret"))
    assert there.report.as_dict() == here.report.as_dict()
    assert there.removable == here.removable
    assert there.train.stored.table.equals(here.train.stored.table)
    assert there.data.fingerprint == here.data.fingerprint
    assert there.data.train.digest == here.data.train.digest


@pytest.mark.usefixtures("connected")
def test_an_error_on_another_machine_is_the_same_error() -> None:
    with rows.machines() as machines, pytest.raises(DataError, match="this row is no good") as raised:
        machines.get([machines.run(refuse)])
    assert str(raised.value) == "this row is no good\n  write another"

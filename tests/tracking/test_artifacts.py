from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag

from mlflow_ft.config.schema import DataSection
from mlflow_ft.data import sources
from mlflow_ft.errors import DataError, TrackingError
from mlflow_ft.rows import Row
from mlflow_ft.tracking import fetch, trained_on
from mlflow_ft.tracking.inputs import dataset_input
from mlflow_ft.values import Split
from tests.tracking.conftest import Server

ROWS = '{"a": 1}\n{"a": 2}\n'
NAMES = ["rows.jsonl", "my rows/é 'quoted' 数据.jsonl", "deep/er/still/rows.jsonl", "100% + 1.jsonl"]


def new_run() -> str:
    """A run in its own experiment, with artifacts in the store's location."""
    client = MlflowClient()
    return str(client.create_run(client.create_experiment(uuid4().hex)).info.run_id)


def log_rows(*names: str, content: str = ROWS) -> str:
    """A run with files of rows among its artifacts; its id."""
    run_id = new_run()
    for name in names:
        MlflowClient().log_text(run_id, content, name)
    return run_id


def log_inputs(*inputs: DatasetInput) -> str:
    """A run that names these as its inputs; its id."""
    run_id = new_run()
    MlflowClient().log_inputs(run_id, list(inputs))
    return run_id


def used(source: str, context: str | None = "train", digest: str = "d") -> DatasetInput:
    """An input as any program may log it."""
    dataset = Dataset(name="rows", digest=digest, source_type="local", source=source)
    tags = [] if context is None else [InputTag(key="mlflow.data.context", value=context)]
    return DatasetInput(dataset=dataset, tags=tags)


def values(uri: str, **about: Any) -> list[Any]:
    rows = sources.open_source(uri, DataSection(**about)).rows()
    return [row.values["a"] for row in rows if isinstance(row, Row)]


# --- an artifact


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("name", NAMES[:3])
def test_a_file_of_a_run_is_read(name: str) -> None:
    uri = f"runs:/{log_rows(*NAMES[:3])}/{name}"
    assert fetch(uri).read_text() == ROWS
    source = sources.open_source(uri, DataSection())
    assert (source.asked, source.uri, source.kind) == (uri, uri, "local")
    assert [(row.place, row.values) for row in source.rows() if isinstance(row, Row)] == [
        (f"{uri}:1", {"a": 1}),
        (f"{uri}:2", {"a": 2}),
    ]
    assert source.files[0].name == Path(name).name


@pytest.mark.usefixtures("store")
def test_a_folder_of_a_run_is_read() -> None:
    run_id = log_rows("data/train.jsonl", "data/sub/train-2.jsonl", "data/test.jsonl", "other.jsonl")
    for uri in (f"runs:/{run_id}/data", f"runs:/{run_id}/data/"):
        source = sources.open_source(uri, DataSection())
        assert [file.name for file in source.files] == ["sub/train-2.jsonl", "train.jsonl"]
        assert {row.file for row in source.rows()} == {
            f"runs:/{run_id}/data/sub/train-2.jsonl",
            f"runs:/{run_id}/data/train.jsonl",
        }
    assert values(f"runs:/{run_id}/data", split="test") == [1, 2]


@pytest.mark.usefixtures("store")
def test_a_bad_row_of_an_artifact_is_reported_with_its_uri() -> None:
    uri = f"runs:/{log_rows('rows.jsonl', 'list.json', content='[{')}"
    (bad,) = sources.open_source(f"{uri}/rows.jsonl", DataSection()).rows()
    assert bad.place == f"{uri}/rows.jsonl:1"
    with pytest.raises(DataError, match=f"^{uri}/list.json:1: malformed JSON"):
        values(f"{uri}/list.json")


def test_rows_that_a_registered_model_carries_are_read(client: MlflowClient, tmp_path: Path) -> None:
    write = tmp_path / "model" / "data" / "rows.jsonl"
    write.parent.mkdir(parents=True)
    write.write_text(ROWS)
    run_id = new_run()
    client.log_artifacts(run_id, str(tmp_path / "model"), "model")
    client.create_registered_model("my model")
    location = f"{client.get_run(run_id).info.artifact_uri}/model"
    client.create_model_version("my model", source=location, run_id=run_id)
    client.set_registered_model_alias("my model", "champion", "1")
    for uri in ("models:/my model/1", "models:/my model@champion", "models:/my model/latest"):
        assert values(f"{uri}/data/rows.jsonl") == [1, 2]
        assert values(f"{uri}/data") == [1, 2]
        assert values(uri) == [1, 2]


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    "uri",
    [
        "runs:",
        "runs:/",
        "runs://host/rows.jsonl",
        "runs:/0123/rows.jsonl",
        "runs:/RUN/never.jsonl",
        "runs:/RUN/never",
        "runs:/RUN/rows.jsonl/more",
        "runs:/RUN/../RUN/rows.jsonl",
        "runs:/RUN/%2e%2e/%2e%2e/mlflow.db",
        "runs:/RUN/a\0b",
        "models:",
        "models:/",
        "models:/none",
        "models:/none/1",
        "models:/none/1/rows.jsonl",
        "models:/none@champion",
        "models:/none/" + "9" * 30,
        "mlflow-artifacts:",
        "mlflow-artifacts:/0/rows.jsonl",
        "mlflow-artifacts://localhost:9/rows.jsonl",
        "mlflow-artifacts://[/rows.jsonl",
        "models://[none/1",
    ],
)
def test_missing_artifacts_are_reported(uri: str) -> None:
    resolved = uri.replace("RUN", log_rows("rows.jsonl"))
    with pytest.raises(DataError, match=r"cannot be fetched from MLflow|has no such artifact") as error:
        sources.open_source(resolved, DataSection())
    assert repr(resolved) in str(error.value)
    assert "MLFLOW_TRACKING_URI" in str(error.value)
    assert len(str(error.value).splitlines()) == 2


@pytest.mark.usefixtures("store")
def test_an_artifact_without_rows_is_reported() -> None:
    run_id = log_rows("rows.txt.md", "folder/a.bin")
    with pytest.raises(DataError, match=r"rows\.txt\.md' is of an unknown kind"):
        values(f"runs:/{run_id}/rows.txt.md")
    with pytest.raises(DataError, match=f"the folder 'runs:/{run_id}/folder' contains no data file"):
        values(f"runs:/{run_id}/folder")


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_a_server_keeps_is_read(name: str) -> None:
    run_id = log_rows(*NAMES)
    assert values(f"runs:/{run_id}/{name}") == [1, 2]


def test_an_artifact_of_a_server_is_read_by_its_own_uri(server: Server) -> None:
    run_id = log_rows("data/rows.jsonl")
    root = MlflowClient(server.uri).get_run(run_id).info.artifact_uri
    assert root.startswith("mlflow-artifacts:/")
    assert values(f"{root}/data/rows.jsonl") == [1, 2]
    assert values(f"{root}/data") == [1, 2]
    with pytest.raises(DataError, match=r"cannot be fetched from MLflow|has no such artifact"):
        values(f"{root}/never.jsonl")


def test_a_server_that_does_not_answer_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    for uri in ("runs:/0123/rows.jsonl", "runs:/0123", "mlflow-artifacts:/0/rows.jsonl", "models:/m/1"):
        with pytest.raises(TrackingError, match=r"no tracking server answers at http://127\.0\.0\.1:9"):
            sources.open_source(uri, DataSection())


def test_downloads_are_kept_until_the_process_ends(store: str, tmp_path: Path) -> None:
    run_id = log_rows("rows.jsonl")
    code = (
        "import sys; from mlflow_ft.tracking import fetch; files = [fetch(sys.argv[1]) for _ in range(2)];"
        "print(*(file.read_text().count('a') for file in files)); print(*files, sep='\\n')"
    )
    (tmp_path / "temporary").mkdir()
    environment = os.environ | {"TMPDIR": str(tmp_path / "temporary"), "MLFLOW_TRACKING_URI": store}
    command = [sys.executable, "-c", code, f"runs:/{run_id}/rows.jsonl"]
    completed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    counts, first, second = completed.stdout.splitlines()
    assert counts == "2 2"
    assert first != second
    assert Path(first).is_relative_to(tmp_path / "temporary")
    assert list((tmp_path / "temporary").iterdir()) == []


# --- the data of a run


@pytest.mark.usefixtures("store")
def test_a_run_alone_means_the_data_that_it_was_trained_on(split: Split, tmp_path: Path) -> None:
    (tmp_path / "my rows.jsonl").write_text(ROWS)
    train = replace(split, sources=(str(tmp_path / "my rows.jsonl"),))
    held_out = replace(split, name="eval", sources=("/elsewhere.jsonl",), digest="e" * 32)
    run_id = log_inputs(dataset_input(held_out), dataset_input(train))
    assert trained_on(run_id) == str(tmp_path / "my rows.jsonl")
    for uri in (f"runs:/{run_id}", f"runs:/{run_id}/"):
        source = sources.open_source(uri, DataSection())
        assert (source.asked, source.uri) == (uri, str(tmp_path / "my rows.jsonl"))
        assert [row.place for row in source.rows()] == [f"{tmp_path}/my rows.jsonl:{line}" for line in (1, 2)]


@pytest.mark.usefixtures("store")
def test_data_of_the_hub_is_found_by_way_of_a_run(split: Split) -> None:
    run_id = log_inputs(dataset_input(replace(split, sources=("owner/rows",), source_type="hugging_face")))
    source = sources.open_source(f"runs:/{run_id}", DataSection())
    assert (source.kind, source.uri) == ("hugging_face", "owner/rows")
    with pytest.raises(DataError, match="'owner/rows' is not a file, and the Hub does not provide it"):
        list(source.rows())


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("kind", ["runs:/RUN/data/rows.jsonl", "runs:/RUN/data"])
def test_a_run_may_have_been_trained_on_an_artifact_of_another(kind: str) -> None:
    uri = kind.replace("RUN", log_rows("data/rows.jsonl"))
    run_id = log_inputs(used(json.dumps({"uri": uri})))
    assert values(f"runs:/{run_id}") == [1, 2]


@pytest.mark.usefixtures("store")
@pytest.mark.filterwarnings("ignore:The specified dataset source can be interpreted in multiple ways")
def test_data_that_mlflow_itself_logged_is_found(tmp_path: Path) -> None:
    import numpy
    from mlflow.data.numpy_dataset import from_numpy

    (tmp_path / "rows.csv").write_text("a\n1\n")
    run_id = new_run()
    with mlflow.start_run(run_id):
        mlflow.log_input(from_numpy(numpy.ones(1), source=str(tmp_path / "rows.csv")), context="training")
    assert values(f"runs:/{run_id}") == ["1"]


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    ("source", "place"),
    [
        ({"uri": "/rows.jsonl"}, "/rows.jsonl"),
        ({"path": "owner/rows", "revision": "v1"}, "owner/rows"),
        ({"url": "https://host/rows.jsonl"}, "https://host/rows.jsonl"),
        ({"uri": None, "path": "", "url": "u"}, "u"),
        ({"uri": 1, "path": ["x"]}, None),
        ({"tags": {"mlflow.source.name": "notebook"}}, None),
        ({}, None),
    ],
)
def test_the_source_of_the_data_is_found_or_reported_missing(source: Mapping[str, Any], place: str | None) -> None:
    run_id = log_inputs(used(json.dumps(source)))
    if place is not None:
        assert trained_on(run_id) == place
        return
    with pytest.raises(DataError, match=f"data 'runs:/{run_id}': the run recorded no training data") as error:
        trained_on(run_id)
    assert "runs:/RUN_ID/path/of/the/file" in str(error.value)


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("source", ["not JSON", "{", "[]", '"/rows.jsonl"', "null", "1", "[" * 5000])
def test_a_source_in_another_format_is_ignored(source: str) -> None:
    run_id = log_inputs(used(source))
    with pytest.raises(DataError, match="recorded no training data"):
        trained_on(run_id)


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("context", [None, "eval", "validation", "test", ""])
def test_data_of_another_use_was_not_trained_on(context: str | None) -> None:
    run_id = log_inputs(used('{"uri": "/rows.jsonl"}', context))
    with pytest.raises(DataError, match="recorded no training data"):
        trained_on(run_id)


@pytest.mark.usefixtures("store")
def test_several_sources_are_reported_and_none_is_chosen() -> None:
    first, second = used('{"uri": "/a.jsonl"}', digest="1"), used('{"uri": "/b.jsonl"}', "training", digest="2")
    again = used('{"uri": "/a.jsonl"}', digest="3")
    assert trained_on(log_inputs(first, again)) == "/a.jsonl"
    with pytest.raises(
        DataError, match=r"the run recorded several sources: /[ab]\.jsonl, /[ab]\.jsonl\n  choose among them"
    ):
        trained_on(log_inputs(first, second))


@pytest.mark.usefixtures("store")
def test_runs_that_point_at_runs_do_not_go_round() -> None:
    first = log_inputs(used('{"uri": "/rows.jsonl"}'))
    second = log_inputs(used(json.dumps({"uri": f"runs:/{first}"}), digest="e"))
    with pytest.raises(DataError, match=f"trained on the data of another run, 'runs:/{first}'"):
        sources.open_source(f"runs:/{second}", DataSection())


@pytest.mark.usefixtures("store")
def test_a_run_without_data_or_a_missing_run_is_reported() -> None:
    run_id = log_inputs()
    for wrong_id in (run_id, "0" * 32, "none", "x" * 300):
        with pytest.raises(DataError, match=f"^data 'runs:/{wrong_id}': "):
            sources.open_source(f"runs:/{wrong_id}", DataSection())


@pytest.mark.usefixtures("store")
def test_missing_data_of_a_run_is_reported() -> None:
    run_id = log_inputs(used('{"uri": "/no/longer/there.jsonl"}'))
    with pytest.raises(DataError, match=r"the data file '/no/longer/there\.jsonl' does not exist"):
        sources.open_source(f"runs:/{run_id}", DataSection())


def test_a_run_that_was_trained_on_a_mixture_names_its_sources(store: str, split: Split) -> None:
    run_id = log_inputs(dataset_input(replace(split, sources=("/data/a.jsonl", "/data/b, c.jsonl"))))
    with pytest.raises(DataError, match=r"the run recorded several sources: /data/a\.jsonl, /data/b, c\.jsonl"):
        trained_on(run_id)
    assert trained_on(log_inputs(dataset_input(split))) == "/data/rows.jsonl"

"""Checkpoints in a run's artifacts: complete or absent, each file once, the earlier ones removed."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from mlflow_ft.manifest import verify_manifest, write_manifest
from mlflow_ft.tracking import checkpoints, fetch_checkpoint
from mlflow_ft.tracking.checkpoints import CheckpointUploads


def a_checkpoint(parent: Path, step: int, **files: str) -> Path:
    folder = parent / f"step-{step:06}"
    folder.mkdir()
    for name, content in files.items():
        (folder / f"{name}.json").write_text(content)
    write_manifest(folder)
    return folder


@pytest.fixture
def run_id(client: MlflowClient) -> str:
    return str(client.create_run("0").info.run_id)


def stored(client: MlflowClient, run_id: str, path: str) -> list[str]:
    return sorted(Path(file.path).name for file in client.list_artifacts(run_id, path) if not file.is_dir)


def uploaded(client: MlflowClient, folder: Path, run_id: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Upload, and return the folder of every file that was sent, in order."""
    sent: list[str] = []
    log = MlflowClient.log_artifact

    def noted(self: Any, run_id: str, local: str, artifact_path: str | None = None) -> None:
        sent.append(f"{artifact_path}/{Path(local).name}")
        log(self, run_id, local, artifact_path)

    with monkeypatch.context() as patched:
        patched.setattr(MlflowClient, "log_artifact", noted)
        checkpoints.upload(client, run_id, folder)
    return sent


def test_what_did_not_change_is_not_sent_again_and_the_manifest_comes_last(
    client: MlflowClient, run_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = uploaded(client, a_checkpoint(tmp_path, 5, weights="a", fixed="same"), run_id, monkeypatch)
    assert [len(first), first[-1]] == [3, "checkpoints/step-000005.json"]
    second = uploaded(client, a_checkpoint(tmp_path, 10, weights="b", fixed="same"), run_id, monkeypatch)
    assert [len(second), second[-1]] == [2, "checkpoints/step-000010.json"]
    assert stored(client, run_id, "checkpoints") == ["step-000010.json"]
    assert len(stored(client, run_id, "checkpoints/files")) == 2


def test_a_checkpoint_comes_back_as_it_was(client: MlflowClient, run_id: str, tmp_path: Path) -> None:
    folder = a_checkpoint(tmp_path, 1_000_005, weights="a", copy="a", state="b")  # two files with the same content
    checkpoints.upload(client, run_id, folder)
    fetched = fetch_checkpoint(run_id, tmp_path / "there", print)
    assert fetched == tmp_path / "there" / "step-1000005"
    verify_manifest(fetched)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == {
        file.name: file.read_bytes() for file in fetched.iterdir()
    }
    assert fetch_checkpoint(run_id, tmp_path / "there", print, after=1_000_005) is None
    assert fetch_checkpoint(client.create_run("0").info.run_id, tmp_path / "there", print) is None


def test_an_incomplete_checkpoint_is_skipped_for_the_one_before(
    client: MlflowClient, run_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "_remove_others", lambda *_: None)
    for step in (999_999, 1_000_000):  # by number, not by name
        checkpoints.upload(client, run_id, a_checkpoint(tmp_path, step, weights=str(step)))
    said: list[str] = []
    fetched = fetch_checkpoint(run_id, tmp_path / "there", said.append)
    assert fetched is not None
    assert fetched.name == "step-1000000"
    files = Path(client.get_run(run_id).info.artifact_uri, "checkpoints", "files")
    next(file for file in files.iterdir() if file.read_text() == "1000000").write_text("999")
    again = fetch_checkpoint(run_id, tmp_path / "elsewhere", said.append)
    assert again is not None
    assert again.name == "step-999999"
    assert not (tmp_path / "elsewhere" / "step-1000000").exists()
    assert said[0].startswith("step-1000000: the checkpoint in the store is incomplete and is skipped")


def test_an_upload_waits_for_the_curves_and_the_newest_is_enough(
    client: MlflowClient, run_id: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    delivered = [False, True]
    with caplog.at_level(logging.WARNING):
        uploads = CheckpointUploads(client.tracking_uri, run_id, lambda: delivered.pop(0))
        uploads.put(a_checkpoint(tmp_path, 1, weights="a"))
        uploads.close()
    assert "step-000001: not uploaded, because metrics could not be delivered" in caplog.text
    assert stored(client, run_id, "checkpoints") == []
    uploads = CheckpointUploads(client.tracking_uri, run_id, lambda: delivered.pop(0))
    uploads.put(a_checkpoint(tmp_path, 2, weights="b"))
    uploads.close()
    assert stored(client, run_id, "checkpoints") == ["step-000002.json"]


def test_a_checkpoint_that_was_removed_meanwhile_is_a_warning(
    client: MlflowClient, run_id: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    uploads = CheckpointUploads(client.tracking_uri, run_id, lambda: True)
    uploads.put(tmp_path / "step-000007")
    uploads.close()
    assert "step-000007: the checkpoint could not be uploaded" in caplog.text


def test_the_best_one_stays_beside_the_last(client: MlflowClient, run_id: str, tmp_path: Path) -> None:
    best, later, last = (
        a_checkpoint(tmp_path, step, weights=str(step), fixed="same", shared="b" if step > 2 else "a")
        for step in (2, 4, 6)
    )
    checkpoints.upload(client, run_id, later)
    checkpoints.upload(client, run_id, last, beside=best)  # which was not uploaded in its time
    assert stored(client, run_id, "checkpoints") == ["step-000002.json", "step-000006.json"]
    assert len(stored(client, run_id, "checkpoints/files")) == 5
    again = a_checkpoint(tmp_path, 8, weights="8", fixed="same", shared="b")
    checkpoints.upload(client, run_id, again, beside=best)
    assert stored(client, run_id, "checkpoints") == ["step-000002.json", "step-000008.json"]
    fetched = fetch_checkpoint(run_id, tmp_path / "there", print, before=8)
    assert fetched == tmp_path / "there" / "step-000002"
    verify_manifest(fetched)
    assert fetch_checkpoint(run_id, tmp_path / "there", print, after=2, before=8) is None
    checkpoints.upload(client, run_id, again, beside=again)  # it is the best one itself
    assert stored(client, run_id, "checkpoints") == ["step-000008.json"]

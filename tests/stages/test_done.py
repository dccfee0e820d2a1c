from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlflow_ft.stages import done


def test_a_stage_that_finished_says_what_it_found(tmp_path: Path) -> None:
    folder = tmp_path / "train" / "inner"
    assert done.result(folder) is None
    done.finish(folder, {"loss": 1.5, "of": {"a": [1]}})
    assert done.result(folder) == {"loss": 1.5, "of": {"a": [1]}}
    assert [file.name for file in folder.iterdir()] == [done.NAME]


def test_a_stage_that_finishes_again_says_the_last(tmp_path: Path) -> None:
    done.finish(tmp_path, {"try": 1})
    done.finish(tmp_path, {"try": 2})
    assert done.result(tmp_path) == {"try": 2}


def test_a_stage_that_was_cut_short_is_not_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever ends the writing, there is no `done.json`, or the one that was there before, whole."""

    def die(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    for step in ("json.dumps", "os.fsync"):
        with monkeypatch.context() as patched:
            patched.setattr(f"mlflow_ft.disk.{step}", die)
            with pytest.raises(OSError, match="No space"):
                done.finish(tmp_path, {"try": 1})
        assert done.result(tmp_path) is None
    done.finish(tmp_path, {"try": 2})
    with monkeypatch.context() as patched:
        patched.setattr("mlflow_ft.disk.os.fsync", die)
        with pytest.raises(OSError, match="No space"):
            done.finish(tmp_path, {"try": 3})
    assert json.loads((tmp_path / done.NAME).read_text()) == {"try": 2}

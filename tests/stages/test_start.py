from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from mlflow_ft import plugins
from mlflow_ft.config.schema import Config
from mlflow_ft.errors import ConfigError, DataError, ResourceError
from mlflow_ft.job import Job
from mlflow_ft.registry import Registry
from mlflow_ft.stages import done, start
from tests.small_disk import mounted

GOOD = {
    "method": "lora",
    "adapter": {"kind": "lora"},
    "data": {"format": "alpaca"},
    "evaluation": {"evaluators": ["loss"]},
    "package": {"packagers": ["adapter"]},
}
UNKNOWN = {
    "trainer": {"method": "lroa"},
    "adapter": {"adapter": {"kind": "lroa"}},
    "format": {"data": {"format": "lroa"}},
    "evaluator": {"evaluation": {"evaluators": ["loss", "lroa"]}},
    "packager": {"package": {"packagers": ["adapter", "lroa"]}},
}


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry(plugins.load({}))


def test_names_that_are_registered_pass(registry: Registry) -> None:
    start.check_names(Config.model_validate(GOOD), registry)
    start.check_names(Config(method="qlora"), registry)


@pytest.mark.parametrize("kind", UNKNOWN)
def test_a_name_that_nobody_registered_is_told_before_anything_is_loaded(registry: Registry, kind: str) -> None:
    config = Config.model_validate(GOOD | UNKNOWN[kind])
    called = "method" if kind == "trainer" else kind
    with pytest.raises(ConfigError, match=f"unknown {called} 'lroa'") as error:
        start.check_names(config, registry)
    assert error.value.hint


@pytest.mark.parametrize("quantize", ["nf4", "int8"])
def test_a_quantised_base_does_not_train_itself(registry: Registry, quantize: str) -> None:
    config = Config.model_validate({"method": "full", "model": {"quantize": quantize}})
    with pytest.raises(ConfigError, match=quantize) as caught:
        start.check_names(config, registry)
    assert "--adapter.kind lora" in caught.value.hint
    assert "--model.quantize none" in caught.value.hint


@pytest.mark.parametrize("kind", ["prompt", "prefix", "ptuning", "adaption-prompt", "beft", "lily"])
def test_merging_what_does_not_merge_is_refused_before_training(registry: Registry, kind: str) -> None:
    settings = {"method": "lora", "adapter": {"kind": kind}, "training": {"gradient_checkpointing": False}}
    start.check_names(Config.model_validate(settings), registry)
    config = Config.model_validate(settings | {"package": {"packagers": ["adapter", "merged"]}})
    with pytest.raises(ConfigError, match=f"adapter {kind} cannot be merged"):
        start.check_names(config, registry)


FULL = {
    "python": OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    "rust": RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
}


@pytest.mark.parametrize("told_by", FULL)
def test_a_full_disk_is_an_error_with_a_remedy(tmp_path: Path, told_by: str) -> None:
    message = f"no space is left on the disk while writing under {tmp_path}"
    with pytest.raises(ResourceError, match=message) as error, start.writing(tmp_path):
        raise FULL[told_by]
    assert "--run.output_dir" in error.value.hint


@pytest.mark.parametrize("kind", [PermissionError, NotADirectoryError, FileExistsError])
def test_a_folder_that_cannot_be_written_is_one_too(tmp_path: Path, kind: type[OSError]) -> None:
    with pytest.raises(ResourceError, match=f"cannot write under {tmp_path}: because"), start.writing(tmp_path):
        raise kind(1, "because", str(tmp_path / "journal.jsonl"))


def test_an_error_about_another_place_is_not_blamed_on_the_folder(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), start.writing(tmp_path / "outputs" / "run"):
        raise PermissionError(13, "Permission denied", "/somewhere/model.safetensors")


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    for error in (DataError("a row"), ValueError("x"), KeyboardInterrupt()):
        with pytest.raises(type(error)), start.writing(tmp_path):
            raise error


def test_a_file_in_the_place_of_the_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "outputs").write_text("")
    folder = tmp_path / "outputs" / "run"
    with pytest.raises(ResourceError, match="cannot write under"), start.writing(folder):
        folder.mkdir(parents=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 64 KiB."""
    with mounted(tmp_path / "disk", "64k") as folder:
        yield folder


def test_a_disk_that_is_really_full(small_disk: Path) -> None:
    import torch
    from safetensors.torch import save_file

    with contextlib.suppress(OSError):
        (small_disk / "filler").write_bytes(bytes(2**20))
    with pytest.raises(ResourceError, match="no space is left"), start.writing(small_disk):
        save_file({"weights": torch.zeros(100_000)}, small_disk / "model.safetensors")
    with pytest.raises(ResourceError, match="no space is left"), start.writing(small_disk):
        done.finish(small_disk, {"x": "y" * 100_000})
    assert done.result(small_disk) is None


def test_plugins_see_the_error_that_the_user_sees(tmp_path: Path) -> None:
    seen: list[tuple[str, Any]] = []

    def watch(hook: str, **arguments: Any) -> None:
        seen.append((hook, arguments["error"]))

    job = cast(Job, SimpleNamespace(folder=tmp_path, plugins=SimpleNamespace(watch=watch)))
    with pytest.raises(ResourceError) as error, start.reporting_to_plugins(job):
        raise FULL["python"]
    assert seen == [("on_run_error", error.value)]

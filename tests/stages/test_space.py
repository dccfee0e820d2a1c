"""The disk space that a run needs is estimated, and checked before the work begins."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from safetensors.torch import load_file

from mlflow_ft import plugins
from mlflow_ft.config.schema import Config
from mlflow_ft.errors import ResourceError
from mlflow_ft.registry import Registry
from mlflow_ft.stages import space
from mlflow_ft.stages.space import Need


def sizes(base: Path, method: str, **settings: object) -> dict[str, int]:
    config = Config.model_validate({"method": method, **settings})
    needed = space.needs(config, Registry(plugins.load({})), base, folder=Path("out"), artifacts=Path("artifacts"))
    return {need.what: need.size for need in needed}


def test_full_fine_tuning_keeps_weights_and_optimizer(tiny_model: Path) -> None:
    weights = sum(weight.numel() for weight in load_file(tiny_model / "model.safetensors").values())
    needed = sizes(tiny_model, "full", training={"save_total_limit": 3})
    assert needed["checkpoints"] == 12 * weights * 4
    assert needed["trained model"] == 4 * weights
    assert needed["packaged model"] == needed["artifacts"] == (tiny_model / "model.safetensors").stat().st_size


def test_an_adapter_is_small_but_for_its_merge(tiny_model: Path) -> None:
    lora = {"adapter": {"kind": "lora"}}
    needed = sizes(tiny_model, "lora", **lora)
    assert needed["checkpoints"] < sizes(tiny_model, "full")["checkpoints"] / 10
    assert set(needed) == {"checkpoints", "packaged model", "its copy loaded again", "artifacts"}
    assert set(sizes(tiny_model, "lora", **lora, package={"packagers": ["adapter"]})) == {"checkpoints"}
    assert set(sizes(tiny_model, "prompt", adapter={"kind": "prompt"})) == {"checkpoints"}


def test_a_resumed_run_has_written_some_of_it(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("out", "train").mkdir(parents=True)
    Path("out", "train", "weights").write_bytes(bytes(1000))
    assert sizes(tiny_model, "full")["already there"] == -1000


def test_a_base_that_will_be_fetched_needs_space_too(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors.index.json").write_text('{"metadata": {"total_size": 2000}, "weight_map": {}}')
    assert sizes(tmp_path, "full")["the base model"] == 2000
    assert sizes(tmp_path, "full")["trained model"] == 4 * 1000


def test_every_disk_must_have_room_for_all_that_goes_to_it(tmp_path: Path) -> None:
    free = 2**50
    new = tmp_path / "not" / "there" / "yet"
    assert "free under" in space.check([Need(what="model", place=new, size=0)])
    small = Need(what="model", place=tmp_path, size=2**30)
    with pytest.raises(ResourceError, match=r"needs about 1048577\.0 GiB under .*, and \d+\.\d GiB are free") as error:
        space.check([small, Need(what="checkpoints", place=new, size=free)])
    assert "(model 1.0 GiB, checkpoints 1048576.0 GiB)" in error.value.message
    assert "--run.output_dir" in error.value.hint
    assert not new.exists()
    assert Path(tempfile.gettempdir()).is_dir()

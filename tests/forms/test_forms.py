"""Forms of a trained model: each is compared with it, a faulty one is refused, and what is exported is kept."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient
from safetensors.torch import load_file, save_file

from mlflow_ft import Exporter, Packager, hookimpl
from mlflow_ft.builtin import exporters, packagers
from mlflow_ft.engine.serving import bundle
from mlflow_ft.errors import ConfigError, RefusedError
from mlflow_ft.forms import compare
from mlflow_ft.job import Job
from mlflow_ft.stages import package
from mlflow_ft.testing import make_tiny_model
from mlflow_ft.values import Trained

WELL = {"max_steps": 8, "learning_rate": 0.02, "max_new_tokens": 16}
"""Trains far enough from the base for a fault to show."""
WEIGHTS = "model.safetensors"


def weights(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS, metadata={"format": "pt"})


def without_adapter(job: Job, trained: Trained, folder: Path) -> None:
    shutil.copy(trained.base.path / WEIGHTS, folder / WEIGHTS)


def scaled_by_rank_alone(job: Job, trained: Trained, folder: Path) -> None:
    """1 / r in place of lora_alpha / r."""
    base, scale = load_file(trained.base.path / WEIGHTS), 2 * job.config.adapter.r
    weights(folder, lambda merged: {name: base[name] + (merged[name] - base[name]) / scale for name in merged})


def another_base(job: Job, trained: Trained, folder: Path) -> None:
    base, other = (
        load_file(place / WEIGHTS) for place in (trained.base.path, make_tiny_model(folder.parent / "other", seed=1))
    )
    weights(folder, lambda merged: {name: other[name] + merged[name] - base[name] for name in merged})


def not_a_number(job: Job, trained: Trained, folder: Path) -> None:
    weights(folder, lambda merged: merged | {"model.norm.weight": merged["model.norm.weight"] * float("nan")})


def faulty(plant: Callable[[Job, Trained, Path], None]) -> ModuleType:
    """A plugin whose packager makes one mistake."""

    def package(job: Job, trained: Trained, folder: Path) -> None:
        packagers.package_merged(job, trained, folder)
        plant(job, trained, folder)

    module: Any = ModuleType(f"faulty_{plant.__name__}")
    module.register_packagers = hookimpl(
        lambda: [Packager(name="faulty", summary="makes a mistake", package=package)], specname="register_packagers"
    )
    return module


@pytest.mark.parametrize(
    ("plant", "said"),
    [
        (without_adapter, "times as far from the trained model as the base is"),
        (scaled_by_rank_alone, "times as far from the trained model as the base is"),
        (another_base, "mean KL"),
        (not_a_number, "mean KL is nan"),
    ],
)
def test_a_mistake_in_the_weights_is_refused(
    fine_tune: Callable[..., Any], tiny_model: Path, tiny_rows: Path, plant: Any, said: str
) -> None:
    with pytest.raises(RefusedError) as caught:
        fine_tune(
            *("lora", faulty(plant)),
            **{"model": tiny_model, "data": tiny_rows, "package.packagers": "faulty", "package.max_kl": 0.02, **WELL},
        )
    assert "'faulty' is not the model that was trained" in caught.value.message
    assert said in caught.value.message
    assert "parity/faulty.json" in caught.value.hint
    client = MlflowClient()
    assert not client.search_registered_models()
    (run,) = client.search_runs(["0"])
    assert run.info.status == "FAILED"
    assert {file.path for file in client.list_artifacts(run.info.run_id, "parity")} == {
        "parity/faulty.json",
        f"parity/{compare.REFERENCE}",
    }


def test_a_weak_training_that_is_lost_is_seen_by_its_share_alone(
    fine_tune: Callable[..., Any], tiny_model: Path, tiny_rows: Path
) -> None:
    """The whole way from the base is shorter than `max_kl`; without its adapter the model would pass."""
    weak = {"max_steps": 3, "learning_rate": 0.004, "package.max_kl": 10}
    with pytest.raises(RefusedError) as caught:
        fine_tune(
            *("lora", faulty(without_adapter)),
            **{"model": tiny_model, "data": tiny_rows, "package.packagers": "faulty", **weak},
        )
    assert "it is 1 times as far from the trained model as the base is" in caught.value.message
    assert "mean KL" not in caught.value.message


def no_special_tokens(folder: Path) -> None:
    file = folder / "tokenizer.json"
    settings = json.loads(file.read_text())
    settings["added_tokens"] = [token for token in settings["added_tokens"] if "im_start" not in token["content"]]
    file.write_text(json.dumps(settings))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(
        json.dumps({key: value for key, value in settings.items() if "special_tokens" not in key})
    )


def another_template(folder: Path) -> None:
    file = folder / "chat_template.jinja"
    file.write_text(file.read_text().replace("<|im_start|>", "<|im_end|>"))


@pytest.mark.parametrize("plant", [no_special_tokens, another_template])
def test_a_mistake_in_the_tokenizer_is_refused(
    fine_tune: Callable[..., Any], tiny_model: Path, tiny_rows: Path, plant: Callable[[Path], None]
) -> None:
    def export(source: Path, folder: Path) -> None:
        exporters.export_int8(source, folder)
        plant(folder)

    module: Any = ModuleType(f"faulty_{plant.__name__}")
    record = Exporter(name="faulty", summary="makes a mistake", export=export, opened=exporters.opened, suffix="-bad")
    module.register_exporters = hookimpl(lambda: [record], specname="register_exporters")
    with pytest.raises(RefusedError, match="does not render rows as they were trained"):
        fine_tune("lora", module, model=tiny_model, data=tiny_rows, **{"package.exports": "faulty"})
    assert not MlflowClient().search_registered_models()


def test_the_model_in_fewer_bits_is_registered_beside_it(
    fine_tune: Callable[..., Any], tiny_model: Path, tiny_rows: Path
) -> None:
    outcome = fine_tune("lora", model=tiny_model, data=tiny_rows, **{"package.exports": "nf4,int8"}, **WELL)
    client = MlflowClient()
    names = [version.name for version in outcome.versions]
    assert [name.rpartition("-")[2] for name in names] == ["lora", "adapter", "nf4", "int8"]
    metrics = client.get_run(outcome.run_id).data.metrics
    for version, form in zip(outcome.versions[2:], ("nf4", "int8"), strict=True):
        tags = client.get_model_version(version.name, str(version.version)).tags
        assert tags["mlflow_ft.form"] == form
        assert float(tags["mlflow_ft.parity.kl_mean"]) == pytest.approx(metrics[f"parity/{form}/kl_mean"], rel=1e-4)
        assert 0 < metrics[f"parity/{form}/kl_mean"] < 0.1
        folder = Path(mlflow.artifacts.download_artifacts(f"models:/{version.name}/{version.version}"))
        assert "bitsandbytes==" in (folder / "requirements.txt").read_text()
        assert "peft" not in (folder / "requirements.txt").read_text()
        settings = json.loads((folder / "artifacts/model/config.json").read_text())["quantization_config"]
        assert settings["load_in_4bit"] is (form == "nf4")
        answer = mlflow.pyfunc.load_model(str(folder)).predict({"messages": [{"role": "user", "content": "red"}]})
        assert answer["object"] == "chat.completion"
    assert metrics["parity/nf4/kl_mean"] > metrics["parity/int8/kl_mean"] > metrics["parity/merged/kl_mean"]


def spoilt(plant: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let something happen to a form after it was compared."""
    seal = package._seal

    def sealed(job: Job, data: Any, trained: Trained, form: package.KeptForm, scores: Any) -> None:
        plant(form.folder)
        seal(job, data, trained, form, scores)

    monkeypatch.setattr(package, "_seal", sealed)


def test_what_was_logged_is_loaded_by_a_stranger(
    fine_tune: Callable[..., Any], tiny_model: Path, tiny_rows: Path
) -> None:
    outcome = fine_tune(
        *("lora",), model=tiny_model, data=tiny_rows, **{"package.exports": "nf4", "package.round_trip": "true"}, **WELL
    )
    metrics = MlflowClient().get_run(outcome.run_id).data.metrics
    for form in ("merged", "adapter", "nf4"):
        assert metrics[f"round_trip/{form}/kl_mean"] == pytest.approx(metrics[f"parity/{form}/kl_mean"], abs=1e-9)


def other_weights(folder: Path) -> None:
    if (folder / WEIGHTS).is_file():
        weights(folder, lambda held: {name: held[name] * 1.5 for name in held})


def test_what_is_another_model_to_a_stranger_is_not_registered(
    fine_tune: Callable[..., Any],
    tiny_model: Path,
    tiny_rows: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spoilt(other_weights, monkeypatch)
    with pytest.raises(RefusedError, match="'merged' gives different outputs in a clean process"):
        fine_tune("lora", model=tiny_model, data=tiny_rows, **{"package.round_trip": "true"}, **WELL)
    assert not MlflowClient().search_registered_models()


def test_a_requirement_that_is_not_told_is_missed(
    fine_tune: Callable[..., Any], tiny_model: Path, tiny_rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = bundle.requirements
    monkeypatch.setattr(bundle, "requirements", lambda folder: [line for line in full(folder) if "peft" not in line])
    with pytest.raises(RefusedError, match="No module named 'peft'"):
        fine_tune("lora", model=tiny_model, data=tiny_rows, **{"package.round_trip": "true"}, **WELL)


def test_a_form_that_rounds_too_much_is_refused(
    fine_tune: Callable[..., Any], tiny_model: Path, tiny_rows: Path
) -> None:
    asked = {"package.exports": "nf4", "package.export_max_kl": 1e-9}
    with pytest.raises(RefusedError, match="'nf4' is not the model") as caught:
        fine_tune("lora", model=tiny_model, data=tiny_rows, **asked, **WELL)
    assert "--package.export_max_kl" in caught.value.hint


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"package.exports": "nf5"}, "unknown exporter 'nf5'"),
        ({"package.exports": "nf4", "package.packagers": "adapter"}, "needs the form merged"),
        ({"package.exports": "nf4", "adapter.kind": "prompt"}, "cannot be merged"),
        ({"package.exports": "absent"}, "absent cannot be made: its tool is not here"),
    ],
)
def test_what_cannot_be_exported_is_told_before_anything_is_loaded(
    fine_tune: Callable[..., Any], tiny_rows: Path, tmp_path: Path, settings: dict[str, str], said: str
) -> None:
    module: Any = ModuleType("absent")
    ready = partial(lambda reason, folder: reason, "its tool is not here")
    record = Exporter(name="absent", summary="x", export=exporters.export_int8, opened=exporters.opened, ready=ready)
    module.register_exporters = hookimpl(lambda: [record], specname="register_exporters")
    with pytest.raises(ConfigError, match=said):
        fine_tune("lora", module, model=tmp_path / "no model", data=tiny_rows, **settings)

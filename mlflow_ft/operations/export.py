"""A model that is there already, in another form: made, read back, compared, and kept with the version it is of."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_ft.config.schema import PackageSection
from mlflow_ft.errors import ConfigError, ModelError
from mlflow_ft.forms import compare
from mlflow_ft.operations import whole_folder
from mlflow_ft.operations.merging import adapters, merge_adapter
from mlflow_ft.operations.serving import served_models
from mlflow_ft.progress import Progress
from mlflow_ft.records import Exporter
from mlflow_ft.registry import Registry
from mlflow_ft.stages import init_from

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

RECORD = "export.json"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is to be exported, and where to."""

    model: str
    """`NAME@alias`, `NAME/3`, an MLflow URI, a folder or a Hub id: a whole model."""
    to: str
    """The name of an exporter."""
    out: Path
    max_kl: float | None = None
    """In place of the exporter's own."""
    log: bool = True
    """Keep the files with the run of the version, and the numbers on both."""


@dataclass(frozen=True, kw_only=True)
class Done:
    """The folder, and how near it is to the model."""

    folder: Path
    already: bool
    """It was there, from the same model."""
    record: Mapping[str, Any]
    logged: str = ""
    """Where MLflow keeps it: `runs:/RUN_ID/exports/NAME`."""


def export(asked: Asked, registry: Registry, progress: Progress) -> Done:
    """Export, and leave a whole folder or none.

    Raises:
        ConfigError: no such form, or it cannot be made here. ModelError: there is no such model, or it is an adapter.
        RefusedError: what was made is not the model. TrackingError: it could not be logged; the folder is complete.
    """
    from mlflow_ft import tracking
    from mlflow_ft.tracking.contenders import version_of

    exporter = registry.exporters[asked.to]
    start = served_models.find(asked.model, progress)
    if start.base is not None:
        raise ModelError(
            f"{asked.model} is an adapter", hint="merge it first: mlflow-ft merge; then export what that wrote"
        )
    if reason := exporter.ready(start.folder):
        raise ConfigError(f"{asked.to} cannot be made: {reason}")
    version = version_of(tracking.connect(), start.uri) if asked.log else None
    out = asked.out.expanduser().absolute()
    facts = {"model": start.uri, "weights": _weights(start.folder), "form": asked.to}
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    record = whole_folder.finished(out, key, record=RECORD)
    already = record is not None
    if record is None:
        record = facts | {whole_folder.KEY: key} | _made(asked, exporter, start, version, out, key, progress)
    logged = _log(version, asked.to, out, record, progress) if version and not _is_logged(version, asked.to) else ""
    return Done(folder=out, already=already, record=record, logged=logged)


def _made(
    asked: Asked,
    exporter: Exporter,
    start: init_from.Start,
    version: ModelVersion | None,
    out: Path,
    key: str,
    progress: Progress,
) -> dict[str, Any]:
    from transformers import AutoTokenizer

    from mlflow_ft.tracking import write_manifest

    limits = compare.Limits.of_export(PackageSection(export_max_kl=asked.max_kl), exporter)
    tokenizer: Any = AutoTokenizer.from_pretrained(start.folder)
    with whole_folder.writing(out, key) as folder, tempfile.TemporaryDirectory() as scratch:
        for file in folder.rglob("*"):  # what a stopped export left is no beginning
            if file.is_file():
                file.unlink()
        source = _suited(exporter, version, start.folder, Path(scratch), progress)
        with progress.bar(f"export {exporter.name}"):
            exporter.export(source, folder)
        reference, whose = _reference(version, start.folder, tokenizer, Path(scratch), progress)
        with progress.bar(f"compare {exporter.name}"), exporter.opened(folder) as form:
            found = compare.measure(form, reference)
        compare.refuse(exporter.name, found, limits, tokenizer, kept=start.folder)
        made = {"parity": dict(found.numbers), "compared_with": whose}
        whole_folder.write_record(
            folder, {"model": start.uri, "form": exporter.name, whole_folder.KEY: key} | made, record=RECORD
        )
        write_manifest(folder)
    return made


def _suited(exporter: Exporter, version: ModelVersion | None, folder: Path, scratch: Path, progress: Progress) -> Path:
    """The model's folder, or its adapter's merge into the original weights; see `Exporter.grid`."""
    from mlflow import MlflowClient

    adapter = version.tags.get("mlflow_ft.adapter_version") if version else None
    if not (version and adapter and exporter.grid and version.run_id):
        return folder
    run = MlflowClient().get_run(version.tags.get("mlflow_ft.run_id") or version.run_id)
    if run.data.params.get("cfg.model.quantize") != exporter.grid:
        return folder
    own = run.data.tags.get("mlflow_ft.base_quantization")
    if own == exporter.grid:
        raise ConfigError(
            f"{exporter.name} cannot be made: the files of its base were in {exporter.grid} already, and rounding to "
            "the same grid once more would take the adapter away",
            hint="serve the adapter beside its base, or export another form",
        )
    if own:
        return folder
    progress.say(f"its base was in {exporter.grid} already: the adapter is merged into the original weights instead")
    return merge_adapter.merge(
        adapters.Asked(adapter=adapter, out=scratch / "original", into="original"), progress
    ).folder


def _reference(
    version: ModelVersion | None, folder: Path, tokenizer: Any, scratch: Path, progress: Progress
) -> tuple[Path, str]:
    """What the trained model said, as its run has kept it, else what the model in `folder` says here; and which."""
    from mlflow import MlflowClient

    if version and version.run_id:
        if found := compare.kept_reference(MlflowClient(), version.run_id, scratch):
            return found, "the trained model, on held-out rows"
        progress.say("the run has not kept what the trained model said; it is compared with the model itself")
    return _of_itself(folder, tokenizer, scratch, progress), "the model that it was made of"


def _of_itself(folder: Path, tokenizer: Any, scratch: Path, progress: Progress) -> Path:
    from mlflow_ft.engine.judging import reference
    from mlflow_ft.engine.merging import quantised

    file = scratch / compare.REFERENCE
    with progress.bar("ask the model itself"), quantised.opened(folder) as form:
        reference.keep_answers(form.model, tokenizer, compare.QUESTIONS, file)
    return file


def _weights(folder: Path) -> str:
    from mlflow_ft.engine import hub

    return hub.weights_hash(folder)


# --- in MLflow


def _is_logged(version: ModelVersion, name: str) -> bool:
    return f"mlflow_ft.export.{name}" in version.tags


def _log(version: ModelVersion, name: str, folder: Path, record: Mapping[str, Any], progress: Progress) -> str:
    """Keep the files in the version's run; its numbers there and on the version."""
    from mlflow import MlflowClient

    from mlflow_ft.tracking.server import told

    if not version.run_id:
        progress.say(f"{version.name} version {version.version} has no run to keep the files with")
        return ""
    store, uri = MlflowClient(), f"runs:/{version.run_id}/exports/{name}"
    with told(f"keep {name} with run {version.run_id}"), progress.bar(f"log {name}"):
        store.log_artifacts(version.run_id, str(folder), f"exports/{name}")
        for key, value in record["parity"].items():
            store.log_metric(version.run_id, f"parity/{name}/{key}", value)
        tags = {f"mlflow_ft.export.{name}": uri} | compare.tags(record["parity"], form=name)
        for key, value in tags.items():
            store.set_model_version_tag(version.name, version.version, key, value)
    return uri

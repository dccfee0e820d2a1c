"""Export a finished model to another form: write it, load it, compare it, and log it with the model version."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_ft.config.schema import PackageSection
from mlflow_ft.errors import ConfigError, ModelError
from mlflow_ft.forms import compare, proving_forms
from mlflow_ft.forms.compare import REFERENCE, Limits
from mlflow_ft.forms.proving_forms import NewForm, Original
from mlflow_ft.operations import whole_folder
from mlflow_ft.operations.merging import adapters, merge_adapter
from mlflow_ft.operations.serving import served_models
from mlflow_ft.plugins import Plugins
from mlflow_ft.progress import Progress
from mlflow_ft.records import Exporter
from mlflow_ft.registry import Registry

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

    from mlflow_ft.tracking import ActiveRun, Store

RECORD = "export.json"


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """What to export, and where."""

    model: str
    """`NAME@alias`, `NAME/3`, an MLflow URI, a folder or a Hub id: a whole model."""
    to: str
    """The name of an exporter."""
    out: Path
    max_kl: float | None = None
    """Overrides the exporter's limit."""
    log: bool = True
    """Log the files to the version's run, and the numbers to the run and the version."""


@dataclass(frozen=True, kw_only=True)
class Export:
    """The folder, and how close it is to the model."""

    folder: Path
    already: bool
    """Whether it was there already, from the same model."""
    record: Mapping[str, Any]
    logged: str = ""
    """Where MLflow has it: `runs:/RUN_ID/exports/NAME`."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """The whole model to export: its folder and, if it is registered, its version."""

    uri: str
    folder: Path
    store: Store | None
    version: ModelVersion | None

    @property
    def run_id(self) -> str:
        """The run that has the version's files; "" if there is none."""
        return str(self.version.run_id or "") if self.version else ""


def export(request: ExportRequest, plugins: Plugins, progress: Progress) -> Export:
    """Write a complete folder or none. A registered version is exported in an MLflow run.

    Raises:
        ConfigError: no such form, or it cannot be made here. ModelError: there is no such model, or it is an adapter.
        RefusedError: the form differs from the model. TrackingError: it could not be logged; the folder is complete.
    """
    from mlflow_ft import tracking

    exporter = Registry(plugins).exporters[request.to]
    with ExitStack() as stack:
        if "MLFLOW_RUN_ID" in os.environ:
            run: ActiveRun | None = stack.enter_context(tracking.open_operation("", plugins=plugins))
        else:
            run = None
        source = _source(request, exporter, progress)
        if run is None and source.run_id:
            run = stack.enter_context(tracking.open_operation(f"export {request.to} of {source.uri}", plugins=plugins))
        if run:
            run.begin("export")
        return _export(request, exporter, source, run, progress)


def _source(request: ExportRequest, exporter: Exporter, progress: Progress) -> Source:
    from mlflow_ft.tracking import Store

    start = served_models.find(request.model, progress)
    if start.base is not None:
        raise ModelError(
            f"{request.model} is an adapter", hint="merge it first (mlflow-ft merge), then export the merged model"
        )
    if reason := exporter.ready(start.folder):
        raise ConfigError(f"{request.to} cannot be made: {reason}")
    store = Store.connect() if request.log else None
    version = store.version_at(start.uri) if store else None
    return Source(uri=start.uri, folder=start.folder, store=store, version=version)


def _export(
    request: ExportRequest, exporter: Exporter, source: Source, run: ActiveRun | None, progress: Progress
) -> Export:
    from mlflow_ft.tracking import write_manifest

    out = request.out.expanduser().absolute()
    facts = {"model": source.uri, "weights": _weights(source.folder), "form": request.to}
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    record = whole_folder.finished(out, key, record=RECORD)
    already = record is not None
    if record is None:
        with whole_folder.writing(out, key) as folder:
            form = NewForm(
                name=exporter.name,
                folder=folder,
                open=exporter.opened,
                limits=Limits.of_export(PackageSection(export_max_kl=request.max_kl), exporter),
                table_file=out.with_name(f"{out.name}.parity.json"),
            )
            proved = _proved(exporter, form, source, run, progress)
            record = facts | {whole_folder.KEY: key} | proved
            whole_folder.write_record(folder, record, record=RECORD)
            write_manifest(folder)
    logged = _log(source, request.to, out, record, progress)
    return Export(folder=out, already=already, record=record, logged=logged)


def _proved(
    exporter: Exporter, form: NewForm, source: Source, run: ActiveRun | None, progress: Progress
) -> dict[str, Any]:
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as scratch:

        def make(folder: Path) -> None:
            for file in folder.rglob("*"):  # left over from an interrupted export
                if file.is_file():
                    file.unlink()
            exporter.export(whole, folder)

        tokenizer: Any = AutoTokenizer.from_pretrained(source.folder, trust_remote_code=False)
        whole = _export_source(exporter, source, Path(scratch), progress)
        reference, compared_with = _reference(source, tokenizer, Path(scratch), progress)
        original = Original(reference=reference, folder=source.folder, tokenizer=tokenizer, run=run)
        proved = proving_forms.prove(replace(form, make=make), original, progress)
    return {"parity": dict(proved.parity), "compared_with": compared_with}


def _export_source(exporter: Exporter, source: Source, scratch: Path, progress: Progress) -> Path:
    """The model's folder, or its adapter's merge into the original weights; see `Exporter.grid`."""
    adapter = source.version.tags.get("mlflow_ft.adapter_version") if source.version else None
    if not (source.store and source.version and adapter and exporter.grid and source.run_id):
        return source.folder
    run = source.store.run(source.version.tags.get("mlflow_ft.run_id") or source.run_id)
    if run.data.params.get("cfg.model.quantize") != exporter.grid:
        return source.folder
    own = run.data.tags.get("mlflow_ft.base_quantization")
    if own == exporter.grid:
        raise ConfigError(
            f"{exporter.name} cannot be made: the files of its base were already in {exporter.grid}, and quantising "
            "onto the same grid again would round the adapter away",
            hint="serve the adapter on its base, or export another form",
        )
    if own:
        return source.folder
    progress.say(f"its base was already in {exporter.grid}: the adapter is merged into the original weights instead")
    request = adapters.MergeRequest(adapter=adapter, out=scratch / "original", into="original")
    return merge_adapter.merge(request, progress).folder


def _reference(source: Source, tokenizer: Any, scratch: Path, progress: Progress) -> tuple[Path, str]:
    """The trained model's reference from its run, else a reference of the model itself; and which of the two."""
    if source.store and source.run_id:
        if recorded := source.store.fetch(source.run_id, f"parity/{REFERENCE}", scratch):
            return recorded, "the trained model, on held-out rows"
        progress.say(
            "the run has no outputs of the trained model; the form is compared with the exported model instead"
        )
    return _of_itself(source.folder, tokenizer, scratch, progress), "the model that it was made of"


def _of_itself(folder: Path, tokenizer: Any, scratch: Path, progress: Progress) -> Path:
    from mlflow_ft.engine.judging import reference
    from mlflow_ft.engine.merging import quantised

    file = scratch / REFERENCE
    with progress.bar("run the original model"), quantised.opened(folder) as form:
        reference.keep_answers(form.model, tokenizer, compare.QUESTIONS, file)
    return file


def _weights(folder: Path) -> str:
    from mlflow_ft.engine import hub

    return hub.weights_hash(folder)


# --- in MLflow


def _log(source: Source, name: str, folder: Path, record: Mapping[str, Any], progress: Progress) -> str:
    """Log the files to the version's run, and the numbers to the run and the version, unless that was done already."""
    version = source.version
    if not (source.store and version) or f"mlflow_ft.export.{name}" in version.tags:
        return ""
    if not source.run_id:
        progress.say(f"{version.name} version {version.version} has no run: the files were not logged")
        return ""
    parity = {f"parity/{name}/{key}": value for key, value in record["parity"].items()}
    with progress.bar(f"log {name}"):
        uri = source.store.add_files(source.run_id, folder, f"exports/{name}", parity)
        tags = {f"mlflow_ft.export.{name}": uri} | compare.tags(record["parity"], form=name)
        source.store.tag_version(version.name, int(version.version), tags)
    return uri

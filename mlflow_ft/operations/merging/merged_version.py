"""A merge that becomes a version of its own: compared with the adapter on its base, logged, and registered."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_ft.config.schema import PackageSection, RegistrySection
from mlflow_ft.forms import compare
from mlflow_ft.operations.merging import merge_adapter
from mlflow_ft.operations.merging.adapters import Asked
from mlflow_ft.progress import Progress
from mlflow_ft.stages import worse

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

FORM = "merged"
LINEAGE = ("run_id", "method", "base_model", "base_revision", "data_digest", "data_fingerprint", "plugins")
"""Tags of the adapter's version that are true of what it was merged into, too."""


@dataclass(frozen=True, kw_only=True)
class Registered:
    """The version, and how near it is to the adapter on its base."""

    name: str
    version: int
    model_id: str
    run_id: str
    alias: str
    """Empty where the adapter was found to be worse than its base."""
    parity: Mapping[str, float]


def register(
    asked: Asked, done: merge_adapter.Merged, name: str, progress: Progress, *, max_kl: float | None
) -> Registered:
    """Log the merged folder in the run that `mlflow run` opened, else in one of its own, and register it as `name`.

    Raises:
        RefusedError: it is not the model that was trained: nothing is registered. TrackingError: no server.
    """
    import mlflow
    from mlflow import MlflowClient
    from transformers import AutoTokenizer

    from mlflow_ft import tracking
    from mlflow_ft.engine.merging import quantised
    from mlflow_ft.tracking import contenders, models

    tracking.check_server()
    client = MlflowClient(mlflow.get_tracking_uri())
    tokenizer: Any = AutoTokenizer.from_pretrained(done.folder)
    source = contenders.version_of(client, str(done.record["adapter"]["uri"]))
    with tempfile.TemporaryDirectory() as scratch, _run(client, f"merge {done.record['adapter']['uri']}") as run:
        reference = _reference(client, asked, source, Path(scratch), tokenizer, progress)
        with progress.bar("compare merged"), quantised.opened(done.folder) as form:
            found = compare.measure(form, reference)
        for key, value in found.numbers.items():
            client.log_metric(run.info.run_id, f"parity/{FORM}/{key}", value)
        limits = compare.Limits.of_package(PackageSection()) if max_kl is None else compare.Limits.of_kl(max_kl)
        compare.refuse(FORM, found, limits, tokenizer, kept=done.folder)
        tags = _tags(source, done, found.numbers) | _worse(client, source, asked)
        model_id = _log(client, run, done, tags, progress)
        alias = "" if worse.REFUSED in tags else RegistrySection().alias
        version = models.register(
            client,
            name=name,
            model_id=model_id,
            run_id=run.info.run_id,
            tags=tags,
            alias=alias,
            description=_description(done),
        )
    return Registered(
        name=name, version=version, model_id=model_id, run_id=run.info.run_id, alias=alias, parity=found.numbers
    )


@contextmanager
def _run(client: MlflowClient, title: str) -> Iterator[Run]:
    """The run that is open, or a new one, which is FINISHED or FAILED at the end."""
    opened = os.environ.get("MLFLOW_RUN_ID")
    if opened:
        yield client.get_run(opened)
        return
    experiment = os.environ.get("MLFLOW_EXPERIMENT_ID", "0")
    run = client.create_run(experiment, run_name=title)
    try:
        yield run
    except BaseException:
        client.set_terminated(run.info.run_id, "FAILED")
        raise
    client.set_terminated(run.info.run_id)


def _reference(
    client: MlflowClient, asked: Asked, source: ModelVersion | None, scratch: Path, tokenizer: Any, progress: Progress
) -> Path:
    """What the trained model said, as its run has kept it; else the adapter is put on its base and asked."""
    from mlflow_ft.engine.judging import reference

    run_id = _run_of(source, asked)
    if found := compare.kept_reference(client, run_id, scratch):
        return found
    if run_id:
        progress.say("the run has not kept what the trained model said; the adapter is asked on its base")

    file = scratch / compare.REFERENCE
    with progress.bar("ask the adapter on its base"):
        reference.keep_answers(merge_adapter.trained(asked, scratch, progress), tokenizer, compare.QUESTIONS, file)
    return file


def _run_of(source: ModelVersion | None, asked: Asked) -> str | None:
    if source:
        return str(source.tags.get("mlflow_ft.run_id") or source.run_id or "") or None
    found = re.match(r"runs:/([^/,]+)", asked.adapter)
    return found[1] if found else None


def _tags(source: ModelVersion | None, done: merge_adapter.Merged, parity: Mapping[str, float]) -> dict[str, str]:
    known = {f"mlflow_ft.{name}": source.tags.get(f"mlflow_ft.{name}", "") for name in LINEAGE} if source else {}
    tags = {name: value for name, value in known.items() if value}
    tags |= {"mlflow_ft.form": FORM, "mlflow_ft.merged_from": str(done.record["adapter"]["uri"])}
    tags |= {"mlflow_ft.base_model": str(done.record["base"]["name_or_path"])}
    tags |= {"mlflow_ft.base_revision": str(done.record["base"]["revision"])}
    if source:
        tags["mlflow_ft.adapter_version"] = f"models:/{source.name}/{source.version}"
    return tags | compare.tags(parity)


def _worse(client: MlflowClient, source: ModelVersion | None, asked: Asked) -> dict[str, str]:
    """That the adapter was found to be worse than its base, as its version says, or its run."""
    run_id = _run_of(source, asked)
    known = source.tags if source else client.get_run(run_id).data.tags if run_id else {}
    return {name: known[name] for name in (worse.TAG, worse.REFUSED) if name in known}


def _log(
    client: MlflowClient, run: Run, done: merge_adapter.Merged, tags: Mapping[str, str], progress: Progress
) -> str:
    from mlflow_ft import tracking
    from mlflow_ft.engine.serving import bundle
    from mlflow_ft.tracking import models

    wanted = models.ModelToLog(
        name=FORM,
        code=bundle.CHAT_MODEL,
        artifacts={"model": done.folder},
        signature=tracking.chat_signature(),
        pip_requirements=bundle.requirements(done.folder),
        metadata=dict(tags),
        model_type="merge",
    )
    with progress.bar("log merged"), tracking.told("log the merged model"):
        return models.log_model(client, wanted, run_id=run.info.run_id, experiment_id=run.info.experiment_id)


def _description(done: merge_adapter.Merged) -> str:
    record = done.record
    return (
        f"{record['adapter']['uri']}, merged into {record['base']['name_or_path']} ({record['into']} weights, "
        f"{record['dtype']}) by `mlflow-ft merge`; see `merge.json` beside the weights."
    )

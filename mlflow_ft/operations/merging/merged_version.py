"""A merge as a registered version: compared with the adapter on its base, logged and registered."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_ft.config.registry import RegistrySection, taken
from mlflow_ft.config.schema import PackageSection
from mlflow_ft.errors import ConfigError
from mlflow_ft.forms import compare, proving_forms
from mlflow_ft.forms.proving_forms import NewForm, Original
from mlflow_ft.operations.merging import merge_adapter
from mlflow_ft.operations.merging.adapters import MergeRequest
from mlflow_ft.plugins import Plugins
from mlflow_ft.progress import Progress
from mlflow_ft.stages import worse

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

    from mlflow_ft.operations.merging.merge_adapter import Merged
    from mlflow_ft.tracking import ActiveRun, Store

FORM = "merged"
LINEAGE = ("run_id", "method", "base_model", "base_revision", "data_digest", "data_fingerprint", "plugins")
"""Tags of the adapter's version that also apply to the merged model."""


@dataclass(frozen=True, kw_only=True)
class Registered:
    """The version, and how close it is to the adapter on its base."""

    name: str
    version: int
    model_id: str
    run_id: str
    alias: str
    """Empty if the adapter is worse than its base."""
    parity: Mapping[str, float]


def merge(
    request: MergeRequest, name: str, plugins: Plugins, progress: Progress, *, max_kl: float | None
) -> tuple[Merged, Registered | None]:
    """Merge, and register the result as `name` unless that is empty.

    Both happen in an MLflow run, which ends KILLED or FAILED if they do: the run that `mlflow run` opened, else a new
    one if the result is registered.

    Raises:
        FineTuneError: as `merge_adapter.merge` and `register`; the registry would refuse the name.
    """
    try:
        taken(name or "none")
    except ValueError as error:
        raise ConfigError(f"--register {name}: {error}") from error
    if not name and "MLFLOW_RUN_ID" not in os.environ:
        return merge_adapter.merge(request, progress), None
    from mlflow_ft import tracking

    tracking.check_server()
    with tracking.open_operation(f"merge {request.adapter}", plugins=plugins) as run:
        run.begin("merge")
        merged = merge_adapter.merge(request, progress)
        return merged, register(request, merged, name, run, progress, max_kl=max_kl) if name else None


def register(
    request: MergeRequest, merged: Merged, name: str, run: ActiveRun, progress: Progress, *, max_kl: float | None
) -> Registered:
    """Compare the merged folder with the adapter on its base, log it in the open run, and register it as `name`.

    Raises:
        RefusedError: it differs from the trained model; nothing is registered. TrackingError: no server.
    """
    from transformers import AutoTokenizer

    from mlflow_ft.engine.merging import quantised
    from mlflow_ft.tracking import Store

    run.begin("register")
    store = Store.connect()
    source = store.version_at(str(merged.record["adapter"]["uri"]))
    limits = compare.Limits.of_package(PackageSection()) if max_kl is None else compare.Limits.of_kl(max_kl)
    form = NewForm(name=FORM, folder=merged.folder, open=quantised.opened, limits=limits)
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer: Any = AutoTokenizer.from_pretrained(merged.folder, trust_remote_code=False)
        reference = _reference(store, request, source, Path(scratch), tokenizer, progress)
        original = Original(reference=reference, folder=merged.folder, tokenizer=tokenizer, run=run)
        proved = proving_forms.prove(form, original, progress)
    tags = _tags(source, merged, proved.parity) | _worse(store, source, request)
    with progress.bar("log merged"):
        model_id = proving_forms.log_model(run, FORM, merged.folder, metadata=tags, model_type="merge")
    alias = "" if worse.REFUSED in tags else RegistrySection().alias
    version = run.register(name=name, model_id=model_id, tags=tags, alias=alias, description=_description(merged))
    return Registered(
        name=name, version=version, model_id=model_id, run_id=run.run_id, alias=alias, parity=proved.parity
    )


def _reference(
    store: Store, request: MergeRequest, source: ModelVersion | None, scratch: Path, tokenizer: Any, progress: Progress
) -> Path:
    """The reference from the adapter's run; else a new one from the adapter on its base."""
    from mlflow_ft.engine.judging import reference

    run_id = _run_of(source, request)
    if run_id and (recorded := store.fetch(run_id, f"parity/{compare.REFERENCE}", scratch)):
        return recorded
    if run_id:
        progress.say("the run has no outputs of the trained model; the adapter is run on its base instead")
    file = scratch / compare.REFERENCE
    with progress.bar("run the adapter on its base"):
        reference.keep_answers(merge_adapter.trained(request, scratch, progress), tokenizer, compare.QUESTIONS, file)
    return file


def _run_of(source: ModelVersion | None, request: MergeRequest) -> str | None:
    if source:
        return str(source.tags.get("mlflow_ft.run_id") or source.run_id or "") or None
    uri = re.match(r"runs:/([^/,]+)", request.adapter)
    return uri[1] if uri else None


def _tags(source: ModelVersion | None, merged: Merged, parity: Mapping[str, float]) -> dict[str, str]:
    inherited = {f"mlflow_ft.{name}": source.tags.get(f"mlflow_ft.{name}", "") for name in LINEAGE} if source else {}
    tags = {name: value for name, value in inherited.items() if value}
    tags |= {"mlflow_ft.form": FORM, "mlflow_ft.merged_from": str(merged.record["adapter"]["uri"])}
    tags |= {"mlflow_ft.base_model": str(merged.record["base"]["name_or_path"])}
    tags |= {"mlflow_ft.base_revision": str(merged.record["base"]["revision"])}
    if source:
        tags["mlflow_ft.adapter_version"] = f"models:/{source.name}/{source.version}"
    return tags | compare.tags(parity)


def _worse(store: Store, source: ModelVersion | None, request: MergeRequest) -> dict[str, str]:
    """The tags that the adapter is worse than its base, from its version or its run."""
    run_id = _run_of(source, request)
    tags = source.tags if source else store.run(run_id).data.tags if run_id else {}
    return {name: tags[name] for name in (worse.TAG, worse.REFUSED) if name in tags}


def _description(merged: Merged) -> str:
    record = merged.record
    return (
        f"{record['adapter']['uri']}, merged into {record['base']['name_or_path']} ({record['into']} weights, "
        f"{record['dtype']}) by `mlflow-ft merge`; see `merge.json` with the weights."
    )

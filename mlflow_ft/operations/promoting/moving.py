"""What a promotion and a rollback leave in MLflow: the decision on the run and the version, the copy, the alias."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from uuid import uuid4

from mlflow_ft.candidacy import Contender

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from mlflow_ft.operations.promoting.decision import Decision, PromotionRequest

FOLDER = "promotion"
TAG = "mlflow_ft.promotion."
COPIED = "mlflow_ft.copied_from"
LONGEST = 5000


def clients(asked: PromotionRequest) -> tuple[MlflowClient, MlflowClient]:
    """The client of the version's registry, and that of the registry whose alias moves."""
    import mlflow
    from mlflow import MlflowClient

    from mlflow_ft import tracking

    tracking.check_server()
    here = MlflowClient(mlflow.get_tracking_uri())
    if not asked.registry:
        return here, here
    tracking.check_server(asked.registry)
    return here, MlflowClient(asked.registry, registry_uri=asked.registry)


def ensure_target(client: MlflowClient, asked: PromotionRequest) -> None:
    """Make the registered model that is copied to, unless it is there, or nothing is to be changed."""
    from mlflow_ft.tracking.models import ensure_registered_model
    from mlflow_ft.tracking.server import told

    if asked.copy_to and not asked.dry_run:
        with told(f"make the registered model {asked.copy_to}"):
            ensure_registered_model(client, asked.copy_to)


def same(candidate: Contender, champion: Contender, asked: PromotionRequest) -> bool:
    """Whether the champion is the candidate, or the copy of it."""
    if asked.copy_to:
        return champion.tags.get(COPIED) == f"models:/{candidate.name}/{candidate.version}"
    return champion.version == candidate.version


def keep(client: MlflowClient, decision: Decision, asked: PromotionRequest) -> Decision:
    """Write the decision among the artifacts of the version's run, and of the run that `mlflow run` opened.

    Raises:
        TrackingError: it could not be written: nothing is moved without its evidence.
    """
    from mlflow_ft.operations.promoting.decision import dumps
    from mlflow_ft.tracking.server import told

    at = datetime.fromtimestamp(decision.at_ms / 1000, UTC).strftime("%Y%m%dT%H%M%SZ")
    file = decision.artifact.partition("/")[2].partition("/")[2]
    file = file or f"{FOLDER}/{decision.alias}-version-{decision.version}-{at}-{uuid4().hex[:6]}.json"
    runs = list(dict.fromkeys(run for run in (decision.run_id, asked.open_run) if run))
    if not runs:
        return replace(decision, notes=(*decision.notes, "the version has no run: the decision is in its tags alone"))
    decision = replace(decision, artifact=f"runs:/{runs[0]}/{file}")
    for run_id in runs:
        with told(f"keep the decision on run {run_id}"):
            client.log_text(run_id, dumps(decision), file)
    return decision


def tag(client: MlflowClient, decision: Decision) -> None:
    """Say on the version what was decided, who by, when, with which gates and numbers, and where the whole is."""
    from mlflow_ft.tracking.server import told

    whole = decision.as_dict()
    numbers = {one["gate"] + f" {one['subject']}".rstrip(): one["numbers"] for one in whole["gates"] if one["numbers"]}
    values = {
        "": decision.outcome,
        ".at": whole["at"],
        ".by": decision.by,
        ".gates": f"failed: {', '.join(decision.failed)}" if decision.failed else decision.counts,
        ".waived": decision.reason or "none",
        ".numbers": json.dumps(numbers),
        ".config": json.dumps(whole["config"]),
        ".decision": decision.artifact or "none",
    }
    with told(f"tag {decision.name} version {decision.version}"):
        for key, value in values.items():
            name = f"{TAG}{decision.alias}{key}"
            client.set_model_version_tag(decision.name, str(decision.version), name, value[:LONGEST])


def copy(here: MlflowClient, there: MlflowClient, asked: PromotionRequest, decision: Decision) -> int:
    """Copy the version's bytes to the registered model `asked.copy_to`, and return the number of the copy.

    Raises:
        RefusedError: the bytes are not those that were packaged, or did not arrive as they are.
    """
    from mlflow_ft.tracking.copies import copy_version

    return copy_version(
        here, here.get_model_version(decision.name, str(decision.version)), to=asked.copy_to, client=there
    )

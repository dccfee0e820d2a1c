"""The record of a decision in MLflow: complete on the run, a summary in the tags of the version."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from mlflow_ft.operations.promoting.decision import dumps

if TYPE_CHECKING:
    from mlflow_ft.operations.promoting.decision import Decision, PromotionRequest
    from mlflow_ft.tracking import Store

FOLDER = "promotion"
TAG = "mlflow_ft.promotion."


def write(store: Store, decision: Decision, request: PromotionRequest) -> Decision:
    """Write the decision to the version's run, and to the run that `mlflow run` opened.

    Raises:
        TrackingError: it could not be written; no alias moves without recorded evidence.
    """
    at = datetime.fromtimestamp(decision.at_ms / 1000, UTC).strftime("%Y%m%dT%H%M%SZ")
    file = decision.artifact.partition("/")[2].partition("/")[2]
    file = file or f"{FOLDER}/{decision.alias}-version-{decision.version}-{at}-{uuid4().hex[:6]}.json"
    runs = list(dict.fromkeys(run for run in (decision.run_id, request.open_run) if run))
    if not runs:
        return replace(decision, notes=(*decision.notes, "the version has no run: the decision is only in its tags"))
    decision = replace(decision, artifact=f"runs:/{runs[0]}/{file}")
    store.write_text(runs, dumps(decision), file)
    return decision


def tag(store: Store, decision: Decision) -> None:
    """Tag the version with outcome, author, time, gates and numbers, and the place of the complete decision.

    A decision that has no artifact, because its version has no run, has the gates' settings in a tag as JSON.
    """
    record = decision.as_dict()
    values = {
        "": decision.outcome,
        ".at": record["at"],
        ".by": decision.by,
        ".gates": f"failed: {', '.join(decision.failed)}" if decision.failed else decision.counts,
        ".waived": decision.reason or "none",
        ".numbers": "; ".join(_in_words(gate) for gate in record["gates"] if gate["numbers"]) or "none",
        ".decision": decision.artifact or "none",
    }
    if not decision.artifact:
        values[".config"] = json.dumps(record["config"])
    tags = {f"{TAG}{decision.alias}{key}": value for key, value in values.items()}
    store.tag_version(decision.name, decision.version, tags)


def _in_words(gate: Mapping[str, Any]) -> str:
    """A gate's numbers for people: `scores loss: value 1, bound 1.5`."""
    numbers = ", ".join(
        f"{name} {'unknown' if value is None else format(value, '.4g')}" for name, value in gate["numbers"].items()
    )
    return f"{gate['gate']} {gate['subject']}".rstrip() + f": {numbers}"

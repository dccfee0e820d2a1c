"""What the page of a server says of a model: where it comes from, and what is known of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from mlflow_ft.operations.serving import proof, served_models
from mlflow_ft.values import ServedModel

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion


def described(model: ServedModel) -> ServedModel:
    """The model with what its version's tags and its files say.

    Raises:
        TrackingError: the server that has the version does not answer.
    """
    version = _version(model)
    tags: Mapping[str, str] = version.tags if version else {}
    form = tags.get("mlflow_ft.form") or ("adapter" if model.base else "whole model")
    base = model.base.whole_name if model.base else tags.get("mlflow_ft.base_model") or served_models.origin(model)
    facts = {
        "model": model.uri,
        "version": f"{version.name} version {version.version}" if version else "",
        "form": form,
        "run": (tags.get("mlflow_ft.run_id") or str(version.run_id or "")) if version else "",
        "base": base,
        "parity": _parity(model, tags),
    }
    return replace(model, about={name: fact for name, fact in facts.items() if fact})


def _version(model: ServedModel) -> ModelVersion | None:
    from mlflow_ft.tracking import Store

    return Store.connect().version_at(model.uri) if model.plain_name else None


def _parity(model: ServedModel, tags: Mapping[str, str]) -> str:
    """How far this form was measured to be from the trained model, and whether that is within the run's limit."""
    measured = tags.get("mlflow_ft.parity.kl_mean")
    if measured is None:
        return "not measured" if tags else ""
    limit = proof.limits(model).max_kl
    verdict = "passed" if float(measured) <= limit else "failed"
    return f"{verdict}: mean KL to the trained model {float(measured):.3g} nats per token, limit {limit:g}"

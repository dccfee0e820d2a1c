"""The front matter of a card: what the Hugging Face Hub reads, and nothing that it would reject."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mlflow_ft.forms.card.facts import About
from mlflow_ft.forms.card.licence import Licence
from mlflow_ft.values import BaseModel

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
METRICS = ("exact_match", "perplexity")
"""Scores with the name and meaning of a metric on the Hub."""


def matter(about: About, licence: Licence) -> ModelCardData:
    """The kind of model, its base, licence, Hub data sets and results."""
    from huggingface_hub import ModelCardData

    base = hub_base(about.base)
    scored = {score.name for score in about.scores.tuned if not score.guard}
    kind = about.config.adapter.kind
    results = results_of(about)
    return ModelCardData(
        base_model=base or None,
        base_model_relation=_relation(about) if base else None,
        license=licence.identifier or None,
        license_name=(licence.name or None) if licence.identifier == "other" else None,
        license_link=(licence.link or None) if licence.identifier == "other" else None,
        library_name="peft" if about.is_adapter else "transformers" if about.served else None,
        pipeline_tag="text-classification" if about.scores_answers else "text-generation",
        tags=["mlflow-ft", "mlflow", about.config.method, *([] if kind in ("none", about.config.method) else [kind])],
        datasets=hub_sets(about.data.train.sources) or None,
        metrics=[name for name in METRICS if name in scored] or None,
        model_name=about.name if results else None,
        eval_results=results or None,
    )


def _relation(about: About) -> str:
    """In the Hub's terms, where `merge` means a mixture of several models."""
    if about.exported:
        return "quantized"
    return "adapter" if about.is_adapter else "finetune"


def hub_base(base: BaseModel) -> str:
    """The base model's id on the Hub; "" for a folder or a model in MLflow."""
    from mlflow_ft.engine.hub import short_name

    if known := short_name(base):
        return known.hub_id
    is_commit = base.revision and not base.revision.startswith("sha256:")
    return base.name_or_path if is_commit and HUB_ID.fullmatch(base.name_or_path) else ""


def hub_sets(sources: Sequence[str]) -> list[str]:
    """The sources that are data sets on the Hub: a file has an absolute path, an MLflow source a scheme."""
    return [source for source in sources if HUB_ID.fullmatch(source)]


def results_of(about: About) -> list[EvalResult]:
    """The tuned model's scores, if the held-out rows are one data set on the Hub, which others can look up."""
    from huggingface_hub import EvalResult

    held = about.data.eval
    if len(held.sources) != 1 or not hub_sets(held.sources):
        return []
    data = about.config.data
    return [
        EvalResult(
            task_type="text-classification" if about.scores_answers else "text-generation",
            dataset_type=held.source,
            dataset_name=held.source,
            dataset_config=data.subset,
            dataset_split=data.split,
            metric_type=score.name,
            metric_value=score.value,
            metric_name=f"{score.name} (held-out rows)",
        )
        for score in about.scores.tuned
        if math.isfinite(score.value) and not score.guard
    ]

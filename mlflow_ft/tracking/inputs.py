"""Training and held-out data as MLflow dataset inputs, with our own digest.

MLflow's digest of Hugging Face data ignores list columns and every row after the 10,000th.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from mlflow.entities import Dataset, DatasetInput, InputTag

from mlflow_ft.values import Split

CONTEXT_KEY = "mlflow.data.context"
LONGEST_NAME = 500
LONGEST_DIGEST = 36


def dataset_name(split: Split) -> str:
    """The sources' names, without their folder or organisation."""
    names = (source.rstrip("/").rpartition("/")[2] for source in split.sources)
    return ", ".join(name for name in names if name)[:LONGEST_NAME] or "data"


def dataset_digest(split: Split) -> str:
    return split.digest[:LONGEST_DIGEST]


def dataset_input(split: Split, *, tags: Mapping[str, str] | None = None) -> DatasetInput:
    """The split as MLflow shows it in a run: `train` or `eval`, its source and its size."""
    source: dict[str, object] = {"uri" if split.source_type == "local" else "path": split.source}
    if len(split.sources) > 1:
        source["sources"] = list(split.sources)
    dataset = Dataset(
        name=dataset_name(split),
        digest=dataset_digest(split),
        source_type=split.source_type,
        source=json.dumps(source),
        schema=json.dumps({"columns": sorted(split.columns)}),
        profile=json.dumps(profile(split)),
    )
    extra = [InputTag(key=key, value=value[:500]) for key, value in (tags or {}).items()]
    return DatasetInput(dataset=dataset, tags=[InputTag(key=CONTEXT_KEY, value=split.name), *extra])


def profile(split: Split) -> dict[str, int]:
    """Numbers of rows, tokens and learned tokens."""
    return {f"num_{name}": split.counts[name] for name in ("rows", "tokens", "supervised_tokens")}

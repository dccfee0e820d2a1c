"""Training and held-out data as MLflow dataset inputs, with a digest of our own.

MLflow's digest of Hugging Face data ignores list columns and every row after the 10,000th.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from mlflow.entities import Dataset, DatasetInput, InputTag

from mlflow_ft.job import Split

CONTEXT_KEY = "mlflow.data.context"
LONGEST_NAME = 500
LONGEST_DIGEST = 36


def dataset_name(split: Split) -> str:
    """The source's own name, without the folder or the organisation it is in."""
    return split.source.rstrip("/").rpartition("/")[2][:LONGEST_NAME] or "data"


def dataset_digest(split: Split) -> str:
    return split.digest[:LONGEST_DIGEST]


def dataset_input(split: Split, *, tags: Mapping[str, str] | None = None) -> DatasetInput:
    """The split as MLflow shows it in a run: `train` or `eval`, where it came from, how large it is."""
    source = {"uri": split.source} if split.source_type == "local" else {"path": split.source}
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
    """Rows, tokens, and tokens that are learned."""
    return {f"num_{name}": split.counts[name] for name in ("rows", "tokens", "supervised_tokens")}

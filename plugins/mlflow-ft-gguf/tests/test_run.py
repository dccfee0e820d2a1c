"""A whole run that exports, and the export of a registered version afterwards."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow_ft_gguf.engine import llamacpp

from mlflow_ft import plugins
from mlflow_ft.errors import RefusedError
from mlflow_ft.operations import export
from mlflow_ft.progress import Progress

pytestmark = pytest.mark.slow


def test_a_run_keeps_the_file_and_a_version_is_exported_later(
    fine_tune: Callable[..., Any], known: Path, tiny_rows: Path, tmp_path: Path
) -> None:
    outcome = fine_tune(*("lora",), model=known, data=tiny_rows, learning_rate=0.01, **{"package.exports": "gguf-f16"})
    client = MlflowClient()
    uri = f"runs:/{outcome.run_id}/exports/gguf-f16"
    merged = outcome.versions[0]
    tags = client.get_model_version(merged.name, str(merged.version)).tags
    metrics = client.get_run(outcome.run_id).data.metrics
    assert tags["mlflow_ft.export.gguf-f16"] == uri
    assert float(tags["mlflow_ft.parity.gguf-f16.kl_mean"]) == pytest.approx(
        metrics["parity/gguf-f16/kl_mean"], rel=1e-4
    )
    assert metrics["parity/gguf-f16/kl_mean"] < 1e-3
    assert len(outcome.versions) == 2  # files of the run, not separate models
    folder = Path(mlflow.artifacts.download_artifacts(uri))
    assert {"model-f16.gguf", "Modelfile", "README.md", "manifest.json"} == {file.name for file in folder.iterdir()}
    with llamacpp.opened(folder) as form:
        answer = form.post("/v1/chat/completions", messages=[{"role": "user", "content": "red"}], max_tokens=4)
    assert answer["choices"][0]["message"]["role"] == "assistant"

    request = export.ExportRequest(model=f"{merged.name}@candidate", to="gguf-q8_0", out=tmp_path / "q8", max_kl=0.5)
    loaded = plugins.load()
    exported = export.export(request, loaded, Progress(quiet=True))
    assert exported.logged == f"runs:/{outcome.run_id}/exports/gguf-q8_0"
    assert exported.record["compared_with"] == "the trained model, on held-out rows"
    assert (exported.folder / "model-q8_0.gguf").is_file()
    kept = json.loads((exported.folder / "export.json").read_text())
    metrics = client.get_run(outcome.run_id).data.metrics
    assert metrics["parity/gguf-q8_0/kl_mean"] == pytest.approx(kept["parity"]["kl_mean"])
    assert export.export(request, loaded, Progress(quiet=True)).already

    request = export.ExportRequest(model=f"{merged.name}@candidate", to="gguf-q4_k_m", out=tmp_path / "q4", max_kl=1e-9)
    with pytest.raises(RefusedError, match="is not the model that was trained"):
        export.export(request, loaded, Progress(quiet=True))
    assert not request.out.exists()

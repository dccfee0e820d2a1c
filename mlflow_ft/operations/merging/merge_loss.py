"""The cost of a merge: the loss of the model as it was trained and of each merged form, on given rows."""

from __future__ import annotations

import gc
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlflow_ft.config.schema import Config, DataSection
from mlflow_ft.preparing import dataset
from mlflow_ft.progress import Progress
from mlflow_ft.rows import Encoded
from mlflow_ft.values import BaseModel

BATCH = 8


def measure(
    data: str, config: Config, base: BaseModel, adapter: Path, *, merged: Path, into: str, progress: Progress
) -> dict[str, float]:
    """Mean loss (nats per learned token) of the adapter on its base, of the merged model, and of the other merge.

    With a quantised base there are two possible merges; the one that was not requested is made only for this. The
    models are loaded one after the other, each as a whole.
    """
    from mlflow_ft.engine.merging import fold, journal_files
    from mlflow_ft.engine.models import loading

    rows, pad = _rows(data, config, base, adapter, progress)
    plain = config.model_copy(update={"model": config.model.model_copy(update={"quantize": "none"})})
    with progress.bar("loss"):
        trained = loading.with_adapter(loading.load_base(config, base), adapter)
        losses = {"trained": _loss(trained, rows, pad)}
        del trained
        losses[into] = _loss(loading.load_base(plain, base, path=merged), rows, pad)
        if config.model.quantize != "none":
            other = "original" if into == "dequantised" else "dequantised"
            folder = merged.with_name(f"{merged.name}.other")
            try:
                dtype = loading.saved_dtype(config, base.path)
                fold.fold(config, base, adapter, folder=folder, dtype=dtype, original=other == "original")
                losses[other] = _loss(loading.load_base(plain, base, path=folder), rows, pad)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
                journal_files.clear(folder)
    return losses


def _loss(model: Any, rows: list[Encoded], pad: int) -> float:
    from mlflow_ft.engine.judging import judge

    loss = judge.mean_loss(judge.row_losses(model, rows, batch_size=BATCH, pad_token_id=pad))
    gc.collect()
    return loss


def _rows(data: str, config: Config, base: BaseModel, adapter: Path, progress: Progress) -> tuple[list[Encoded], int]:
    """All rows of the source, in the tokens and with the template that the adapter was trained with."""
    from mlflow_ft import plugins
    from mlflow_ft.engine.tokens import tokenizers
    from mlflow_ft.registry import Registry

    own = (adapter / "tokenizer_config.json").is_file()
    tokenizer = tokenizers.load(config, replace(base, start=adapter if own else None))
    config = config.model_copy(update={"data": DataSection(path=data)})
    loaded = plugins.load()
    prepared = dataset.prepare(config, tokenizer, plugins=loaded, registry=Registry(loaded), progress=progress).data
    return [*prepared.train.encoded, *prepared.eval.encoded], tokenizer.pad_token_id

"""That a model is the trained one as a serving engine runs it: its log-probabilities on the run's kept reference."""

from __future__ import annotations

import gc
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_ft.config.schema import PackageSection
from mlflow_ft.forms import compare, proving_forms
from mlflow_ft.forms.compare import REFERENCE, Limits
from mlflow_ft.forms.proving_forms import NewForm, Original
from mlflow_ft.progress import Progress
from mlflow_ft.values import Form, ServedModel

if TYPE_CHECKING:
    from mlflow_ft.tracking import Store

LIMITS = ("max_kl", "max_kl_share", "min_top1", "max_perplexity_change")
"""Of `PackageSection`."""


def prove(model: ServedModel, form: Form, *, progress: Progress, scratch: Path) -> Mapping[str, float]:
    """Compare a served model with the trained one; the reference is kept in `scratch` for the next time.

    Where the model's run has no reference, the model itself, loaded from its files, is the trained one.

    Raises:
        RefusedError: it differs by more than a form that is packaged may.
    """
    from transformers import AutoTokenizer

    from mlflow_ft.engine.serving import opening

    tokenizer: Any = AutoTokenizer.from_pretrained(opening.with_tokenizer(model).tokenizer, trust_remote_code=False)
    new = NewForm(
        name=model.name,
        folder=model.folder,
        open=lambda folder: _held(form),
        limits=Limits.of_serving(limits(model)),
        consequence="it is not served",
        table_file=Path(f"parity-{re.sub(r'[^A-Za-z0-9]+', '-', model.name).strip('-')}.json").absolute(),
    )
    original = Original(
        reference=reference(model, progress=progress, scratch=scratch),
        folder=model.folder,
        tokenizer=tokenizer,
        run=None,
    )
    return proving_forms.prove(new, original, progress).parity


def limits(model: ServedModel) -> PackageSection:
    """The limits that the model's run was given for its forms; the defaults if it has none."""
    run_id, store = _run_of(model)
    if not (run_id and store):
        return PackageSection()
    params = store.run(run_id).data.params
    given = {name: params.get(f"cfg.package.{name}") for name in LIMITS}
    return PackageSection.model_validate({name: float(value) for name, value in given.items() if value})


@contextmanager
def _held(form: Form) -> Iterator[Form]:
    yield form


def reference(model: ServedModel, *, progress: Progress, scratch: Path) -> Path:
    """The trained model's outputs: from its run, else from the model itself, which is loaded for it.

    Raises:
        TrackingError: the tracking server does not answer.
    """
    known = scratch / "references.json"
    files = json.loads(known.read_text()) if known.is_file() else {}
    if model.uri not in files:
        folder = scratch / str(len(files))
        folder.mkdir()
        file = _kept(model, folder) or _of_itself(model, folder / REFERENCE, progress)
        known.write_text(json.dumps(files | {model.uri: str(file)}))
        return file
    return Path(files[model.uri])


def _kept(model: ServedModel, folder: Path) -> Path | None:
    """The reference that the model's run has, if it has one."""
    run_id, store = _run_of(model)
    return store.fetch(run_id, f"parity/{REFERENCE}", folder) if run_id and store else None


def _run_of(model: ServedModel) -> tuple[str, Store | None]:
    """The run that logged a model, and its store; "" if it is not known."""
    if not model.uri.startswith(("runs:/", "models:/")):
        return "", None
    from mlflow_ft.tracking import Store

    store = Store.connect()
    if run := re.match(r"runs:/([^/]+)/", model.uri):
        return run.group(1), store
    version = store.version_at(model.uri)
    return (str(version.run_id or "") if version else ""), store


def _of_itself(model: ServedModel, file: Path, progress: Progress) -> Path:
    import torch

    from mlflow_ft.engine.judging import reference
    from mlflow_ft.engine.serving import opening

    progress.say(f"{model.uri}: no run has outputs of the trained model; it is compared with what its files say")
    chat = opening.alone(model, progress)
    reference.keep_answers(chat.model, chat.tokenizer, compare.QUESTIONS, file)
    del chat
    gc.collect()
    torch.cuda.empty_cache()
    return file

"""Make and open a form of a model, compare it with the original, record the comparison, and refuse a different model.

The package stage, `mlflow-ft export` and `mlflow-ft merge --register` all use it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_ft.errors import RefusedError
from mlflow_ft.forms import compare
from mlflow_ft.forms.compare import Limits
from mlflow_ft.progress import Progress
from mlflow_ft.values import Form, Split

if TYPE_CHECKING:
    from mlflow_ft.engine.judging.parity import Parity
    from mlflow_ft.tracking import ActiveRun, ModelToLog

SHOWN = 3
"""Tokens that the message of a refusal names."""


@dataclass(frozen=True, kw_only=True)
class NewForm:
    """A form to prove: how to make and open it, and how close to the original it must be."""

    name: str
    folder: Path
    open: Callable[[Path], AbstractContextManager[Form]]
    limits: Limits
    make: Callable[[Path], None] | None = None
    """Writes the form to `folder`; None if it is there already."""
    consequence: str = "nothing was registered"
    """Of a refusal, in words."""
    table_file: Path | None = None
    """Where the comparison of a refused form is written if there is no run to log it to."""


@dataclass(frozen=True, kw_only=True)
class Original:
    """The model that forms are compared with, and the run that the comparisons are recorded in."""

    reference: Path
    """Its logits and answers; see `engine.judging.reference`."""
    folder: Path
    """Its weights, for the message of a refusal."""
    tokenizer: Any
    run: ActiveRun | None
    """None: there is no run; the comparison of a refused form goes to `NewForm.table_file`."""
    dataset: Split | None = None
    """The rows of the reference, if they are rows of the run."""


@dataclass(frozen=True, kw_only=True)
class ProvedForm:
    """How close a form is to the original, and its answers."""

    parity: Mapping[str, float]
    answers: Sequence[str] = ()


def no_questions(form: Form) -> Sequence[str]:
    """The default of `prove`: no further questions to the open form."""
    return ()


def prove(
    form: NewForm, original: Original, progress: Progress, *, ask: Callable[[Form], Sequence[str]] = no_questions
) -> ProvedForm:
    """Make the form, open it, compare it, record the comparison; `ask` may put further questions to the open form.

    Raises:
        RefusedError: it differs from the original by more than `form.limits` allow; the comparison is still recorded.
    """
    from mlflow_ft.engine.judging import parity

    if form.make:
        with progress.bar(f"export {form.name}"):
            form.make(form.folder)
    with progress.bar(f"compare {form.name}"), form.open(form.folder) as opened:
        comparison = parity.measure(opened, original.reference)
        answers = ask(opened)
    refused = list(compare.reasons(comparison.numbers, form.limits))
    where = _record(form, comparison, original, refused=bool(refused))
    if refused:
        raise _refusal(form, refused, comparison, original, where)
    return ProvedForm(parity=comparison.numbers, answers=answers)


def _refusal(form: NewForm, reasons: Sequence[str], comparison: Parity, original: Original, where: str) -> RefusedError:
    worst = sorted(comparison.tokens, key=lambda token: -float(token["kl"]))[:SHOWN]
    tokens = ", ".join(f"{original.tokenizer.decode(token['token'])!r} ({token['kl']:.2g})" for token in worst)
    return RefusedError(
        f"the form {form.name!r} is not the model that was trained: {'; '.join(reasons)}",
        hint=f"{form.consequence}. Look at {where}: the largest differences are after the tokens {tokens}. "
        f"The trained weights are in {original.folder}; {form.limits.remedy}",
    )


def _record(form: NewForm, comparison: Parity, original: Original, *, refused: bool) -> str:
    """Log the comparison as metrics and a table of the run, and return where it is."""
    rows = compare.table(comparison, original.tokenizer)
    if original.run:
        numbers = {f"parity/{form.name}/{key}": value for key, value in comparison.numbers.items()}
        original.run.metrics(numbers, dataset=original.dataset)
        original.run.table(rows, f"parity/{form.name}.json")
        return f"the run's table parity/{form.name}.json"
    if refused and form.table_file:
        form.table_file.write_text(json.dumps(rows, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return str(form.table_file)


def model_to_log(name: str, folder: Path, *, metadata: Mapping[str, str], model_type: str, step: int = 0) -> ModelToLog:
    """A packaged folder as an MLflow model that is served by the code in it."""
    from mlflow_ft.engine.serving import bundle
    from mlflow_ft.tracking import ModelToLog, chat_signature

    return ModelToLog(
        name=name,
        code=bundle.CHAT_MODEL,
        artifacts={"model": folder},
        signature=chat_signature(),
        pip_requirements=bundle.requirements(folder),
        metadata=metadata,
        model_type=model_type,
        model_config=bundle.overridable(folder),
        step=step,
    )


def log_model(run: ActiveRun, name: str, folder: Path, *, metadata: Mapping[str, str], model_type: str) -> str:
    """Log a packaged folder as an MLflow model, and return its id."""
    return run.log_model(model_to_log(name, folder, metadata=metadata, model_type=model_type))

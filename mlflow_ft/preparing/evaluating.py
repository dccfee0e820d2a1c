"""Asks evaluators for scores: what a plugin's gets wrong costs its scores, not the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mlflow_ft.errors import FineTuneError, ProcessError, ResourceError, StoppedError
from mlflow_ft.progress import Progress
from mlflow_ft.records import Evaluator
from mlflow_ft.registry import Registry
from mlflow_ft.values import Score, Subject

if TYPE_CHECKING:
    from pathlib import Path


class Evaluating:
    """The evaluators of a run at work on one model after the other."""

    def __init__(self, registry: Registry, progress: Progress, *, trained: Path | None = None) -> None:
        self._registry, self._progress, self._trained = registry, progress, trained
        self._failed: dict[tuple[str, str], str] = {}

    @property
    def failed(self) -> Mapping[str, str]:
        """Why evaluators have no scores, by their names, on a guard set `GUARD/NAME`."""
        return {f"{guard}/{name}" if guard else name: why for (guard, name), why in self._failed.items()}

    def scores(self, evaluator: Evaluator, subject: Subject, *, guard: str = "") -> Sequence[Score]:
        """The scores of a model; none if the evaluator fails on this model, or has failed on another."""
        if (guard, evaluator.name) in self._failed:
            return ()
        try:
            return evaluator.evaluate(subject)
        except (StoppedError, ResourceError, ProcessError):
            raise
        except FineTuneError as error:
            if self._registry.evaluators.provider(evaluator.name).startswith("builtin."):
                raise
            self._failed[guard, evaluator.name] = error.message
            kept = f"; the trained weights are in {self._trained}" if self._trained else ""
            hint = f" ({error.hint})" if error.hint else ""
            self._progress.warn(f"no score of evaluator {evaluator.name}: {error.message}{hint}{kept}")
            return ()

    def without_failed(self, scores: Sequence[tuple[str, str, Score]]) -> tuple[Score, ...]:
        """The scores, given with guard and evaluator, of those that failed on no model."""
        return tuple(score for guard, name, score in scores if (guard, name) not in self._failed)

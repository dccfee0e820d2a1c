"""The checks of MLflow before a run: the tracking store, the registry, the artifact store."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from mlflow_ft.stages.preflight.examination import Examination
from mlflow_ft.stages.start import PREPARE

if TYPE_CHECKING:
    from mlflow_ft.tracking.run_place import RunPlace


def check(examination: Examination, run_id: str | None = None) -> RunPlace | None:
    """Check that the run can be written; return where it will be, or None if there is a problem."""
    from mlflow_ft.tracking import run_place, writable

    config, places = examination.config, []

    def tracking_store() -> str:
        detail, place = writable.check_tracking(config.run, run_id)
        places.append(place)
        return detail

    reachable = examination.check("tracking store", tracking_store)
    if reachable:
        examination.check("artifact store", partial(run_place.check_artifacts, places[0]))
    if config.method != PREPARE and (reachable or writable.has_own_registry()):
        examination.check("registry", partial(writable.check_registry, config.registry.model_name))
    return places[0] if places else None

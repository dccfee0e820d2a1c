"""What a sweep shows in its run: the table of trials, which settings mattered, and two pictures."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_ft.operations.sweeping import study as studies
from mlflow_ft.operations.sweeping.study import Study

if TYPE_CHECKING:
    import optuna

    from mlflow_ft.tracking import ActiveRun

TABLE = "sweep/trials.json"
FEWEST = 2
"""Complete trials without which nothing can be said about the settings."""
STATES = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "interrupted"}
CAVEAT = "It was chosen on these held-out rows, so its score is optimistic: promote it on other rows"


def rows(study: Study) -> list[dict[str, Any]]:
    """One row for each trial."""
    score = " or ".join(study.plan.objective.names)
    return [
        {
            "trial": trial.number,
            "state": STATES.get(trial.state.name, trial.state.name.lower()),
            score: trial.value if trial.state.name == "COMPLETE" else None,
            **trial.params,
            "seconds": trial.user_attrs.get(studies.SECONDS),
            "run": trial.user_attrs.get(studies.RUN, ""),
            "error": trial.user_attrs.get(studies.ERROR, ""),
        }
        for trial in study.trials
    ]


def log_table(active: ActiveRun, study: Study) -> None:
    """Log the trials so far as a table."""
    if trials := rows(study):
        active.table(trials, TABLE)


def importances(study: Study) -> Mapping[str, float]:
    """How much each setting decides about the score, together 1; empty with too few trials or one setting."""
    complete = [trial for trial in study.trials if trial.state.name == "COMPLETE"]
    if len(complete) < FEWEST or len(study.plan.space) < 2:
        return {}
    import optuna

    with _quiet():
        return optuna.importance.get_param_importances(study.optuna)


def log_summary(
    active: ActiveRun,
    study: Study,
    best: optuna.trial.FrozenTrial,
    versions: Sequence[Mapping[str, Any]],
    folder: Path,
) -> None:
    """Log what the sweep shows at its end: the best trial, importances and pictures."""
    from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

    weights = importances(study)
    active.metrics({f"sweep/importance/{name}": value for name, value in weights.items()})
    note = _note(study, best, versions)
    active.set_tags({"mlflow_ft.best_trial": str(best.user_attrs[studies.RUN]), MLFLOW_RUN_NOTE: note})
    for file in pictures(study, folder, with_importances=bool(weights)):
        active.artifact(file, "sweep")


def _note(study: Study, best: optuna.trial.FrozenTrial, versions: Sequence[Mapping[str, Any]]) -> str:
    """The description of the run in MLflow's UI."""
    values = "".join(f"\n- `{name}`: {shown(value)}" for name, value in best.params.items())
    names = " and ".join(f"{version['name']} version {version['version']}" for version in versions)
    return (
        f"**Best of {len(study.trials)} trials: trial-{best.number}**, {study.plan.objective}: {best.value:.4g} "
        f"(run {best.user_attrs[studies.RUN]}), registered as {names}.\n{values}\n\n{CAVEAT}."
    )


def shown(value: Any) -> str:
    """A value for people."""
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


def pictures(study: Study, folder: Path, *, with_importances: bool) -> Iterator[Path]:
    """Draw the trials as parallel coordinates, and the importances as bars, into a folder."""
    import matplotlib as mpl

    mpl.use("agg")
    import optuna.visualization.matplotlib as drawing
    from matplotlib import pyplot

    score = " or ".join(study.plan.objective.names)
    drawings: dict[str, Callable[..., Any]] = {"parallel-coordinates": drawing.plot_parallel_coordinate}
    if with_importances:
        drawings["importances"] = drawing.plot_param_importances
    for name, draw in drawings.items():
        with _quiet():
            draw(study.optuna, target_name=score)
            figure = pyplot.gcf()
            figure.set_size_inches(max(10.0, 2.5 * len(study.plan.space)), 5)
            figure.savefig(folder / f"{name}.svg", bbox_inches="tight")
            pyplot.close(figure)
        yield folder / f"{name}.svg"


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide Optuna's warnings that these functions are experimental."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield

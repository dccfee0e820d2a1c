"""What a card is written from: one form of one run's model, with the results of the earlier stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_ft.config.gates import Gates
from mlflow_ft.forms.compare import Limits
from mlflow_ft.job import Job
from mlflow_ft.records import Exporter, Packager
from mlflow_ft.values import BaseModel, Data, Score, Scores, Trained

if TYPE_CHECKING:
    from mlflow.entities import Run

    from mlflow_ft.config.schema import Config
    from mlflow_ft.engine.models.text_part import Parts


@dataclass(frozen=True, kw_only=True)
class About:
    """One form of the trained model, which is in `folder`."""

    job: Job
    data: Data
    trained: Trained
    scores: Scores
    form: Packager | Exporter
    folder: Path
    parity: Mapping[str, float]
    name: str
    """Name of the registered model."""
    run: Run
    """The run as MLflow has it now: tags, user, start time."""

    @property
    def config(self) -> Config:
        return self.job.config

    def lower(self, score: Score) -> bool:
        """Whether a score is better when it is lower."""
        return score.is_lower(Gates().knowing(self.job.registry.lower_is_better))

    @property
    def base(self) -> BaseModel:
        return self.trained.base

    @property
    def tags(self) -> Mapping[str, str]:
        return dict(self.run.data.tags)

    @property
    def day(self) -> str:
        return datetime.fromtimestamp(self.run.info.start_time / 1000, UTC).strftime("%Y-%m-%d")

    @property
    def uri(self) -> str:
        """This model, whichever versions are registered later."""
        return f"runs:/{self.job.run.run_id}/{'' if self.served else 'exports/'}{self.form.name}"

    @property
    def limits(self) -> Limits:
        """How far it may differ from the trained model."""
        if isinstance(self.form, Exporter):
            return Limits.of_export(self.config.package, self.form)
        return Limits.of_package(self.config.package)

    @property
    def exported(self) -> bool:
        """Whether it is less precise than the trained model by design, or for another program."""
        return isinstance(self.form, Exporter)

    @property
    def served(self) -> bool:
        """Whether MLflow serves it; if not, it is files of the run."""
        return not isinstance(self.form, Exporter) or bool(self.form.suffix)

    @property
    def is_adapter(self) -> bool:
        """Whether the folder needs the base model's weights."""
        return (self.folder / "adapter_config.json").is_file()

    @property
    def parts(self) -> Parts | None:
        """The parts of a base that reads more than text; None for other bases."""
        from mlflow_ft.engine.models import text_part

        return text_part.of(self.base.path, task=self.base.task)

    @property
    def fits_whole(self) -> bool:
        """Whether it is an adapter of a text part, saved with the weight names of the whole model."""
        from mlflow_ft.engine.serving import bundle

        return bundle.fits_whole(self.folder)

    @property
    def scores_answers(self) -> bool:
        """Whether it is a reward model, which generates no text."""
        return self.job.task == "score"

    @property
    def same_source(self) -> bool:
        """Whether the held-out rows were split off from the training source."""
        return self.data.eval.sources == self.data.train.sources

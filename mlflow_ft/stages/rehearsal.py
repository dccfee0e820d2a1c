"""Before the first step: rehearse packaging with the untrained model, so that it cannot fail after the training.

Each chosen form is written without trained weights and loaded as far as possible, and each exporter is asked whether
it can export the model.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_ft.errors import ConfigError, FineTuneError, ModelError, StoppedError, brief
from mlflow_ft.job import Job
from mlflow_ft.stages import package
from mlflow_ft.values import Data, Model, Trained

if TYPE_CHECKING:
    from mlflow_ft.records import Packager

HINT = "nothing was trained; leave the form out with --package.packagers, or fix what the message names"


def rehearse(job: Job, data: Data, model: Model) -> None:
    """Write every form of the model before it is trained, and remove it again. The model is not changed.

    Raises:
        FineTuneError: a form cannot be made. ConfigError: an exporter cannot make its form.
    """
    from mlflow_ft.engine.aside import aside
    from mlflow_ft.engine.training import checkpoints

    with (
        job.progress.bar("rehearse packaging"),
        tempfile.TemporaryDirectory(dir=job.folder, prefix="rehearsal-") as scratch,
        aside(model.module),
    ):
        with _named("the trained weights"):
            checkpoints.save(model.module, Path(scratch), beginning=job.folder, weights=False)
        untrained = Trained(folder=Path(scratch), base=model.base, metrics={})
        for record in package.chosen(job, untrained):
            with _named(record.name):
                _form(job, data, untrained, record, Path(scratch, "package", record.name))


def _form(job: Job, data: Data, untrained: Trained, record: Packager, folder: Path) -> None:
    from mlflow_ft.engine.serving import bundle

    if record.rehearse is None:
        return
    folder.mkdir(parents=True)
    record.rehearse(job, untrained, folder)
    bundle.complete(job, data, folder, base=untrained.base)
    bundle.check_tokenizer(data, folder)
    bundle.check_config(folder)
    bundle.requirements(folder)
    if (folder / "adapter_config.json").is_file():
        return
    for name in job.config.package.exports or ():
        if reason := job.registry.exporters[name].ready(folder):
            raise ConfigError(f"package.exports: {name} cannot be made: {reason}")


@contextmanager
def _named(what: str) -> Iterator[None]:
    """Add to an error which form it is about, and that nothing was trained."""
    where = f"packaging {what} would fail after the training"
    try:
        yield
    except StoppedError:
        raise
    except FineTuneError as error:
        raise type(error)(f"{where}: {error.message}", hint=HINT, problems=error.problems) from error
    except Exception as error:  # third-party tokenizers, configs and packagers may raise anything
        raise ModelError(f"{where}: {brief(error)}", hint=HINT) from error

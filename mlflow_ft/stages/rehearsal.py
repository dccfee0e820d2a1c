"""Before the first step: what packaging will do, done with the model as it is, so that it cannot end a training.

Each form that is chosen is written without trained weights, read back as far as that goes, and the tools that make
further forms of it are asked whether they can.
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

HINT = "nothing was trained; leave the form out with --package.packagers, or change what the message names"


def rehearse(job: Job, data: Data, model: Model) -> None:
    """Write every form of the model before it is trained, and remove it again. The model stays as it is.

    Raises:
        FineTuneError: a form could not be made after the training. ConfigError: an exporter cannot make its form.
    """
    from mlflow_ft.engine.aside import aside
    from mlflow_ft.engine.training import checkpoints

    with (
        job.progress.bar("rehearse packaging"),
        tempfile.TemporaryDirectory(dir=job.folder, prefix="rehearsal-") as scratch,
        aside(model.module),
    ):
        with _named("what is trained"):
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
    bundle.check_config(folder, trust_remote_code=job.config.model.trust_remote_code)
    bundle.requirements(folder)
    if (folder / "adapter_config.json").is_file():
        return
    for name in job.config.package.exports or ():
        if reason := job.registry.exporters[name].ready(folder):
            raise ConfigError(f"package.exports: {name} cannot be made: {reason}")


@contextmanager
def _named(what: str) -> Iterator[None]:
    """Say of an error which form it is about, and that nothing was trained."""
    where = f"{what} could not be packaged after the training"
    try:
        yield
    except StoppedError:
        raise
    except FineTuneError as error:
        raise type(error)(f"{where}: {error.message}", hint=HINT, problems=error.problems) from error
    except Exception as error:  # tokenizers, configs and packagers of others may raise anything
        raise ModelError(f"{where}: {brief(error)}", hint=HINT) from error

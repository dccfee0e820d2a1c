"""Stage 5: every form of the model that is kept: written, read back, compared with the trained one, logged."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mlflow_ft.errors import RefusedError
from mlflow_ft.job import Data, Job, Package, Packaged, Scores, Trained
from mlflow_ft.records import Packager
from mlflow_ft.stages import done
from mlflow_ft.stages.evaluate import as_metrics


def package(job: Job, data: Data, trained: Trained, scores: Scores) -> Package:
    """Package every form that applies and log each as an MLflow model.

    Raises:
        RefusedError: a form is not the model that was trained; nothing is logged or registered then.
    """
    job.run.begin("package")
    records = chosen(job, trained)
    folders = {record.name: _write(job, data, trained, record) for record in records}
    parities = {name: _compare(job, data, trained, name, folder) for name, folder in folders.items()}
    models = tuple(
        Packaged(
            name=record.name,
            folder=folders[record.name],
            suffix=record.suffix,
            parity=parities[record.name],
            model_id=_log(job, data, trained, record, folders[record.name], parities[record.name], scores),
        )
        for record in records
    )
    done.finish(job.folder / "package", {model.name: model.model_id for model in models})
    return Package(models=models)


def lineage(job: Job, data: Data, trained: Trained) -> dict[str, str]:
    """Where a model comes from, as the logged models and the registered versions both tell it."""
    return {
        "mlflow_ft.method": job.config.method,
        "mlflow_ft.base_model": trained.base.name_or_path,
        "mlflow_ft.base_revision": trained.base.revision,
        "mlflow_ft.data_digest": data.train.digest,
        "mlflow_ft.data_fingerprint": data.fingerprint,
    }


def chosen(job: Job, trained: Trained) -> list[Packager]:
    """The packagers that were named, or else every one that applies to what was trained."""
    names = job.config.package.packagers
    if names is not None:
        return [job.registry.packagers[name] for name in names]
    return [record for record in job.registry.packagers if record.applies(job, trained)]


def _write(job: Job, data: Data, trained: Trained, record: Packager) -> Path:
    from mlflow_ft.engine import bundle
    from mlflow_ft.tracking import write_manifest

    folder = job.folder / "package" / record.name
    folder.mkdir(parents=True, exist_ok=True)
    with job.progress.bar(f"package {record.name}"):
        record.package(job, trained, folder)
        bundle.complete(job, data, folder)
        bundle.check_tokenizer(data, folder)
        write_manifest(folder)
    return folder


def _compare(job: Job, data: Data, trained: Trained, name: str, folder: Path) -> Mapping[str, float]:
    from mlflow_ft.engine import models, parity

    with job.progress.bar(f"compare {name}"):
        model = models.load_saved(job.config, trained.base, folder)
        found = parity.compare(model, trained.folder / "reference.safetensors")
    job.run.metrics({f"parity/{name}/{key}": value for key, value in found.items()}, dataset=data.eval)
    limit = job.config.package.max_kl
    if not found["kl_mean"] <= limit:
        raise RefusedError(
            f"the packaged form {name!r} is not the model that was trained: mean KL {found['kl_mean']:.4g} nats per "
            f"token, and package.max_kl is {limit:g}",
            hint=f"nothing was registered; the trained weights are in {trained.folder}; where the saved type rounds "
            "the training away, save a finer one (--package.dtype float32)",
        )
    return found


def _log(
    job: Job,
    data: Data,
    trained: Trained,
    record: Packager,
    folder: Path,
    parity: Mapping[str, float],
    scores: Scores,
) -> str:
    from mlflow_ft.engine import bundle
    from mlflow_ft.tracking import chat_signature

    with job.progress.bar(f"log {record.name}"):
        model_id = job.run.log_model(
            name=record.name,
            code=bundle.CHAT_MODEL,
            artifacts={"model": folder},
            signature=chat_signature(),
            pip_requirements=bundle.requirements(job, trained),
            metadata=lineage(job, data, trained),
            model_type=f"{job.config.method}-{record.name}",
            model_config=bundle.overridable(folder),
        )
    values = as_metrics("tuned", scores.tuned) | {f"parity/{record.name}/{key}": value for key, value in parity.items()}
    job.run.metrics(values, model_id=model_id, dataset=data.eval)
    return model_id

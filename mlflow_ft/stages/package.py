"""Stage 5: write every form of the model, load it again, compare it with the trained model, and log it."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mlflow_ft.errors import brief
from mlflow_ft.forms import card, compare, proving_forms, round_trip
from mlflow_ft.forms.proving_forms import NewForm, Original, ProvedForm
from mlflow_ft.job import Job
from mlflow_ft.records import Exporter, Packager
from mlflow_ft.stages import done, leftovers
from mlflow_ft.stages.evaluate import log_scores
from mlflow_ft.stages.registered_name import model_name
from mlflow_ft.values import Data, Exported, Form, Package, Packaged, Scores, Trained


@dataclass(frozen=True, kw_only=True)
class KeptForm:
    """A form on disk that was proved to be the trained model."""

    record: Packager | Exporter
    folder: Path
    parity: Mapping[str, float]
    answers: Sequence[str] = ()
    """Its answers to a few held-out prompts; see `round_trip`."""

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def whole(self) -> bool:
        """Whether it is a whole model, not an adapter."""
        return not (self.folder / "adapter_config.json").is_file()


def package(job: Job, data: Data, trained: Trained, scores: Scores) -> Package:
    """Package every form that applies, export the whole model, and log each form; what is complete is not repeated.

    Raises:
        RefusedError: a form is not the model that was trained; then nothing is registered.
    """
    if (recorded := done.kept(job.folder / "package", Package)) is not None:
        return recorded
    job.run.begin("package")
    with round_trip.clean_process(job) as process:
        packaged = _packages(job, data, trained, scores, process)
    done.keep(job.folder / "package", packaged)
    return packaged


def _packages(
    job: Job, data: Data, trained: Trained, scores: Scores, process: round_trip.CleanProcess | None
) -> Package:
    leftovers.remove_models(job)
    job.run.artifact(trained.folder / compare.REFERENCE, "parity")
    forms = [_packaged(job, data, trained, record) for record in chosen(job, trained)]
    exporters = [job.registry.exporters[name] for name in job.config.package.exports or ()]
    whole = next((form.folder for form in forms if form.whole), None)
    forms += [_exported(job, data, trained, record, whole) for record in exporters if whole]
    for form in forms:
        _seal(job, data, trained, form, scores)
    models = tuple(
        Packaged(
            name=form.name,
            folder=form.folder,
            suffix=form.record.suffix,
            parity=form.parity,
            model_id=_log(job, data, trained, form, scores),
        )
        for form in forms
        if served(form.record)
    )
    expected = {form.name: form.answers for form in forms}
    round_trip.check(job, data, trained, models, expected, process)
    files = tuple(_log_files(job, form) for form in forms if not served(form.record))
    return Package(models=models, files=files)


def served(record: Packager | Exporter) -> bool:
    """Whether MLflow serves the form; if not, it is files for another program."""
    return isinstance(record, Packager) or bool(record.suffix)


def lineage(job: Job, data: Data, trained: Trained) -> dict[str, str]:
    """Where a model comes from: tags of the registered versions and metadata of the logged models."""
    from mlflow_ft.tracking import plugin_tag

    return {
        "mlflow_ft.method": job.config.method,
        "mlflow_ft.base_model": trained.base.name_or_path,
        "mlflow_ft.base_revision": trained.base.revision,
        "mlflow_ft.data_digest": data.train.digest,
        "mlflow_ft.data_fingerprint": data.fingerprint,
        **({f"mlflow_ft.{name}": str(value) for name, value in of_checkpoint(trained).items()}),
    } | plugin_tag(job.plugins)


def of_checkpoint(trained: Trained) -> dict[str, float]:
    """The checkpoint that the model is, if one was chosen by its held-out loss: for manifests and tags."""
    chosen = trained.chosen
    return {"chosen_step": chosen.step, "chosen_loss": chosen.loss} if chosen else {}


def chosen(job: Job, trained: Trained) -> list[Packager]:
    """The packagers in the configuration, else all that apply to the trained model."""
    names = job.config.package.packagers
    if names is not None:
        return [job.registry.packagers[name] for name in names]
    return [record for record in job.registry.packagers if record.applies(job, trained)]


def _packaged(job: Job, data: Data, trained: Trained, record: Packager) -> KeptForm:
    from mlflow_ft.engine.serving import bundle

    folder = job.folder / "package" / record.name
    folder.mkdir(parents=True, exist_ok=True)
    with job.progress.bar(f"package {record.name}"):
        record.package(job, trained, folder)
        bundle.complete(job, data, folder, base=trained.base)
        bundle.check_tokenizer(data, folder)
    limits = compare.Limits.of_package(job.config.package)
    on_whole = _on_whole(job, data, trained, folder, limits)
    form = NewForm(name=record.name, folder=folder, open=partial(_opened, job, trained), limits=limits)
    proved = _proved(job, data, trained, form, record)
    return KeptForm(record=record, folder=folder, parity={**proved.parity, **on_whole}, answers=proved.answers)


def _opened(job: Job, trained: Trained, folder: Path) -> AbstractContextManager[Form]:
    from mlflow_ft.engine.judging.reference import Loaded
    from mlflow_ft.engine.models import loading

    return nullcontext(Loaded(loading.load_saved(job.config, trained.base, folder)))


def _proved(job: Job, data: Data, trained: Trained, form: NewForm, record: Packager | Exporter) -> ProvedForm:
    original = Original(
        reference=trained.folder / compare.REFERENCE,
        folder=trained.folder,
        tokenizer=data.tokenizer,
        run=job.run,
        dataset=data.eval,
    )
    ask = partial(round_trip.answers, job, data, trained) if served(record) else proving_forms.no_questions
    return proving_forms.prove(form, original, job.progress, ask=ask)


def _on_whole(job: Job, data: Data, trained: Trained, folder: Path, limits: compare.Limits) -> Mapping[str, float]:
    """The distance of an adapter, loaded onto the whole base, from the trained model; {} unless the text part trained.

    If it is too far there, it is saved with the names of the text part again, and loads onto that only.
    """
    text_only = "the adapter works with the text part of its base only"
    from mlflow_ft.engine.adapters.fitting import FAILURES
    from mlflow_ft.engine.judging import parity
    from mlflow_ft.engine.judging.reference import Loaded
    from mlflow_ft.engine.models import text_part
    from mlflow_ft.engine.serving import bundle

    if not bundle.fits_whole(folder):
        parts = text_part.of(trained.base.path, task=job.task)
        if parts and parts.text_alone and (folder / "adapter_config.json").is_file():
            job.progress.say(
                f"{text_only}: this kind cannot be saved with the names of the whole model ({parts.whole})"
            )
        return {}
    try:
        with job.progress.bar("compare the adapter on the whole model"):
            form = Loaded(text_part.on_whole(job.config, trained.base, folder))
            kl_mean = parity.measure(form, trained.folder / compare.REFERENCE, answers=False).numbers["kl_mean"]
    except FAILURES as error:
        job.progress.say(f"the whole model cannot be run here: {brief(error)}")
        kl_mean = math.nan
    if not kl_mean <= limits.max_kl:
        bundle.copy_adapter(job, trained, folder, for_whole=False)
        job.progress.warn(f"{text_only}: on the whole model its mean KL is {kl_mean:.3g}")
        return {}
    job.progress.say(f"the adapter on the whole model: mean KL to the trained model {kl_mean:.2g} nats per token")
    job.run.metrics({"parity/adapter/whole_kl_mean": kl_mean}, dataset=data.eval)
    return {"whole_kl_mean": kl_mean}


def _exported(job: Job, data: Data, trained: Trained, record: Exporter, source: Path) -> KeptForm:
    from mlflow_ft.engine.serving import bundle

    def make(folder: Path) -> None:
        with _export_source(job, trained, record, source) as whole:
            record.export(whole, folder)
        if served(record):
            bundle.check_tokenizer(data, folder)

    form = NewForm(
        name=record.name,
        folder=job.folder / "package" / record.name,
        make=make,
        open=record.opened,
        limits=compare.Limits.of_export(job.config.package, record),
    )
    proved = _proved(job, data, trained, form, record)
    return KeptForm(record=record, folder=form.folder, parity=proved.parity, answers=proved.answers)


@contextmanager
def _export_source(job: Job, trained: Trained, record: Exporter, source: Path) -> Iterator[Path]:
    """The whole model to export: the packaged one, or the merge into the original weights; see `grid`."""
    from mlflow_ft.engine.models import own_quantization

    rounded = bool(record.grid) and record.grid == job.config.model.quantize
    if trained.adapter is None or not rounded or own_quantization.of(trained.base.path):
        yield source
        return
    from mlflow_ft.engine.merging import companions, fold

    with tempfile.TemporaryDirectory(dir=job.folder / "package") as scratch:
        fold.merge(job, trained, Path(scratch, "original"), original=True)
        companions.copy_files(source, Path(scratch, "original"))
        shutil.copyfile(source / "generation_config.json", Path(scratch, "original", "generation_config.json"))
        yield Path(scratch, "original")


def _seal(job: Job, data: Data, trained: Trained, form: KeptForm, scores: Scores) -> None:
    """Write the card and the manifest; nothing is written into the folder afterwards."""
    from mlflow_ft.tracking import write_manifest

    about = card.About(
        job=job,
        data=data,
        trained=trained,
        scores=scores,
        form=form.record,
        folder=form.folder,
        parity=form.parity,
        name=model_name(job, trained) + form.record.suffix,
        run=job.run.read(),
    )
    card.write(about)
    write_manifest(form.folder, about=of_checkpoint(trained))


def _log(job: Job, data: Data, trained: Trained, form: KeptForm, scores: Scores) -> str:
    model_type = f"{job.config.method}-{form.name}"
    with job.progress.bar(f"log {form.name}"):
        model_id = proving_forms.log_model(
            job.run, form.name, form.folder, metadata=lineage(job, data, trained), model_type=model_type
        )
    parity = {f"parity/{form.name}/{key}": value for key, value in form.parity.items()}
    log_scores(job, data, "tuned", scores.tuned, model_id=model_id)
    job.run.metrics(parity, model_id=model_id, dataset=data.eval)
    return model_id


def _log_files(job: Job, form: KeptForm) -> Exported:
    with job.progress.bar(f"log {form.name}"):
        job.run.artifact(form.folder, "exports")
    uri = f"runs:/{job.run.run_id}/exports/{form.name}"
    return Exported(name=form.name, folder=form.folder, uri=uri, parity=form.parity)

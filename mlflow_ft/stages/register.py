"""Stage 6: model versions in the registry, linked to each other, with the alias of a candidate."""

from __future__ import annotations

from mlflow_ft.forms import card, compare
from mlflow_ft.job import Job
from mlflow_ft.stages import worse
from mlflow_ft.stages.package import lineage
from mlflow_ft.stages.registered_name import model_name
from mlflow_ft.values import Data, Package, Scores, Trained, Version


def register(job: Job, data: Data, trained: Trained, package: Package, scores: Scores) -> tuple[Version, ...]:
    """Register every packaged model as NAME plus its suffix, give it the alias, and link the versions by tags.

    A model that is worse than its base gets no alias (`evaluation.on_worse`): it can be inspected, not used by alias.
    """
    job.run.begin("register")
    alias = "" if worse.refused(job, scores) else job.config.registry.alias
    tags = {"mlflow_ft.run_id": job.run.run_id} | lineage(job, data, trained) | worse.version_tags(job, scores)
    versions = []
    for model in package.models:
        text = (model.folder / card.CARD).read_text(encoding="utf-8")
        own = {"mlflow_ft.form": model.name, "mlflow_ft.model_id": model.model_id}
        own |= compare.tags(model.parity)
        name = model_name(job, trained) + model.suffix
        number = job.run.register(
            name=name, model_id=model.model_id, tags=tags | own, alias=alias, description=card.description(text)
        )
        versions.append(Version(name=name, version=number, alias=alias, model_id=model.model_id))
    exports = {f"mlflow_ft.export.{form.name}": form.uri for form in package.files}
    for form in package.files:
        exports |= compare.tags(form.parity, form=form.name)
    for model, version in zip(package.models, versions, strict=True):
        links = {
            f"mlflow_ft.{other.name}_version": f"models:/{linked.name}/{linked.version}"
            for other, linked in zip(package.models, versions, strict=True)
            if other.name != model.name
        }
        job.run.tag_version(version.name, version.version, links | (exports if version is versions[0] else {}))
    return tuple(versions)

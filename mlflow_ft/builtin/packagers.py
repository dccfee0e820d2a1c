"""The packaged forms of a trained model: the merged (or fully tuned) model, and the adapter."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_ft import Packager, hookimpl

if TYPE_CHECKING:
    from mlflow_ft import Job, Trained


def package_merged(job: Job, trained: Trained, folder: Path) -> None:
    """The adapter folded into the base it was trained on."""
    from mlflow_ft.engine.merging import fold

    fold.merge(job, trained, folder)


def package_full(job: Job, trained: Trained, folder: Path) -> None:
    """The fully tuned model, in the type to save."""
    from mlflow_ft.engine.merging import fold

    fold.copy_model(job, trained, folder)


def package_adapter(job: Job, trained: Trained, folder: Path) -> None:
    """The adapter alone, and a note that says which base it belongs to."""
    from mlflow_ft.engine.serving import bundle

    bundle.copy_adapter(job, trained, folder)


def rehearse_merged(job: Job, trained: Trained, folder: Path) -> None:
    """Plan the merge of the initial adapter, and write the configuration of the merged model."""
    from mlflow_ft.engine.merging import fold

    fold.rehearse(job, trained, folder)


def rehearse_full(job: Job, trained: Trained, folder: Path) -> None:
    """Write the configuration of the model, and determine the type of its weights."""
    from mlflow_ft.engine.merging import fold

    fold.rehearse_copy(job, trained, folder)


def merges(job: Job, trained: Trained) -> bool:
    """Whether there is an adapter that can be folded into the base."""
    return trained.adapter is not None and job.registry.adapters[job.config.adapter.kind].merges


@hookimpl
def register_packagers() -> list[Packager]:
    return [
        Packager(
            name="merged",
            summary="base and adapter in one model; a quantised base is dequantised first, never merged in place",
            package=package_merged,
            rehearse=rehearse_merged,
            applies=merges,
        ),
        Packager(
            name="model",
            summary="the fully tuned model",
            package=package_full,
            rehearse=rehearse_full,
            applies=lambda job, trained: trained.adapter is None,
        ),
        Packager(
            name="adapter",
            summary="the adapter without the base model's weights",
            package=package_adapter,
            rehearse=package_adapter,
            applies=lambda job, trained: trained.adapter is not None,
            suffix="-adapter",
        ),
    ]

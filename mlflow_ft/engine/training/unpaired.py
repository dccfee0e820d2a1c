"""Learning from answers that are labelled good or bad one by one: TRL's KTO on rows that are already tokenised."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from trl import KTOConfig, KTOTrainer
from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

from mlflow_ft.engine import ranks
from mlflow_ft.engine.models.routers import UnbalancedEvaluation
from mlflow_ft.engine.tokens.masking import IGNORED
from mlflow_ft.engine.training import loop, reference_log_probs
from mlflow_ft.engine.training.preference import AS_THEY_ARE, second_model, settle_reference
from mlflow_ft.engine.training.reference_log_probs import Answers, RemembersReference
from mlflow_ft.rows import Encoded
from mlflow_ft.values import Data, Job, Model, Split, Trained

Row = dict[str, Any]
WRITTEN = 1000
"""Rows that are written to disk at once."""


class PreparedKTOTrainer(RemembersReference, UnbalancedEvaluation, KTOTrainer):
    """KTO on our rows, which already have the mismatched answers for the KL estimate."""

    def _answers(self, inputs: Mapping[str, Any]) -> Mapping[tuple[str, ...], Answers]:
        found: dict[tuple[str, ...], Answers] = {("ref_logps",): reference_log_probs.answers(inputs)}
        return found | ({("ref_KL_logps",): reference_log_probs.answers(inputs, "KL_")} if self.calculate_KL else {})

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset


def kto(job: Job, data: Data, model: Model) -> Trained:
    """Kahneman-Tversky optimisation: arXiv 2402.01306. A preference gives two answers, one good and one bad."""
    names = ("beta", "loss_type", "desirable_weight", "undesirable_weight", "precompute_ref_log_probs")
    own = AS_THEY_ARE | loop.objective(job, *names)
    arguments = loop.arguments(KTOConfig, job, job.folder / "train", own)
    second = second_model(job, model)
    size = arguments.per_device_train_batch_size * ranks.size()

    def make(callbacks: list[TrainerCallback]) -> KTOTrainer:
        trainer = PreparedKTOTrainer(
            model=model.module,
            ref_model=second,
            args=arguments,
            data_collator=DataCollatorForUnpairedPreference(pad_token_id=data.tokenizer.pad_token_id),
            train_dataset=answers(data.train, Path(folder), batch_size=size),
            eval_dataset=answers(data.eval, Path(folder), batch_size=size),
            processing_class=data.tokenizer,
            callbacks=callbacks,
        )
        settle_reference(job, model)
        reference_log_probs.use(job, model.base, trainer)
        return trainer

    job.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="answers-", dir=job.folder) as folder:
        return loop.run(job, data, model, make, fused=1.0)


def answers(split: Split, folder: Path, *, batch_size: int) -> Any:
    """One side of the split as a `datasets.Dataset` of prompts, answers and labels, in a file of `folder`.

    Every row also has another row's answer (`KL_completion_ids`) for estimating the KL to the reference: that of the
    row before it in its batch of `batch_size` (of all processes), as TRL pairs them. Memory holds `WRITTEN` rows.
    """
    import pyarrow as pa
    from datasets import Dataset

    ids = pa.list_(pa.int64())
    names = {"prompt_ids": ids, "completion_ids": ids, "label": pa.bool_(), "KL_completion_ids": ids}
    schema = pa.schema(list(names.items()))
    file, rows = folder / f"{split.name}.arrow", _labelled(split)
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, schema) as stream:
        while written := list(itertools.islice(rows, batch_size * max(1, WRITTEN // batch_size))):
            for start in range(0, len(written), batch_size):
                batch = written[start : start + batch_size]
                for row, other in zip(batch, [batch[-1], *batch[:-1]], strict=True):
                    row["KL_completion_ids"] = other["completion_ids"]
            stream.write_batch(pa.RecordBatch.from_pylist(written, schema))
    return Dataset.from_file(str(file))


def _labelled(split: Split) -> Iterator[Row]:
    for example, encoded in zip(split.examples, split.encoded, strict=True):
        sides = [(encoded, example.label is not False)] + ([(encoded.rejected, False)] if encoded.rejected else [])
        for side, label in sides:
            prompt, completion = last_answer(side)
            yield {"prompt_ids": prompt, "completion_ids": completion, "label": label}


def last_answer(row: Encoded) -> tuple[Sequence[int], Sequence[int]]:
    """The tokens before the last learned turn, and those of that turn; what follows it is dropped."""
    end = len(row.labels)
    while end and row.labels[end - 1] == IGNORED:
        end -= 1
    begin = end
    while begin and row.labels[begin - 1] != IGNORED:
        begin -= 1
    return row.input_ids[:begin], row.input_ids[begin:end]

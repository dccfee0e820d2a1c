"""Learning from preferences: TRL's DPO, CPO (with SimPO) and ORPO on pairs that are already tokenised and masked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback
from trl import DPOConfig, DPOTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from mlflow_ft.engine import batches
from mlflow_ft.engine.models import loading
from mlflow_ft.engine.models.routers import UnbalancedEvaluation
from mlflow_ft.engine.tokens.masking import IGNORED
from mlflow_ft.engine.training import loop, parts, reference_log_probs, starts
from mlflow_ft.engine.training.parts import InParts, Part
from mlflow_ft.engine.training.reference_log_probs import Answers, RemembersReference
from mlflow_ft.rows import Encoded
from mlflow_ft.values import Data, Job, Model, Split, Trained

PAIR = ("input_ids", "labels", "rejected_ids", "rejected_labels")
"""The columns of the store that a pair needs."""
AS_THEY_ARE = {"max_length": None, "remove_unused_columns": False}
"""Settings for rows that are already tokenised and truncated."""
Row = dict[str, Any]


def pair(row: Row) -> tuple[Encoded, Encoded]:
    """The chosen and the rejected answer of a row of the store."""
    chosen = Encoded(input_ids=tuple(row["input_ids"]), labels=tuple(row["labels"]))
    return chosen, Encoded(input_ids=tuple(row["rejected_ids"]), labels=tuple(row["rejected_labels"]))


class ForDPO:
    """Collates rows for DPO: all chosen ones, then all rejected ones, in one batch.

    `completion_mask` is 1 on the learned tokens, by our labels: in a conversation of several turns only the assistant's
    tokens, and never the white space after its end-of-turn token.
    """

    def __init__(self, pad_token_id: int) -> None:
        self._pad = pad_token_id

    def __call__(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """`input_ids`, `attention_mask` and `completion_mask`, each of shape (2 x rows, longest)."""
        pairs = [pair(row) for row in rows]
        sides = [*(chosen for chosen, _ in pairs), *(rejected for _, rejected in pairs)]
        batch = batches.padded(sides, pad_token_id=self._pad)
        batch["completion_mask"] = batch.pop("labels").ne(IGNORED).long()
        for name in ("ref_chosen_logps", "ref_rejected_logps"):
            if name in rows[0]:
                batch[name] = torch.tensor([row[name] for row in rows])
        return batch


class ForCPO:
    """Collates rows for CPO and ORPO: `chosen_` and `rejected_` `input_ids`, `attention_mask`, `labels`."""

    def __init__(self, pad_token_id: int) -> None:
        self._pad = pad_token_id

    def __call__(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """Six tensors of shape (rows, longest of its side)."""
        pairs = [pair(row) for row in rows]
        sides = {"chosen": [chosen for chosen, _ in pairs], "rejected": [rejected for _, rejected in pairs]}
        return {
            f"{side}_{name}": value
            for side, several in sides.items()
            for name, value in batches.padded(several, pad_token_id=self._pad).items()
        }


class PairsAsTheyAre:
    """Keeps TRL from tokenising rows again."""

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset

    def tokenize_row(self, feature: Row, model: Any = None) -> Row:
        """What CPO and ORPO call for every row."""
        return feature


class PreparedDPOTrainer(InParts, RemembersReference, UnbalancedEvaluation, PairsAsTheyAre, DPOTrainer):
    """DPO on our pairs."""

    def _answers(self, inputs: Part) -> Mapping[tuple[str, ...], Answers]:
        return {("ref_chosen_logps", "ref_rejected_logps"): reference_log_probs.answers(inputs)}

    def compute_loss(self, *given: Any, **options: Any) -> Any:
        """The loss of a batch, or what its part adds to it."""
        compute: Any = super().compute_loss  # which TRL does not annotate
        result = compute(*given, **options)
        return result if self._share == 1 else result * self._share

    def _parts(self, inputs: Part, tokens: int) -> list[Part]:
        return parts.of_pairs(inputs, tokens, shares=self.shares_beginnings)

    @staticmethod
    def _weights(part: Part) -> Mapping[str, float]:
        learned = part["completion_mask"][:, 1:].sum(dim=1)
        chosen, rejected = (int(side.sum()) for side in learned.chunk(2))
        of_chosen = dict.fromkeys(("logits/chosen", "mean_token_accuracy"), chosen)
        return {**of_chosen, "logits/rejected": rejected, "entropy": chosen + rejected}


class PreparedCPOTrainer(UnbalancedEvaluation, PairsAsTheyAre, CPOTrainer):
    """CPO and SimPO on our pairs."""


class PreparedORPOTrainer(UnbalancedEvaluation, PairsAsTheyAre, ORPOTrainer):
    """ORPO on our pairs."""


def pairs(split: Split) -> Any:
    """One side of the split as a `datasets.Dataset` of pairs; TRL caches its results by the fingerprint."""
    return split.encoded.dataset(PAIR, fingerprint=split.digest)


def dpo(job: Job, data: Data, model: Model) -> Trained:
    """Direct preference optimisation and its relatives (`objective.loss_type`): arXiv 2305.18290.

    The reference is the base with the new adapter switched off; for an adapter that is trained further, a frozen copy;
    for full fine-tuning, a second copy of the model, unless `objective.precompute_ref_log_probs` evaluates it once
    before training.
    """
    own = AS_THEY_ARE | loop.objective(job, "beta", "loss_type", "label_smoothing", "precompute_ref_log_probs")
    arguments = loop.arguments(DPOConfig, job, job.folder / "train", own)
    second = second_model(job, model)

    def make(callbacks: list[TrainerCallback]) -> DPOTrainer:
        trainer = PreparedDPOTrainer(
            model=model.module,
            ref_model=second,
            args=arguments,
            data_collator=ForDPO(data.tokenizer.pad_token_id),
            train_dataset=pairs(data.train),
            eval_dataset=pairs(data.eval),
            processing_class=data.tokenizer,
            callbacks=callbacks,
        )
        settle_reference(job, model)
        reference_log_probs.use(job, model.base, trainer)
        return trainer

    return loop.run(job, data, model, make, fused=1.0)


def second_model(job: Job, model: Model) -> Any | None:
    """The reference for full fine-tuning; None with an adapter, or if its log-probabilities are precomputed."""
    if hasattr(model.module, "peft_config") or job.config.objective.precompute_ref_log_probs:
        return None
    return loading.load_base(job.config, model.base)


def settle_reference(job: Job, model: Model) -> None:
    """Use the base as the reference of a new adapter, by switching the adapter off.

    TRL makes a frozen copy of every adapter. Most new adapters change nothing yet, so a copy wastes memory; and a new
    learned prompt changes everything at random, which is not a useful reference. Adapters initialised from the base's
    weights, or from its quantisation error, keep the copy: without the adapter their base gives different outputs.
    """
    begins = job.config.adapter.init_lora_weights or ""
    copied = loop.REFERENCE in getattr(model.module, "peft_config", {})
    if copied and model.base.start is None and not begins.startswith((*starts.CHANGE_THE_BASE, "loftq")):
        model.module.delete_adapter(loop.REFERENCE)


def cpo(job: Job, data: Data, model: Model) -> Trained:
    """Contrastive preference optimisation, without a reference: arXiv 2401.08417; SimPO: arXiv 2405.14734."""
    own = AS_THEY_ARE | _length(job) | loop.objective(job, "beta", "loss_type", "label_smoothing")
    arguments = loop.arguments(CPOConfig, job, job.folder / "train", own)
    return _without_reference(PreparedCPOTrainer, arguments, job, data, model)


def orpo(job: Job, data: Data, model: Model) -> Trained:
    """Odds ratio preference optimisation: SFT on the chosen answers and a preference in one step, arXiv 2403.07691."""
    own = AS_THEY_ARE | _length(job) | loop.objective(job, "beta")
    arguments = loop.arguments(ORPOConfig, job, job.folder / "train", own)
    return _without_reference(PreparedORPOTrainer, arguments, job, data, model)


def _length(job: Job) -> dict[str, int]:
    """The maximum length of rows, without which TRL warns."""
    return {"max_length": job.config.data.max_length}


def _without_reference(kind: Any, arguments: Any, job: Job, data: Data, model: Model) -> Trained:
    def make(callbacks: list[TrainerCallback]) -> Any:
        with loop.quiet_datasets():
            trainer = kind(
                model=model.module,
                args=arguments,
                data_collator=ForCPO(data.tokenizer.pad_token_id),
                train_dataset=pairs(data.train),
                eval_dataset=pairs(data.eval),
                processing_class=data.tokenizer,
                callbacks=callbacks,
            )
        trainer.use_dpo_data_collator = True  # ours returns the same as TRL's own
        return trainer

    return loop.run(job, data, model, make)

"""How rows become batches (`training.batching`): padded, by length, or laid end to end without padding.

The rows of an optimizer step and their losses are the same with all of them, except `by_length`, which draws rows of
similar length together.
"""

from __future__ import annotations

from typing import Any

from transformers.trainer_pt_utils import LengthGroupedSampler

from mlflow_ft.engine import ranks
from mlflow_ft.engine.models import fused_head, row_isolation
from mlflow_ft.engine.models.unpadding import Unpadding
from mlflow_ft.engine.training import longest_batch
from mlflow_ft.errors import ConfigError, brief
from mlflow_ft.values import Data, Job

TAG = "mlflow.mlflow_ft.batching"
FAILURES = (*fused_head.FAILURES, ArithmeticError, AssertionError)
"""What a model raises that is not built for rows laid end to end."""


class Batching:
    """The batches of one training."""

    def __init__(self, job: Job, data: Data, trainer: Any) -> None:
        self._job, self._data, self._trainer = job, data, trainer
        self._asked = job.config.training.batching
        models = [trainer.model, getattr(trainer, "ref_model", None)]
        self._unpadding = [Unpadding(model) for model in models if model is not None]
        if self._asked == "by_length":
            _by_length(trainer)
        if self._asked == "tokens" and job.config.launch.sharded:
            raise self._refused(f"it cannot be proved with weights that {job.config.launch.strategy} spreads")

    def check(self, model: Any, rough: bool) -> None:  # noqa: FBT001  # a callback
        """Before the first step: leave padding out if it is asked for, or if this model can be proved to do without.

        Raises:
            ConfigError: it was asked for, and rows laid end to end affect each other.
        """
        if self._asked not in ("auto", "tokens") or not self._padded:
            return
        reason = self._against(model, rough=rough)
        if reason is not None:
            self.end()
            if self._asked == "tokens":
                raise self._refused(reason)
        self._trainer.shares_beginnings = reason is None and self._unpadding[0].shares and self._unpadding[0].shared
        used = "tokens" if reason is None else f"padded: {reason}"
        self._job.progress.say("batches without padding" if reason is None else f"batches are {used}")
        if ranks.leads():
            self._job.run.set_tags({TAG: used})

    def _refused(self, reason: str) -> ConfigError:
        return ConfigError(
            f"training.batching tokens: {reason}", hint="use --training.batching by_length, or leave it out"
        )

    @property
    def _padded(self) -> bool:
        """Whether the trainer pads."""
        config = self._job.config
        packed = config.objective.packing or getattr(self._trainer, "padding_free", False)
        sides = 2 if self._data.kind == "preference" else 1
        return config.training.batch_size * sides > 1 and not packed

    def _against(self, model: Any, *, rough: bool) -> str | None:
        """Why this model needs padding; None if it is proved that it does not, and padding is left out from now on."""
        if getattr(self._trainer.args, "neftune_noise_alpha", None):
            return "NEFTune's noise depends on the length of rows"
        if not all(one.possible for one in self._unpadding):
            return "the model takes no positions"
        for one in self._unpadding:
            one.on()
        reason: str | None = None
        for shares in (True, False):  # a model that cannot share a beginning may yet do without padding
            for one in self._unpadding:
                one.shares = shares
            reason = self._affected(model, rough=rough, shares=shares)
            if reason is None:
                laid = self._unpadding[0].positions > 0
                return None if laid else "the model gets more about each token than can be laid end to end"
        return reason

    def _affected(self, model: Any, *, rough: bool, shares: bool) -> str | None:
        """How rows laid end to end affect each other on this model; None if they do not."""
        collate = row_isolation.padding(self._data.tokenizer.pad_token_id)
        rows = row_isolation.some(self._data)
        alike = row_isolation.of_one_beginning(model, rows) if shares else []
        try:
            seen = row_isolation.see_each_other(
                model, rows, collate, batch=collate(alike) if alike else None, rough=rough, unpadded=True
            )
        except FAILURES as error:
            return f"the model cannot read rows laid end to end ({brief(error)})"
        if seen is None:
            return None
        return f"rows laid end to end affect each other on this model, by up to {seen.difference:.2g} nats a token"

    def end(self) -> None:
        """The models are as they were."""
        for one in self._unpadding:
            one.off()


def _by_length(trainer: Any) -> None:
    """Draw rows of similar length together, in windows of 50 batches that are drawn at random.

    Raises:
        ConfigError: the rows of this method have no length before they are drawn.
    """
    lengths = (
        longest_batch.row_lengths(trainer.train_dataset) if hasattr(trainer.train_dataset, "column_names") else None
    )
    if lengths is None:
        raise ConfigError("training.batching by_length: the rows of this method have no length", hint="leave it out")
    size = trainer._train_batch_size * trainer.args.gradient_accumulation_steps
    sampler = LengthGroupedSampler(size, lengths=lengths.tolist())
    trainer._get_train_sampler = lambda *_: sampler

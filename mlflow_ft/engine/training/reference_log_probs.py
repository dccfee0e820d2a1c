"""The log-probabilities that a reference model gives answers, kept on disk by the answers' tokens.

dpo and kto compare every answer with what the reference model gives it, which is a forward pass in each step. The
reference does not learn: what it gave an answer once holds in later epochs, held-out losses and runs on the same base.
"""

from __future__ import annotations

import hashlib
import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mlflow_ft.data import cache
from mlflow_ft.engine import hardware, hub
from mlflow_ft.engine.adapters import fitting
from mlflow_ft.engine.judging.reference import comes_off
from mlflow_ft.engine.training import starts
from mlflow_ft.values import BaseModel, Job

FILE = "log_probs"
RECORD = np.dtype([("key", "V16"), ("value", "<f8")])
"""A log-probability by the hash of its tokens."""
LIBRARIES = ("torch", "transformers", "peft", "trl", "bitsandbytes")
"""What computes them."""
FINE, COARSE = 1e-4, 2e-2
"""By how much of itself a log-probability may differ in another batch: computed in float32, and in 16 bits."""
Answers = tuple[Tensor, Tensor, Tensor]
"""Rows with an answer: token ids, attention mask, and mask of the answer, each of shape (rows, length)."""
log = logging.getLogger(__name__)


class Kept:
    """Log-probabilities by key, in a file of records that several processes may add to."""

    def __init__(self, file: Path, *, rounding: float = FINE) -> None:
        self.rounding = rounding
        self._file = file
        self._writes = True
        whole = file.is_file() and file.stat().st_size % RECORD.itemsize == 0
        if not whole:  # a process was killed while it wrote
            file.unlink(missing_ok=True)
        records = np.fromfile(file, dtype=RECORD) if whole else np.empty(0, dtype=RECORD)
        self._values = {key.tobytes(): float(value) for key, value in records}
        self.earlier = len(self._values)
        """How many there were from earlier runs."""

    def of(self, keys: Sequence[bytes]) -> list[float] | None:
        """The values of all these keys; None if one is missing."""
        values = [self._values.get(key) for key in keys]
        return None if None in values else [value for value in values if value is not None]

    def add(self, keys: Sequence[bytes], values: Sequence[float]) -> None:
        """Keep new values; those that are not finite are left out."""
        new = {
            key: value
            for key, value in zip(keys, values, strict=True)
            if key not in self._values and np.isfinite(value)
        }
        self._values |= new
        if new and self._writes:
            try:
                with self._file.open("ab", buffering=0) as stream:
                    stream.write(np.array(list(new.items()), dtype=RECORD).tobytes())
            except OSError as error:  # the disk is full, or the cache was cleared
                self._writes = False
                log.warning("reference log-probabilities are not kept for later runs: %s", error)

    def forget(self) -> None:
        """Begin again, without those of earlier runs."""
        self._file.unlink(missing_ok=True)
        self._values, self.earlier = {}, 0


class RemembersReference(ABC):
    """A trainer of TRL that uses what the reference gave an answer before: a mixin before its class."""

    kept: Kept | None = None
    """None if the reference is computed in every step."""
    precompute_ref_logps: bool
    ref_model: Any
    model: Any

    @abstractmethod
    def _answers(self, inputs: Mapping[str, Any]) -> Mapping[tuple[str, ...], Answers]:
        """The answers of a batch, by the names of the inputs in which TRL expects their log-probabilities."""

    def _compute_loss(self, model: Any, inputs: Mapping[str, Any], return_outputs: bool) -> Any:  # noqa: FBT001  # TRL's
        compute: Any = super()._compute_loss  # type: ignore[misc]  # a mixin
        if self.kept is None or self.precompute_ref_logps:
            return compute(model, inputs, return_outputs)
        with_reference = {**inputs, **self._reference(self.kept, inputs)}
        self.precompute_ref_logps = True
        try:
            return compute(model, with_reference, return_outputs)
        finally:
            self.precompute_ref_logps = False

    def _reference(self, kept: Kept, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        """What the reference gives the answers of a batch."""
        answers = self._answers(inputs)
        keys = [key for tensors in answers.values() for key in keys_of(*tensors)]
        names = [name for several in answers for name in several]
        known = kept.of(keys)
        if known is None or kept.earlier:
            compute: Any = self.compute_ref_log_probs  # type: ignore[attr-defined]  # TRL's
            found = [values for values in compute(self.ref_model or self.model, inputs) if values is not None]
            values = torch.cat(found).tolist()
            if known is not None:
                _compare(kept, known, values)
            kept.add(keys, values)
            return dict(zip(names, found, strict=True))
        device = inputs["input_ids"].device
        return dict(zip(names, torch.tensor(known, device=device).chunk(len(names)), strict=True))


def _compare(kept: Kept, known: Sequence[float], values: Sequence[float]) -> None:
    """Trust those of earlier runs if the first that are known are right, else forget them."""
    pairs = zip(known, values, strict=True)
    if all(abs(old - new) <= kept.rounding * max(1.0, abs(new)) for old, new in pairs):
        kept.earlier = 0
        return
    log.warning("reference log-probabilities of earlier runs are not those of this base: they are computed again")
    kept.forget()


def answers(inputs: Mapping[str, Any], prefix: str = "") -> Answers:
    """The answers in a batch of TRL, whose inputs have these names with `prefix` before them."""
    names = ("input_ids", "attention_mask", "completion_mask")
    ids, mask, answer = (inputs[f"{prefix}{name}"] for name in names)
    return ids, mask, answer


def keys_of(ids: Tensor, mask: Tensor, answer: Tensor) -> list[bytes]:
    """A key for each row: of its token ids without padding, and of which of them are the answer."""
    together = zip(ids.cpu(), mask.cpu().bool(), answer.cpu().bool(), strict=True)
    return [_key(row[real].numpy(), chosen[real].numpy()) for row, real, chosen in together]


def _key(ids: np.ndarray[Any, Any], answer: np.ndarray[Any, Any]) -> bytes:
    digest = hashlib.blake2b(ids.astype("<i8").tobytes(), digest_size=RECORD["key"].itemsize)
    digest.update(np.packbits(answer).tobytes())
    return digest.digest()


def use(job: Job, base: BaseModel, trainer: Any) -> None:
    """Let a trainer remember its reference, if that is the same model in every step and run."""
    if not job.config.objective.remember_ref_log_probs or not _steady(job, base, trainer):
        return
    folder, _ = cache.find_or_make(f"reference-{identity(job, base, trainer)}", lambda _: None)
    exact = hardware.compute_dtype(job.config.model.dtype) is torch.float32
    trainer.kept = kept = Kept(folder / FILE, rounding=FINE if exact else COARSE)
    if kept.earlier:
        job.progress.say(f"reference log-probabilities of {kept.earlier:,} answers are known from earlier runs")


def _steady(job: Job, base: BaseModel, trainer: Any) -> bool:
    """Whether the reference gives an answer the same in every step: without dropout, and if training does not reach it.

    With shares of weights all processes compute each pass together, and may know different rows.
    """
    launch, arguments, begins = job.config.launch, trainer.args, job.config.adapter.init_lora_weights or ""
    if launch.sharded or launch.own_engine or arguments.precompute_ref_log_probs or arguments.sync_ref_model:
        return False
    if getattr(arguments, "ld_alpha", None) is not None:  # which counts an answer up to the length of the other
        return False
    if trainer.ref_model is not None:
        return True
    changed = base.start is None and begins.startswith((*starts.CHANGE_THE_BASE, "loftq"))
    return comes_off(trainer.model) and not changed and not _random(trainer)


def _random(trainer: Any) -> bool:
    """Whether passes of the reference in training are random: by dropout that TRL has left on, or NEFTune.

    Dropout of the trained adapter does not count: it is off then, unless a copy of it is the reference.
    """
    layers = trainer.model.named_modules()
    rates = [
        rate
        for name, layer in layers
        if not name.endswith(f".{fitting.KEY}")
        for key, rate in vars(layer).items()
        if isinstance(rate, float) and ("drop" in key or isinstance(layer, nn.Dropout))
    ]
    return bool(trainer.args.neftune_noise_alpha) or max(rates, default=0.0) > 0


def identity(job: Job, base: BaseModel, trainer: Any) -> str:
    """A hash of everything that the reference's log-probabilities depend on, besides the tokens."""
    settings = job.config.model
    parts = {
        "weights": base.revision,
        "adapter": hub.weights_hash(base.start) if base.start else "",
        "model": {
            name: getattr(settings, name)
            for name in ("add_tokens", "quantize", "double_quant", "attn_implementation", "trust_remote_code")
        },
        "type": str(hardware.held_dtype(job.config)),
        "computed in": str(hardware.compute_dtype(settings.dtype)),
        "second model": trainer.ref_model is not None,
        "device": hardware.device().type,
        "libraries": {name: metadata.version(name) for name in LIBRARIES},
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

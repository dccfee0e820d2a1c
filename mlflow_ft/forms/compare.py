"""Whether a form is near enough to the trained model to be registered, and what to look at where it is not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlflow_ft.config.schema import PackageSection
from mlflow_ft.records import Exporter

if TYPE_CHECKING:
    from mlflow_ft.engine.judging.parity import Parity

REFERENCE = "reference.safetensors"
"""What the trained model left, in the folder of the training, and among the run's artifacts in `parity/`."""
QUESTIONS = (
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "Name three colours.",
    "Translate to German: good morning.",
    "What is 17 + 25?",
    "Turn into JSON: the lamp in the kitchen is on.",
)
"""What a model is asked where no run has kept what the trained model said."""
NEGLIGIBLE = 1e-3
"""Nats per token that are no sign of a fault, however short the way from the base model was."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How far a form may be from the trained model; see `PackageSection`."""

    max_kl: float
    min_top1: float
    max_perplexity_change: float
    max_kl_share: float | None = None
    remedy: str

    @classmethod
    def of_package(cls, settings: PackageSection) -> Limits:
        """Of a form that is to be the trained model, up to the type of its weights."""
        return cls(
            max_kl=settings.max_kl,
            min_top1=settings.min_top1,
            max_perplexity_change=settings.max_perplexity_change,
            max_kl_share=settings.max_kl_share,
            remedy="where the saved type rounds the training away, save a finer one (--package.dtype float32)",
        )

    @classmethod
    def of_kl(cls, max_kl: float) -> Limits:
        """Of a form that is let pass up to a divergence that was named, whatever else it is."""
        return cls(max_kl=max_kl, min_top1=0.0, max_perplexity_change=float("inf"), remedy="allow more (--max_kl)")

    @classmethod
    def of_export(cls, settings: PackageSection, exporter: Exporter) -> Limits:
        """Of a form that is meant to be rougher."""
        max_kl = settings.export_max_kl or exporter.max_kl
        return cls(
            max_kl=max_kl,
            min_top1=exporter.min_top1 if settings.export_max_kl is None else 0.0,
            max_perplexity_change=max(settings.max_perplexity_change, 2 * max_kl),
            remedy="take a form with more bits, or allow it (--package.export_max_kl)",
        )


def reasons(found: Mapping[str, float], limits: Limits) -> Iterator[str]:
    """What speaks against a form, a sentence each. What is not a number does."""
    kl, top1 = found["kl_mean"], found["top1_agreement"]
    if not kl <= limits.max_kl:
        yield f"mean KL {kl:.4g} nats per token, at most {limits.max_kl:g}"
    share = found.get("kl_share")
    if limits.max_kl_share is not None and share is not None and kl > NEGLIGIBLE and not share <= limits.max_kl_share:
        yield (
            f"it is {share:.2g} times as far from the trained model as the base is: the adapter is not in it, or is "
            f"scaled otherwise, at most {limits.max_kl_share:g}"
        )
    if not top1 >= limits.min_top1:
        yield f"it agrees on the most probable token in {top1:.1%} of places, at least {limits.min_top1:.0%}"
    if found.get("unstopped"):
        yield "it does not end its turn where the trained model does: see eos_token_id in generation_config.json"
    change = found.get("perplexity_change", 0.0)
    if not abs(change) <= limits.max_perplexity_change:
        yield f"its perplexity differs by {change:+.1%}, at most {limits.max_perplexity_change:.0%}"


def table(found: Parity, tokenizer: Any) -> Sequence[Mapping[str, Any]]:
    """A row for each prompt with both answers, then one for each token."""
    answers = [
        {
            "row": one["row"],
            "trained": tokenizer.decode(one["trained"]),
            "found": tokenizer.decode(one["found"]),
            "same": one["trained"] == one["found"],
        }
        for one in found.answers
    ]
    tokens = [
        {
            "row": one["row"],
            "position": one["position"],
            "behind": tokenizer.decode([one["token"]]),
            "trained": tokenizer.decode([one["trained_top"]]),
            "found": tokenizer.decode([one["found_top"]]),
            "same": one["trained_top"] == one["found_top"],
            "kl": one["kl"],
        }
        for one in found.tokens
    ]
    return [*answers, *tokens]


def tags(parity: Mapping[str, float], *, form: str = "") -> dict[str, str]:
    """A version's own parity as its tags; that of files which were made of it with their `form`."""
    prefix = f"mlflow_ft.parity.{form}." if form else "mlflow_ft.parity."
    return {prefix + key: f"{value:.6g}" for key, value in parity.items()}

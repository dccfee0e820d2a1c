"""Whether a form is close enough to the trained model to be registered, and why not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mlflow_ft.config.schema import PackageSection
from mlflow_ft.records import Exporter

if TYPE_CHECKING:
    from mlflow_ft.engine.judging.parity import Parity

REFERENCE = "reference.safetensors"
"""The trained model's outputs, in the folder of the training and among the run's artifacts in `parity/`."""
QUESTIONS = (
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "Name three colours.",
    "Translate to German: good morning.",
    "What is 17 + 25?",
    "Turn into JSON: the lamp in the kitchen is on.",
)
"""The prompts for a comparison if no run has the trained model's outputs."""
NEGLIGIBLE = 1e-3
"""Nats per token that do not indicate a fault, however little training changed the base model."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How far a form may differ from the trained model; see `PackageSection`."""

    max_kl: float
    min_top1: float
    max_perplexity_change: float
    max_kl_share: float | None = None
    remedy: str

    @classmethod
    def of_package(cls, settings: PackageSection) -> Limits:
        """For a form that must equal the trained model, up to the dtype of its weights."""
        return cls(
            max_kl=settings.max_kl,
            min_top1=settings.min_top1,
            max_perplexity_change=settings.max_perplexity_change,
            max_kl_share=settings.max_kl_share,
            remedy="if the saved dtype is too coarse for what was learned, save a finer one (--package.dtype float32)",
        )

    @classmethod
    def of_serving(cls, settings: PackageSection) -> Limits:
        """For the trained model as another program runs it."""
        return replace(cls.of_package(settings), remedy="try another dtype, or serve it with --engine transformers")

    @classmethod
    def of_kl(cls, max_kl: float) -> Limits:
        """For a form that passes up to a given divergence, without other limits."""
        return cls(max_kl=max_kl, min_top1=0.0, max_perplexity_change=float("inf"), remedy="allow more (--max_kl)")

    @classmethod
    def of_export(cls, settings: PackageSection, exporter: Exporter) -> Limits:
        """For a form that is less precise by design."""
        max_kl = settings.export_max_kl or exporter.max_kl
        return cls(
            max_kl=max_kl,
            min_top1=exporter.min_top1 if settings.export_max_kl is None else 0.0,
            max_perplexity_change=max(settings.max_perplexity_change, 2 * max_kl),
            remedy="choose a form with more bits, or allow the difference (--package.export_max_kl)",
        )


def reasons(parity: Mapping[str, float], limits: Limits) -> Iterator[str]:
    """Each reason to refuse a form. NaN exceeds every limit."""
    kl, top1 = parity["kl_mean"], parity["top1_agreement"]
    if not kl <= limits.max_kl:
        yield f"mean KL is {kl:.4g} nats per token (limit: {limits.max_kl:g})"
    share = parity.get("kl_share")
    if limits.max_kl_share is not None and share is not None and kl > NEGLIGIBLE and not share <= limits.max_kl_share:
        yield (
            f"it is {share:.2g} times as far from the trained model as the base is (limit: {limits.max_kl_share:g}): "
            "the adapter is missing or scaled differently"
        )
    if not top1 >= limits.min_top1:
        yield f"it agrees on the most probable token at {top1:.1%} of positions (minimum: {limits.min_top1:.0%})"
    if parity.get("unstopped"):
        yield "it does not end its turn where the trained model does: see eos_token_id in generation_config.json"
    change = parity.get("perplexity_change", 0.0)
    if not abs(change) <= limits.max_perplexity_change:
        yield f"its perplexity differs by {change:+.1%} (limit: {limits.max_perplexity_change:.0%})"


def table(comparison: Parity, tokenizer: Any) -> Sequence[Mapping[str, Any]]:
    """A row for each prompt with both answers, then one for each token."""
    answers = [
        {
            "row": answer["row"],
            "trained": tokenizer.decode(answer["trained"]),
            "found": tokenizer.decode(answer["found"]),
            "same": answer["trained"] == answer["found"],
        }
        for answer in comparison.answers
    ]
    tokens = [
        {
            "row": token["row"],
            "position": token["position"],
            "after": tokenizer.decode([token["token"]]),
            "trained": tokenizer.decode([token["trained_top"]]),
            "found": tokenizer.decode([token["found_top"]]),
            "same": token["trained_top"] == token["found_top"],
            "kl": token["kl"],
        }
        for token in comparison.tokens
    ]
    return [*answers, *tokens]


def tags(parity: Mapping[str, float], *, form: str = "") -> dict[str, str]:
    """Parity as tags of a version; with `form`, that of files made from the version."""
    prefix = f"mlflow_ft.parity.{form}." if form else "mlflow_ft.parity."
    return {prefix + key: f"{value:.6g}" for key, value in parity.items()}

"""The data of a run, proved: rows, examples and tokens of each side of the split."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from mlflow_ft.rows import Encoded, Example, Kind, Place
from mlflow_ft.values.report import Report

if TYPE_CHECKING:
    from datasets import Dataset


T = TypeVar("T")


class StoredRows(Sequence[T]):
    """Rows that are read from disk when they are looked at, never all at once."""

    @abstractmethod
    def dataset(self, names: Sequence[str] = ("input_ids", "labels"), *, fingerprint: str = "mlflow-ft") -> Dataset:
        """The rows as a `datasets.Dataset` with the columns that are named, without a copy of them in memory.

        `fingerprint` stands for their content where something is cached by it.
        """


@dataclass(frozen=True, kw_only=True)
class Split:
    """The rows on one side of the split, index by index: where they stand, what they say, what is learned of them.

    The sequences read from disk what is looked at; iterate rather than keep what they give.
    """

    name: Literal["train", "eval", "guard"]
    sources: tuple[str, ...]
    """Absolute paths, Hub ids, MLflow URIs."""
    source_type: Literal["local", "hugging_face"]
    rows: Sequence[Place]
    examples: Sequence[Example]
    encoded: StoredRows[Encoded]
    columns: tuple[str, ...]
    """The names of the columns in the source."""
    counts: Mapping[str, int]
    """`rows`, `tokens`, `supervised_tokens`, `truncated`, and `dropped`: rows of the source that are left out."""
    digest: str
    """First 32 hex digits of a sha256 over content, template and tokens; 36 is MLflow's limit."""

    @property
    def source(self) -> str:
        return ", ".join(self.sources)


@dataclass(frozen=True, kw_only=True)
class Data:
    """Rows made ready and proved: what is learned, and what is held out."""

    train: Split
    eval: Split
    format: str
    kind: Kind
    tokenizer: Any
    """The tokenizer that encoded the rows, a transformers.PreTrainedTokenizerFast; saved with the model."""
    stop_token_ids: tuple[int, ...]
    """The tokens that end an assistant's turn, in the template that was used."""
    fingerprint: str = ""
    """32 hex digits over the sources' bytes, the format, every step of the preparation, template and tokenizer."""
    report: Report | None = None
    """What the checks found; None where nobody looked."""
    clock: Mapping[str, str] = field(default_factory=dict)
    """By format (`%d %b %Y`), the date or time as of which the chat template wrote rows; empty where it asks none."""
    guards: Mapping[str, Data] = field(default_factory=dict)
    """Guard sets by name (`evaluation.guards`): each with its rows as the held-out ones."""

"""The data of a run: rows, examples and tokens with proved masks, for each side of the split."""

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
    """Rows that are read from disk when accessed, never all at once."""

    @abstractmethod
    def dataset(self, names: Sequence[str] = ("input_ids", "labels"), *, fingerprint: str = "mlflow-ft") -> Dataset:
        """The rows as a `datasets.Dataset` with the named columns, without a copy in memory.

        `fingerprint` identifies their content for the cache of `datasets`.
        """


@dataclass(frozen=True, kw_only=True)
class Split:
    """The rows on one side of the split: `rows`, `examples` and `encoded` have one item per row, in the same order.

    The sequences read from disk on access; iterate over them instead of keeping all items.
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
    """`rows`, `tokens`, `supervised_tokens`, `truncated`, and `dropped` (rows of the source that are left out)."""
    digest: str
    """The first 32 hex digits of a sha256 over content, template and tokens; MLflow allows 36."""

    @property
    def source(self) -> str:
        return ", ".join(self.sources)


@dataclass(frozen=True, kw_only=True)
class Data:
    """Prepared rows with proved masks: the training side and the held-out side."""

    train: Split
    eval: Split
    format: str
    kind: Kind
    tokenizer: Any
    """The tokenizer that encoded the rows, a transformers.PreTrainedTokenizerFast; saved with the model."""
    stop_token_ids: tuple[int, ...]
    """The tokens that end an assistant's turn in the chat template."""
    fingerprint: str = ""
    """32 hex digits over the sources' bytes, the format, every step of the preparation, template and tokenizer."""
    report: Report | None = None
    """What the checks found; None if they did not run."""
    clock: Mapping[str, str] = field(default_factory=dict)
    """By format (`%d %b %Y`), the date or time that the chat template wrote into rows; empty if it writes none."""
    guards: Mapping[str, Data] = field(default_factory=dict)
    """Guard sets by name (`evaluation.guards`), each with its rows as the held-out side."""

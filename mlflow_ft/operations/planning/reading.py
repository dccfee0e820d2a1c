"""The data of a plan: how many rows of which kind, and how long they are."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mlflow_ft.config.schema import Config
from mlflow_ft.data import sources
from mlflow_ft.data.reading.readers import Unreadable
from mlflow_ft.errors import DataError
from mlflow_ft.plugins import Plugins
from mlflow_ft.preparing import one_pass
from mlflow_ft.registry import Registry
from mlflow_ft.rows import Example, Kind, Row

SAMPLE = 2_000
"""Rows whose length is measured."""
LONG = 0.99
"""The share of the rows that are not longer than a long row."""
CHARACTERS = 4
"""Characters per token, where there is no tokenizer to count with."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Rows that were counted, some of which were measured."""

    kind: Kind
    format: str
    rows: int
    """Rows that can be learned from."""
    bad: int
    """Rows that cannot be read or converted."""
    row_tokens: float
    long_row: int
    columns: frozenset[str]
    measured: int
    """Rows whose length was measured."""


def measure(config: Config, tokenizer: Any, *, plugins: Plugins, registry: Registry) -> Measured:
    """Count every row, and measure the length of a random sample; without a tokenizer, by its characters.

    Raises:
        DataError: a source is missing, broken or of unknown format, or no row can be learned from.
    """
    paths, _ = sources.paths(config.data)
    opened = one_pass.open_sources(paths, config.data, plugins=plugins, registry=registry)
    sample, columns, rows, bad = _Sample(), set[str](), 0, list[Unreadable]()
    for source in opened:
        for row in source.examples(config.data):
            if isinstance(row, Unreadable):
                bad.append(row)
                continue
            rows += 1
            columns.update(map(str, row[0].values))
            sample.see(row)
    if not rows:
        reason = f": {bad[0].place}  {bad[0].reason}" if bad else ""
        raise DataError(
            f"{', '.join(config.data.sources)} has no row to learn from{reason}",
            hint="name a file with rows; `mlflow-ft data check` lists what is wrong with each",
        )
    lengths = sorted(_lengths([example for _, example in sample.rows], tokenizer))
    if not lengths:
        raise DataError(
            f"{', '.join(config.data.sources)}: no row can be tokenised",
            hint="`mlflow-ft data check` lists what is wrong with each",
        )
    return Measured(
        kind=opened[0].record.kind,
        format=opened[0].record.name,
        rows=rows,
        bad=len(bad),
        row_tokens=sum(lengths) / len(lengths),
        long_row=lengths[min(len(lengths) - 1, int(LONG * len(lengths)))],
        columns=frozenset(columns),
        measured=len(lengths),
    )


class _Sample:
    """A uniform sample of rows whose number is not known beforehand (reservoir sampling, algorithm R)."""

    def __init__(self) -> None:
        self.rows: list[tuple[Row, Example]] = []
        self._seen = 0
        self._random = random.Random(0)

    def see(self, row: tuple[Row, Example]) -> None:
        self._seen += 1
        if len(self.rows) < SAMPLE:
            self.rows.append(row)
        elif (place := self._random.randrange(self._seen)) < SAMPLE:
            self.rows[place] = row


def _lengths(examples: Sequence[Example], tokenizer: Any) -> Iterator[int]:
    """Tokens of each row; of a preference, those of its longer conversation."""
    if tokenizer is None:
        for example in examples:
            yield max(1, _characters(example) // CHARACTERS)
        return
    from mlflow_ft.engine.tokens.masking import Encoder

    for row in Encoder(tokenizer, max_length=sys.maxsize).tokenise(examples, offsets=False):
        if isinstance(row, list):
            yield max(part.length for part in row)


def _characters(example: Example) -> int:
    if example.text is not None:
        return len(example.text)
    prompt = sum(len(str(turn.get("content") or "")) for turn in example.messages)
    ends = [sum(len(str(turn.get("content") or "")) for turn in end) for end in (example.chosen, example.rejected)]
    return prompt + max(ends)

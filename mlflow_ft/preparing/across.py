"""The expensive part of a pass over rows on several machines: tokens, proof and checks, in parts of consecutive rows.

Rows are read and written by this process. Of the checks, each part keeps what it has seen on the machine that saw it,
until `gather` makes one finding of all of them.
"""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from mlflow_ft.config.schema import ChecksSection
from mlflow_ft.data.quality import Quality
from mlflow_ft.preparing import proving
from mlflow_ft.preparing.proving import ProvedRow
from mlflow_ft.records import Check
from mlflow_ft.rows import Checked, Example
from mlflow_ft.values import Handle, Machines

if TYPE_CHECKING:
    from mlflow_ft.engine.tokens.masking import Encoder
    from mlflow_ft.engine.tokens.render import MaskError

ROWS = 10_000
"""Rows of a part: seconds of work, and some megabytes."""
AHEAD = 2
"""Parts that are under way, for each that can be worked on at the same time."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a machine must know to work on a part."""

    key: str
    tokenizer: Mapping[str, bytes]
    """The files of the tokenizer."""
    max_length: int
    moment: datetime | None
    checks: Sequence[Check] | None
    settings: ChecksSection


@dataclass(frozen=True, kw_only=True)
class Share:
    """Consecutive rows: what to tokenise, and as what the checks see them, once the tokens are known."""

    examples: Sequence[Example]
    checked: Sequence[Checked | None]
    """None for all but the last part of a row that was split by turns."""


@dataclass(frozen=True, kw_only=True)
class Worked:
    """A part with its results."""

    results: list[ProvedRow | MaskError]
    template: str
    """The chat template if it was extended for rows with tools, else ""."""
    dates: Mapping[str, str]
    quality: Quality | None


def work(recipe: Recipe, part: Share) -> Worked:
    """Tokenise the rows of a part, prove their masks and check them."""
    from mlflow_ft.engine.tokens import clock, tool_text

    encoder = _encoder(_Kept(recipe))
    with clock.held(recipe.moment):
        results = proving.prove(encoder, part.examples)
    quality = None if recipe.checks is None else Quality(recipe.checks, recipe.settings)
    for row, result in zip(part.checked, results, strict=True):
        if quality is not None and row is not None:
            quality.see(with_tokens(row, result, encoder))
    extended = str(encoder.tokenizer.chat_template) if tool_text.taught(encoder.tokenizer) else ""
    return Worked(results=results, template=extended, dates=encoder.dates, quality=quality)


def with_tokens(row: Checked, result: ProvedRow | MaskError, encoder: Encoder) -> Checked:
    """A row as the checks see it, with what only the tokenizer knows."""
    return Checked(
        file=row.file,
        line=row.line,
        index=row.index,
        example=row.example,
        tokens=result.length if isinstance(result, ProvedRow) else 0,
        special=encoder.special,
        max_length=encoder.max_length,
    )


class _Kept:
    """A recipe that is known by its key, for the cache."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    def __hash__(self) -> int:
        return hash(self.recipe.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Kept) and other.recipe.key == self.recipe.key


@lru_cache(maxsize=1)
def _encoder(kept: _Kept) -> Encoder:
    from transformers import AutoTokenizer

    from mlflow_ft.engine.tokens.masking import Encoder

    with tempfile.TemporaryDirectory() as folder:
        for name, content in kept.recipe.tokenizer.items():
            (Path(folder) / name).write_bytes(content)
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    return Encoder(tokenizer, max_length=kept.recipe.max_length)


def _results(worked: Worked) -> Worked:
    return Worked(results=worked.results, template=worked.template, dates=worked.dates, quality=None)


def _quality(worked: Worked) -> Quality | None:
    return worked.quality


class Across:
    """A pass on several machines."""

    def __init__(
        self, machines: Machines, encoder: Encoder, checks: Sequence[Check] | None, settings: ChecksSection
    ) -> None:
        self._machines, self._encoder, self._checks, self._settings = machines, encoder, checks, settings
        self._qualities: list[Handle] = []

    def prove(
        self, batches: Iterator[list[Any]], share_of: Callable[[list[Any]], Share]
    ) -> Generator[tuple[list[Any], list[ProvedRow | MaskError]]]:
        """Every batch with its results, in order."""
        recipe = self._machines.put(self._recipe())
        pending: deque[tuple[list[Any], Handle]] = deque()
        for batch in batches:
            worked = self._machines.run(work, recipe, share_of(batch))
            pending.append((batch, self._machines.run(_results, worked)))
            self._qualities.append(self._machines.run(_quality, worked))
            if len(pending) >= AHEAD * max(1, self._machines.size):
                yield self._finished(*pending.popleft())
        while pending:
            yield self._finished(*pending.popleft())

    def _finished(self, batch: list[Any], handle: Handle) -> tuple[list[Any], list[ProvedRow | MaskError]]:
        [worked] = self._machines.get([handle])
        self._encoder.dates.update(worked.dates)
        if worked.template:  # rows that need tools; all machines extend the template in the same way
            self._encoder.tokenizer.chat_template = worked.template
        return batch, worked.results

    def gather(self, quality: Quality) -> None:
        """Give the checks what was seen."""
        quality.gather(self._qualities, self._machines)

    def _recipe(self) -> Recipe:
        from mlflow_ft.engine.tokens import clock

        with tempfile.TemporaryDirectory() as folder:
            self._encoder.tokenizer.save_pretrained(folder)
            files = {file.name: file.read_bytes() for file in Path(folder).iterdir() if file.is_file()}
        return Recipe(
            key=uuid4().hex,
            tokenizer=files,
            max_length=self._encoder.max_length,
            moment=clock.moment(),
            checks=self._checks,
            settings=self._settings,
        )

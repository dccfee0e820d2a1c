"""Checks for held-out rows among the training rows: a model must not be judged on rows that it may have memorised."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from mlflow_ft import Checked, Finding
from mlflow_ft.builtin.checks.arrays import ranges
from mlflow_ft.builtin.checks.words import excerpt, ngrams, prompt_key, text_key, words

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from mlflow_ft import ChecksSection

    Hashes = npt.NDArray[np.uint64]
    Numbers = npt.NDArray[np.int64]

_EXCERPT = 120
_WORDS = 8
_FEWEST = 10
"""A held-out row with fewer runs of eight words is not compared."""
_COMMON = 50
"""A run of words in more held-out rows than this belongs to the format, not to a row."""
_BATCH = 512
_TABLE_BITS = 22
"""The table of the beginnings of hashes has 4 MiB."""
_BARS = 20


def contamination(held: Sequence[Checked], train: Iterable[Checked], settings: ChecksSection) -> Finding:
    """Training rows with the text or the prompt of a held-out row."""
    known = _Known(held)
    rows: list[int] = []
    examples: list[dict[str, Any]] = []
    leaked: dict[str, set[int]] = {"text": set(), "prompt": set()}
    for row in train:
        match = known.find(row)
        if not match:
            continue
        part, number = match
        rows.append(row.index)
        leaked[part].add(number)
        if len(examples) < settings.max_examples:
            examples.append(_example(row, held[number], f"the {part} of the held-out row"))
    return Finding(
        rows=tuple(rows),
        examples=tuple(examples),
        details={
            "held_out_rows": len(leaked["text"] | leaked["prompt"]),
            "by_text": len(leaked["text"]),
            "by_prompt": len(leaked["prompt"] - leaked["text"]),
        },
    )


class _Known:
    """The held-out rows, by text and by prompt."""

    def __init__(self, held: Sequence[Checked]) -> None:
        self._held = held
        self._texts: dict[int, int] = {}
        self._prompts: dict[int, int] = {}
        for number, row in enumerate(held):
            if (text := text_key(row.text)) is not None:
                self._texts.setdefault(text, number)
            if not row.shares_prompt and (prompt := prompt_key(row.prompt)) is not None:
                self._prompts.setdefault(prompt, number)

    def find(self, row: Checked) -> tuple[str, int] | None:
        """Which part of which held-out row a training row has: its text, or its prompt."""
        if (text := text_key(row.text)) is not None and (number := self._texts.get(text)) is not None:
            return "text", number
        if not self._prompts:
            return None
        if (prompt := prompt_key(row.prompt)) is not None and (number := self._prompts.get(prompt)) is not None:
            return "prompt", number
        return None


def _example(row: Checked, held: Checked, part: str) -> dict[str, Any]:
    message = f"has {part} {held.place}: “{excerpt(row.text, _EXCERPT)}” and “{excerpt(held.text, _EXCERPT)}”"
    return {"file": row.file, "line": row.line, "message": message}


def overlap(held: Sequence[Checked], train: Iterable[Checked], settings: ChecksSection) -> Finding:
    """Training rows that contain most of one held-out row's runs of eight words."""
    import numpy as np

    index, known = _Index(held), _Known(held)
    overlapping: list[tuple[int, float]] = []
    leaked: set[int] = set()
    examples: list[dict[str, Any]] = []
    for row, number, share in index.overlaps(train, settings.overlap):
        if known.find(row):  # reported by the other check
            continue
        overlapping.append((row.index, share))
        leaked.add(number)
        if len(examples) < settings.max_examples:
            examples.append(_example(row, held[number], f"{100 * share:.0f} % of the held-out row"))
    counts, edges = np.histogram([share for _, share in overlapping], _BARS, (0, 1))
    return Finding(
        rows=tuple(number for number, _ in overlapping),
        examples=tuple(examples),
        details={
            "held_out_rows": len(leaked),
            "held_out_rows_compared": index.compared,
            "ignored_phrases": index.ignored,
            "ignored": f"runs of {_WORDS} words that occur in more than {_COMMON} held-out rows are not counted",
            "histogram": {
                "x": "share of the held-out row",
                "edges": [round(float(edge), 2) for edge in edges],
                "counts": counts.tolist(),
            },
        },
    )


def _own(row: Checked) -> str:
    """The text of a held-out row that gives its answer away: all of it, or without the prompt that most rows have."""
    return row.text.removeprefix(row.prompt) if row.shares_prompt else row.text


class _Index:
    """Every run of eight words of the held-out rows, sorted, with the rows that contain it."""

    def __init__(self, held: Sequence[Checked]) -> None:
        import numpy as np

        runs = [np.unique(ngrams(words(_own(row)), _WORDS)) for row in held]
        hashes = np.concatenate([np.empty(0, np.uint64), *runs])
        owners = np.repeat(np.arange(len(runs)), [len(run) for run in runs])
        _, inverse, times = np.unique(hashes, return_inverse=True, return_counts=True)
        own = times[inverse] <= _COMMON
        self.ignored = int((times > _COMMON).sum())
        self._sizes = np.bincount(owners[own], minlength=len(held))
        kept = own & (self._sizes[owners] >= _FEWEST)
        order = np.argsort(hashes[kept], kind="stable")
        self._hashes, self._owners = hashes[kept][order], owners[kept][order]
        self._begins = np.zeros(1 << _TABLE_BITS, np.bool_)
        self._begins[self._beginnings(self._hashes)] = True
        self.compared = int((self._sizes >= _FEWEST).sum())

    def overlaps(self, train: Iterable[Checked], least: float) -> Iterator[tuple[Checked, int, float]]:
        """Every training row that overlaps enough, with the held-out row that it overlaps most and the share."""
        import numpy as np

        rows = iter(train)
        while batch := list(islice(rows, _BATCH)):
            runs = [ngrams(words(row.text), _WORDS) for row in batch]
            places = np.repeat(np.arange(len(batch)), [len(run) for run in runs])
            for place, number, share in self._shares(np.concatenate(runs), places):
                if share >= least:
                    yield batch[place], number, share

    @staticmethod
    def _beginnings(hashes: Hashes) -> Numbers:
        import numpy as np

        return (hashes >> np.uint64(64 - _TABLE_BITS)).astype(np.int64)

    def _shares(self, hashes: Hashes, places: Numbers) -> Iterator[tuple[int, int, float]]:
        """For every row of a batch that shares a run: its place, the most overlapped held-out row, the share."""
        import numpy as np

        likely = np.flatnonzero(self._begins[self._beginnings(hashes)])  # nearly all others need no search
        hashes, places = hashes[likely], places[likely]
        start = np.searchsorted(self._hashes, hashes, "left")
        count = np.searchsorted(self._hashes, hashes, "right") - start
        hit = np.flatnonzero(count)
        if not len(hit):
            return
        _, first = np.unique(places[hit] * len(self._hashes) + start[hit], return_index=True)
        hit = hit[first]  # a run that a row repeats counts once
        owners = self._owners[ranges(start[hit], count[hit])]
        pairs = np.repeat(places[hit], count[hit]) * len(self._sizes) + owners
        pairs, times = np.unique(pairs, return_counts=True)
        place, owner = pairs // len(self._sizes), pairs % len(self._sizes)
        shares = times / self._sizes[owner]
        best = np.lexsort((-shares, place))
        best = best[np.concatenate([[True], np.diff(place[best]) > 0])]
        yield from zip(place[best].tolist(), owner[best].tolist(), shares[best].tolist(), strict=True)

"""The report of the data checks: the pass over the rows, the comparison of both sides, and the rows left out."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlflow_ft.config.schema import Config
from mlflow_ft.data import benchmarks, split, store
from mlflow_ft.data.quality import Quality
from mlflow_ft.plugins import Plugins
from mlflow_ft.preparing.one_pass import LeftOut
from mlflow_ft.registry import Registry, chosen_checks
from mlflow_ft.rows import Checked, Severity
from mlflow_ft.values import CheckResult, Report
from mlflow_ft.values.report import SEVERITIES

if TYPE_CHECKING:
    import numpy

    from mlflow_ft.preparing.prepared import PreparedRows

    Indices = numpy.ndarray[Any, Any]

BY_TEXT = "most rows have the same prompt, so it is on both sides: rows are held out by their whole text"
Removable = Mapping[int, tuple[str, ...]]
"""Row index -> the checks whose fix removes the row."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """One side of the split: the prepared rows, and which of them belong to it."""

    stored: PreparedRows
    indices: Indices
    by_text: bool = False
    """Whether its rows were chosen by their whole texts, as most of them have the same prompt."""

    @property
    def count(self) -> int:
        return len(self.indices)


def full_report(
    config: Config, train: Side, held: Side, *, more: Iterable[CheckResult] = (), registry: Registry, plugins: Plugins
) -> tuple[Report, Removable]:
    """Compare both sides and report it with `more` findings, what the pass found and what was left out."""
    comparing = [check for check in chosen_checks(registry, config.checks.names) if check.compare is not None]
    quality = Quality(comparing, config.checks)
    against = [*_as_checked(held, config), *benchmarks.read(config, plugins=plugins, registry=registry)]
    quality.compare(against, lambda: _as_checked(train, config))
    compared = quality.report(train.stored.read)
    inspected = train.stored.report or Report(rows=train.stored.read, checks=())
    removable: dict[int, tuple[str, ...]] = {}
    for partial in (inspected, compared):
        for index, names in partial.removable().items():
            removable[index] = (*removable.get(index, ()), *names)
    results = [*inspected.checks, *compared.checks, *more]
    results += [*_left_out(train.stored, config), *_unwritten(train.stored, config)]
    results.sort(key=lambda result: (SEVERITIES.index(result.severity), not result.count))
    return Report(rows=train.stored.read, checks=tuple(results)), removable


def _as_checked(side: Side, config: Config) -> Iterator[Checked]:
    """The rows of a side as a check sees them, from disk; for a row split by turns, its longest part."""
    table = side.stored.table.select(["file", "line", "index", "length", "example"])
    longest = side.indices[split.last_of_each(table.column("index").to_numpy()[side.indices])]
    for start in range(0, len(longest), store.BATCH):
        for row in store.take(table, longest[start : start + store.BATCH]).to_pylist():
            yield Checked(
                file=side.stored.files[row["file"]],
                line=row["line"],
                index=row["index"],
                example=store.from_json(row["example"]),
                tokens=row["length"],
                max_length=config.data.max_length,
                shares_prompt=side.by_text,
            )


def _left_out(stored: PreparedRows, config: Config) -> Iterator[CheckResult]:
    """The rows that were left out, as two more checks."""
    yield _result(
        "bad-row",
        "error" if config.data.on_bad_row == "error" else "warn",
        "rows that cannot be read or converted, or whose loss mask cannot be proved",
        stored.bad,
        stored.count,
        config.checks.max_examples,
        remedy="fix these rows, or leave them out with --data.on_bad_row drop",
        fix="leaves these rows out",
    )
    yield _result(
        "nothing-learned",
        "warn",
        "rows with nothing to learn: cut before the answer, or every turn marked as not to learn",
        [row for row in stored.left_out if row.sort == "cut"],
        stored.count,
        config.checks.max_examples,
        remedy=f"raise data.max_length (it is {config.data.max_length}), or remove these rows",
    )


UNWRITTEN = "unwritten-thoughts"
OPENED = "opened-thoughts"
ADVISED = (UNWRITTEN, OPENED)
"""Checks whose remedy is printed with the finding."""


def _unwritten(stored: PreparedRows, config: Config) -> Iterator[CheckResult]:
    """The rows with thoughts in earlier turns that the template leaves out, so they are not learned."""
    import numpy as np

    summary = "the chat template leaves out the thoughts of {} turns; they are not learned"
    lost = stored.table.column("unwritten").to_numpy()
    rows = np.flatnonzero(lost)
    shown = stored.table.select(["file", "line", "unwritten"]).take(rows[: config.checks.max_examples]).to_pylist()
    yield CheckResult(
        name=UNWRITTEN,
        severity="warn",
        summary=summary.format(f"{lost.sum():,}" if len(rows) else "earlier"),
        count=len(rows),
        share=len(rows) / stored.count if stored.count else 0.0,
        examples=tuple(
            {
                "file": stored.files[row["file"]],
                "line": row["line"],
                "message": f"the thoughts of {row['unwritten']} turn{'s' * (row['unwritten'] > 1)} are left out",
            }
            for row in shown
        ),
        details={"turns": int(lost.sum())},
        remedy=DIVIDE if stored.record.kind == "conversation" and config.data.turns == "all" else KEEP,
    )


KEEP = (
    "use a template that keeps them (--data.chat_template); templates read thoughts from `reasoning_content`, as text, "
    "or from <think>"
)
DIVIDE = (
    "make a row of each turn, which keeps its thoughts but takes more tokens (--data.turns each), learn only the last "
    f"turn (--data.turns last), or {KEEP}"
)


def _result(
    name: str,
    severity: Severity,
    summary: str,
    rows: Sequence[LeftOut],
    count: int,
    most: int,
    *,
    remedy: str,
    fix: str = "",
) -> CheckResult:
    return CheckResult(
        name=name,
        severity=severity,
        summary=summary,
        count=len(rows),
        share=len(rows) / count if count else 0.0,
        examples=tuple({"file": row.file, "line": row.line, "message": row.reason} for row in rows[:most]),
        rows=array("q", [row.index for row in rows]),
        remedy=remedy,
        fix=fix,
    )

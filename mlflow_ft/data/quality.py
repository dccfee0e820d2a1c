"""Runs the data checks over the rows as they pass, and keeps their findings small enough to show.

quality = Quality(checks, settings)
for row in rows:
    quality.see(row)
quality.compare(held, train)
report = quality.report(len(rows))
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mlflow_ft.errors import FineTuneError, PluginError
from mlflow_ft.records import Check, Collector, JoiningCollector
from mlflow_ft.rows import Checked, Finding, Place
from mlflow_ft.values import CheckResult, Handle, Machines, Report
from mlflow_ft.values.report import SEVERITIES, json_value

if TYPE_CHECKING:
    from mlflow_ft.config.schema import ChecksSection


class Quality:
    """The checks at work. Feed it every row once and in order, let it compare, then ask for the report."""

    def __init__(self, checks: Sequence[Check], settings: ChecksSection) -> None:
        self._settings = settings
        self._running = [_Running(check, settings) for check in checks]
        self._by_kind: dict[str, list[_Running]] = {}
        for running in self._running:
            for kind in running.check.kinds if not running.check.compare else ():
                self._by_kind.setdefault(kind, []).append(running)

    def see(self, row: Checked) -> None:
        """Show a row to every check of its kind except those that compare."""
        for running in self._by_kind.get(row.example.kind, ()):
            running.see(row)

    def compare(self, held: Sequence[Checked], train: Callable[[], Iterable[Checked]]) -> None:
        """Show the held-out rows, and the training rows once more for each, to the checks that compare."""
        for running in self._running:
            mine = [row for row in held if row.example.kind in running.check.kinds]
            if running.check.compare and mine:
                running.compare(mine, train())

    @property
    def joins(self) -> bool:
        """Whether what the same checks see of later rows can be added (`join`)."""
        return all(isinstance(running.collector, JoiningCollector | None) for running in self._running)

    def join(self, later: Quality) -> None:
        """Add what the same checks have seen of the rows after this one's.

        Raises:
            PluginError: a collector of a plugin cannot be joined.
        """
        for mine, other in zip(self._running, later._running, strict=True):
            mine.join(other)

    def light(self) -> Quality:
        """These checks without the collectors of those that have `across`."""
        light = Quality([], self._settings)
        light._running = [running.light() for running in self._running]
        return light

    def collector(self, name: str) -> Collector | None:
        """The collector of a check; None if the check has none, or has seen no row of its kind."""
        return next(running.collector for running in self._running if running.check.name == name)

    def gather(self, parts: Sequence[Handle], machines: Machines) -> None:
        """Take over what the same checks have seen of the rows after this one's, in parts on several machines.

        Raises:
            PluginError: a collector of a plugin cannot be joined.
        """
        apart: dict[str, list[Handle]] = {}
        for part in parts:
            [later] = machines.get([machines.run(Quality.light, part)])
            self.join(later)
            for other in later._running:
                if other.ran and other.check.across is not None:
                    collector = machines.run(Quality.collector, part, other.check.name)
                    apart.setdefault(other.check.name, []).append(collector)
        for running in self._running:
            if running.check.name in apart:
                running.across(apart[running.check.name], machines)

    def report(self, rows: int) -> Report:
        """The findings of all checks among this many rows; checks that saw no row of their kind are left out."""
        results = [running.result(rows) for running in self._running if running.ran]
        results.sort(key=lambda result: (SEVERITIES.index(result.severity), not result.count))
        return Report(rows=rows, checks=tuple(results))


class _Running:
    """A check and its findings so far."""

    def __init__(self, check: Check, settings: ChecksSection) -> None:
        self.check = check
        self.ran = False
        self._settings = settings
        self.collector: Collector | None = None
        self._finding: Finding | None = None
        self._rows = array("q")
        self._examples: list[Mapping[str, Any]] = []

    def see(self, row: Checked) -> None:
        self.ran = True
        try:
            if self.check.inspect is not None:
                self._note(row, self.check.inspect(row))
            elif self.check.collect is not None:
                self.collector = self.collector or self.check.collect(self._settings)
                self.collector.see(row)
        except FineTuneError:
            raise
        except Exception as error:  # a plugin may raise anything
            raise self._broken(error, row) from error

    def light(self) -> _Running:
        """A copy without its collector if that can stay where it is."""
        copy = _Running(self.check, self._settings)
        vars(copy).update(vars(self))
        if self.check.across is not None:
            copy.collector = None
        return copy

    def join(self, later: _Running) -> None:
        """Add what was seen of later rows."""
        self.ran |= later.ran
        self._rows.extend(later._rows)
        self._examples.extend(later._examples)
        if later.collector is None:
            return
        if not isinstance(later.collector, JoiningCollector):
            raise PluginError(
                f"the data check {self.check.name} cannot see rows on several machines: its collector has no `join`",
                hint="leave it out with checks.names, or set data.engine to local",
            )
        if self.collector is None:
            self.collector = later.collector
        elif isinstance(self.collector, JoiningCollector):
            self.collector.join(later.collector)

    def across(self, parts: Sequence[Handle], machines: Machines) -> None:
        """Make the finding from collectors on several machines."""
        assert self.check.across is not None
        self._finding = _finding(self.check.across(parts, machines, self._settings))

    def _note(self, row: Checked, message: str | None) -> None:
        if message is None:
            return
        self._rows.append(row.index)
        if len(self._examples) < self._settings.max_examples:
            self._examples.append({"file": row.file, "line": row.line, "message": message})

    def compare(self, held: Sequence[Checked], train: Iterable[Checked]) -> None:
        compare = self.check.compare
        assert compare is not None
        self.ran = True
        watched = _Watched(row for row in train if row.example.kind in self.check.kinds)
        try:
            self._finding = _finding(compare(held, watched, self._settings))
        except FineTuneError:
            raise
        except Exception as error:  # a plugin may raise anything
            if error is watched.failed:
                raise
            raise self._broken(error, watched.last) from error

    def result(self, rows: int) -> CheckResult:
        finding, check = self._found(), self.check
        count = len(finding.rows) if finding.count is None else finding.count
        removable = finding.rows if finding.removable is None else finding.removable
        return CheckResult(
            name=check.name,
            severity=finding.severity or check.severity,
            summary=check.summary,
            count=count,
            share=count / rows if rows else 0.0,
            examples=tuple(json_value(example) for example in finding.examples[: self._settings.max_examples]),
            details=json_value(finding.details),
            remedy=finding.remedy or check.remedy,
            fix=check.fix,
            rows=array("q", finding.rows),
            removable=array("q", removable if check.fix else ()),
        )

    def _found(self) -> Finding:
        if self._finding is not None:
            return self._finding
        if self.collector is None:
            return Finding(rows=tuple(self._rows), examples=tuple(self._examples))
        try:
            return _finding(self.collector.found())
        except FineTuneError:
            raise
        except Exception as error:  # a plugin may raise anything
            raise self._broken(error, None) from error

    def _broken(self, error: Exception, row: Place | None) -> PluginError:
        where = f" at {row.place}" if row else ""
        return PluginError(
            f"the data check {self.check.name} raised {type(error).__name__}{where}: {error}",
            hint="leave it out with checks.names, or fix the plugin that provides it",
        )


class _Watched:
    """The training rows, with the last one taken and the error that their source raised."""

    def __init__(self, rows: Iterable[Checked]) -> None:
        self._rows = rows
        self.last: Checked | None = None
        self.failed: Exception | None = None

    def __iter__(self) -> Iterator[Checked]:
        rows = iter(self._rows)
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            except Exception as error:
                self.failed = error
                raise
            self.last = row
            yield row


def _finding(value: Any) -> Finding:
    if not isinstance(value, Finding):
        raise TypeError(f"it returned {value!r}, which is not a Finding")
    return value

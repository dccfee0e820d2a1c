"""Checks what comes from a plugin, at the moment it comes: an error names the plugin, the record and the function."""

from __future__ import annotations

import dataclasses
import errno
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, TypeVar, cast

from mlflow_ft.errors import FineTuneError, PluginError, brief, out_of_memory
from mlflow_ft.plugins.faults import place
from mlflow_ft.records import Record, Verdict
from mlflow_ft.rows import Example
from mlflow_ft.values import Advice, Score, Trained

RecordT = TypeVar("RecordT", bound=Record)


class PluginFaultError(PluginError):
    """A plugin's function raised an error that no user can have caused, or returned something else than it must."""


def fault(called: str, what: str) -> PluginFaultError:
    """The error for what a plugin did wrong; `called` names the plugin, and its record if it was in one."""
    return PluginFaultError(
        f"{called}: {what}", hint="fix or update the plugin, or choose others with MLFLOW_FT_PLUGINS=name,name"
    )


def _none_or_text(value: Any) -> str | None:
    return None if value is None or isinstance(value, str) else "a sentence or None"


def _trained(value: Any) -> str | None:
    if not isinstance(value, Trained):
        return "a Trained"
    if value.adapter is None and not value.model.is_dir():
        return f"a Trained whose folder has adapter/ or model/; {value.folder} has neither"
    return None


def _scores(value: Any) -> str | None:
    if not isinstance(value, (list, tuple)) or not all(isinstance(score, Score) for score in value):
        return "a list of Score"
    for score in value:
        if isinstance(score.value, bool) or not isinstance(score.value, (int, float)):
            return f"scores whose values are numbers; {score.name} is {score.value!r}"
    names = [score.name for score in value]
    twice = sorted({name for name in names if names.count(name) > 1})
    return f"each score once; {twice[0]} comes twice" if twice else None


def _verdicts(value: Any) -> str | None:
    right = isinstance(value, (list, tuple)) and all(isinstance(verdict, Verdict) for verdict in value)
    return None if right else "a list of Verdict"


def _of(kind: type, name: str) -> Callable[[Any], str | None]:
    return lambda value: None if isinstance(value, kind) else name


def _anything(value: Any) -> str | None:
    return None


def _command(value: Any) -> str | None:
    import click

    return None if isinstance(value, click.Command) else "a click command"


_TRUTH = _of(bool, "True or False")
_OPENED = _of(AbstractContextManager, "a context manager")

DOORS: Mapping[str, Mapping[str, Callable[[Any], str | None]]] = {
    "trainers": {"train": _trained, "refuses": _none_or_text},
    "adapters": {"configure": _anything, "refuses": _none_or_text},
    "evaluators": {"evaluate": _scores, "applies": _TRUTH, "refuses": _none_or_text},
    "packagers": {"package": _anything, "applies": _TRUTH, "rehearse": _anything},
    "exporters": {"export": _anything, "opened": _OPENED, "ready": _none_or_text},
    "gates": {"judge": _verdicts},
    "launchers": {"launch": _of(str, "what rank 0 returned"), "refuses": _none_or_text},
    "engines": {"machines": _OPENED, "refuses": _none_or_text},
    "serving_engines": {"serve": _anything, "refuses": _none_or_text},
    "plan_rules": {"applies": _TRUTH, "advise": _of(Advice, "an Advice")},
    "commands": {"load": _command},
    "formats": {"convert": _of(Example, "an Example")},
}
"""By kind and field: what is missing from a value, as "it must return ..."; None where it is right.

Checks and rewards are watched where they are called, since they are given many rows."""
CONTRACT: Mapping[str, tuple[type[BaseException], ...]] = {"formats": (ValueError, RecursionError)}
"""Errors by which a function of a kind says something; the caller expects them."""


@dataclasses.dataclass(frozen=True)
class Door:
    """A function of a plugin's record, which is called through this."""

    function: Callable[..., Any]
    provider: str
    kind: str
    record: str
    field: str

    @property
    def called(self) -> str:
        """`plugin judge, evaluator 'rubric'`."""
        return f"plugin {self.provider}, {self.kind.replace('_', ' ').removesuffix('s')} {self.record!r}"

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        try:
            value = self.function(*arguments, **named)
        except CONTRACT.get(self.kind, ()):
            raise
        except (Exception, SystemExit) as error:
            if of_the_machine(error):
                raise
            raise self._fault(f"{self.field} raised {brief(error, with_type=True)}{place(error)}") from error
        if missing := DOORS[self.kind][self.field](value):
            shown = repr(value)
            raise self._fault(f"{self.field} returned {shown[:80]}; it must return {missing}")
        return value

    def _fault(self, what: str) -> PluginFaultError:
        return fault(self.called, what)


def of_the_machine(error: BaseException) -> bool:
    """Whether an error is already in the user's terms, or says that memory or disk is full: it has its own remedy."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return isinstance(error, FineTuneError) or full or out_of_memory(error) is not None


def guarded(record: RecordT, *, provider: str, kind: str) -> RecordT:
    """The record, with each of its functions behind a door."""
    functions = {
        field: Door(getattr(record, field), provider, kind, record.name, field)
        for field in DOORS.get(kind, ())
        if getattr(record, field) is not None
    }
    replaced: RecordT = dataclasses.replace(cast(Any, record), **functions)
    return replaced

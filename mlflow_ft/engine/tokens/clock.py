"""The one clock of a run that chat templates are given: what is prepared, kept, checked and judged has one date.

    with clock.held(datetime(2026, 11, 28)) as told:
        tokenizer.apply_chat_template(...)      # {{ strftime_now('%d %b %Y') }} writes 28 Nov 2026
    told.asked                                  # {"%d %b %Y": "28 Nov 2026"}

transformers gives templates one function that reads the time, `strftime_now`, and no way to hand it another. Its
`datetime` is replaced here by one that can be held: for the process, and in each thread and context by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime, time, timedelta
from typing import TYPE_CHECKING, Any

from transformers.utils import chat_template_utils

from mlflow_ft.engine.tokens import template_code
from mlflow_ft.errors import ModelError

if TYPE_CHECKING:
    from mlflow_ft.config.schema import Config

PROBE = datetime(2001, 2, 3, 4, 5, 6, 7)  # noqa: DTZ001  # templates are told local time, without a zone


@dataclass(frozen=True, kw_only=True)
class Clock:
    """A moment at which the clock stands still, and what templates have asked it."""

    moment: datetime
    """Local time, without a zone, as transformers tells it."""
    asked: dict[str, str] = field(default_factory=dict)
    """By format what was told."""

    def strftime(self, wanted: str) -> str:
        """The moment as a template asks for it."""
        told = self.asked[wanted] = self.moment.strftime(wanted)
        return told


_held: ContextVar[Clock | None] = ContextVar("mlflow_ft_clock", default=None)


_NAMES = vars(chat_template_utils)
"""Of transformers' module, where `datetime` is read by nothing but `strftime_now`."""
_going: list[Any] = [_NAMES["datetime"]]
"""The clocks that go on, the last one counts: transformers' own, or what others put in its place."""


class _Told:
    """Stands in the place of `datetime` in transformers' module of chat templates."""

    @staticmethod
    def now() -> Any:
        return _held.get() or _going[-1].now()


_NAMES["datetime"] = _Told


@contextmanager
def held(moment: datetime | None) -> Iterator[Clock]:
    """Hold the clock that templates are given, in this thread; None lets it go on. What they ask is in `asked`.

    Raises:
        ModelError: this release of transformers tells templates the time in another way.
    """
    clock = Clock(moment=moment or PROBE)
    token = _held.set(clock if moment else None)
    try:
        with _in_place():
            if moment:
                _check(moment)
                clock.asked.clear()
            yield clock
    finally:
        _held.reset(token)


@contextmanager
def _in_place() -> Iterator[None]:
    """Others may have put a clock of their own into transformers' module; it goes on beneath ours."""
    found = _NAMES["datetime"]
    if found is _Told:
        yield
        return
    _going.append(found)
    _NAMES["datetime"] = _Told
    try:
        yield
    finally:
        _going.remove(found)
        _NAMES["datetime"] = found


def _check(moment: datetime) -> None:
    wanted = template_code.ANY_FORMAT
    render: Any = chat_template_utils.render_jinja_template  # its annotations leave out what it returns
    template = f"{{{{ {template_code.CLOCK}('{wanted}') }}}}"
    [[told], _] = render([[{"role": "user", "content": ""}]], chat_template=template)
    if told != moment.strftime(wanted):
        raise ModelError(
            "this release of transformers does not allow fixing the time that chat templates see",
            hint="install a release that meets mlflow-ft's requirements",
        )


@contextmanager
def listening() -> Iterator[Mapping[str, str]]:
    """What templates ask the held clock inside, by format; nothing where none is held."""
    outer = _held.get()
    if outer is None:
        yield {}
        return
    token = _held.set(inner := Clock(moment=outer.moment))
    try:
        yield inner.asked
    finally:
        _held.reset(token)
        outer.asked.update(inner.asked)


def current() -> datetime:
    """The moment that templates would be told now."""
    found = _NAMES["datetime"]
    going: datetime = (_going[-1] if found is _Told else found).now()
    return moment() or going


def moment() -> datetime | None:
    """The moment at which the clock is held; None where it goes on."""
    clock = _held.get()
    return clock.moment if clock else None


def moved(at: datetime) -> datetime:
    """A later moment that every usual format writes otherwise."""
    parts = ("%Y", "%y", "%m", "%d", "%a", "%j", "%H", "%I", "%M", "%S", "%p", "%f")
    shift = timedelta(days=366, minutes=7, seconds=11, microseconds=13)
    later = (at + timedelta(hours=hours) + shift for hours in range(24 * 400))
    return next(one for one in later if all(one.strftime(part) != at.strftime(part) for part in parts))


def of_run(config: Config, now: datetime) -> datetime:
    """The clock of a run: the day that `data.date` names, else the moment at which it starts."""
    return datetime.combine(config.data.date, time()) if config.data.date else now.replace(tzinfo=None)


def templates(tokenizer: Any) -> list[str]:
    """The tokenizer's chat templates; most have one."""
    given = tokenizer.chat_template
    return [str(one) for one in (given.values() if isinstance(given, Mapping) else [given]) if one]


def told_to(tokenizer: Any, at: datetime) -> dict[str, str]:
    """What a clock tells the tokenizer's templates, by each format that they may ask for."""
    formats = {one for template in templates(tokenizer) for one in template_code.read(template).formats}
    return {one: at.strftime(one) for one in sorted(formats)}

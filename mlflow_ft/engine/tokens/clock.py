"""Fix the time that chat templates see, so that everything in a run is rendered with the same date.

    with clock.held(datetime(2026, 11, 28)) as fixed:
        tokenizer.apply_chat_template(...)      # {{ strftime_now('%d %b %Y') }} writes 28 Nov 2026
    fixed.asked                                 # {"%d %b %Y": "28 Nov 2026"}

Templates read the time through `strftime_now` of transformers, which cannot be replaced. The `datetime` that it uses is
replaced here, for the whole process, by one that can be fixed in each thread and context separately.
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

PROBE = datetime(2001, 2, 3, 4, 5, 6, 7)  # noqa: DTZ001  # templates get local time, without a zone


@dataclass(frozen=True, kw_only=True)
class Clock:
    """A fixed time, and which formats of it templates have used."""

    moment: datetime
    """Local time, without a zone, as in transformers."""
    asked: dict[str, str] = field(default_factory=dict)
    """For each format used, the text that the template got."""

    def strftime(self, wanted: str) -> str:
        """The time in a template's format."""
        text = self.asked[wanted] = self.moment.strftime(wanted)
        return text


_held: ContextVar[Clock | None] = ContextVar("mlflow_ft_clock", default=None)


_NAMES = vars(chat_template_utils)
"""Names in transformers' module, where only `strftime_now` uses `datetime`."""
_going: list[Any] = [_NAMES["datetime"]]
"""Running clocks; the last one is used: transformers' own, or what others have put in its place."""


class _Fixed:
    """Replaces `datetime` in transformers' module of chat templates."""

    @staticmethod
    def now() -> Any:
        return _held.get() or _going[-1].now()


_NAMES["datetime"] = _Fixed


@contextmanager
def held(moment: datetime | None) -> Iterator[Clock]:
    """Fix the time that templates see, in this thread; with None it keeps running. `asked` has the formats used.

    Raises:
        ModelError: this release of transformers gives templates the time in another way.
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
    """Other code may have replaced transformers' clock; it keeps running beneath ours."""
    installed = _NAMES["datetime"]
    if installed is _Fixed:
        yield
        return
    _going.append(installed)
    _NAMES["datetime"] = _Fixed
    try:
        yield
    finally:
        _going.remove(installed)
        _NAMES["datetime"] = installed


def _check(moment: datetime) -> None:
    wanted = template_code.ANY_FORMAT
    render: Any = chat_template_utils.render_jinja_template  # its annotations omit what it returns
    template = f"{{{{ {template_code.CLOCK}('{wanted}') }}}}"
    [[text], _] = render([[{"role": "user", "content": ""}]], chat_template=template)
    if text != moment.strftime(wanted):
        raise ModelError(
            "this release of transformers does not allow fixing the time that chat templates see",
            hint="install a release that meets mlflow-ft's requirements",
        )


@contextmanager
def listening() -> Iterator[Mapping[str, str]]:
    """What templates read from the fixed clock inside, by format; empty if the time is not fixed."""
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
    """The time that templates would see now."""
    installed = _NAMES["datetime"]
    going: datetime = (_going[-1] if installed is _Fixed else installed).now()
    return moment() or going


def moment() -> datetime | None:
    """The fixed time; None if the clock is running."""
    clock = _held.get()
    return clock.moment if clock else None


def moved(at: datetime) -> datetime:
    """A later time that differs in every usual format."""
    parts = ("%Y", "%y", "%m", "%d", "%a", "%j", "%H", "%I", "%M", "%S", "%p", "%f")
    shift = timedelta(days=366, minutes=7, seconds=11, microseconds=13)
    later = (at + timedelta(hours=hours) + shift for hours in range(24 * 400))
    return next(
        candidate for candidate in later if all(candidate.strftime(part) != at.strftime(part) for part in parts)
    )


def of_run(config: Config, now: datetime) -> datetime:
    """The time of a run: the day in `data.date`, else the time at which it starts."""
    return datetime.combine(config.data.date, time()) if config.data.date else now.replace(tzinfo=None)


def templates(tokenizer: Any) -> list[str]:
    """The tokenizer's chat templates; most have one."""
    source = tokenizer.chat_template
    return [str(template) for template in (source.values() if isinstance(source, Mapping) else [source]) if template]


def told_to(tokenizer: Any, at: datetime) -> dict[str, str]:
    """The time `at` in each format that the tokenizer's templates may use."""
    formats = {wanted for template in templates(tokenizer) for wanted in template_code.read(template).formats}
    return {wanted: at.strftime(wanted) for wanted in sorted(formats)}

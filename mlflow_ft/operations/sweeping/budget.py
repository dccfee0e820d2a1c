"""How long a sweep goes on: a number of trials, or a time after which no further trial begins."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mlflow_ft.errors import ConfigError

DEFAULT = "20"
UNITS = {"m": 60.0, "min": 60.0, "h": 3600.0}
EXAMPLE = "write a number of trials (20), minutes (90m) or hours (1.5h)"


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Exactly one of the two is set."""

    trials: int | None = None
    seconds: float | None = None

    def is_left(self, *, trials: int, seconds: float) -> bool:
        """Whether another trial may begin, after so many trials and so many seconds of work."""
        return trials < self.trials if self.trials is not None else seconds < (self.seconds or 0)

    def __str__(self) -> str:
        return f"{self.trials} trials" if self.trials is not None else f"{(self.seconds or 0) / 60:g} minutes"


def read_budget(text: str | None) -> Budget:
    """The budget in `20`, `90m` or `1.5h`.

    Raises:
        ConfigError: it is none of these, or not above 0.
    """
    written = (text or DEFAULT).strip().lower()
    if written.isdecimal() and int(written):
        return Budget(trials=int(written))
    duration = re.fullmatch(r"(\d+(?:\.\d+)?) ?(m|min|h)", written)
    if duration and float(duration[1]):
        return Budget(seconds=float(duration[1]) * UNITS[duration[2]])
    raise ConfigError(f"--budget: {text!r} is not a budget", hint=EXAMPLE)

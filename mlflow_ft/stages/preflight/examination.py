"""Runs checks one after the other and keeps what each of them found, so that all problems are reported at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from mlflow_ft.config.schema import Config
from mlflow_ft.errors import ConfigError, FineTuneError, Problem
from mlflow_ft.values.inspected import Caution, Inspected

Check = Callable[[], "str | Caution"]
"""Describes in a few words what is right; raises a FineTuneError if something is wrong."""
OF_ONE_CHECK = 5
"""At most so many problems of one check (missing files) are listed."""


class Examination:
    """The checks before a run, and their outcome.

    >>> examination = Examination(Config(method="lora"))
    >>> examination.check("a number", lambda: "42")
    True
    >>> examination.inspected[0].state
    'ok'
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.inspected: list[Inspected] = []
        self._errors: list[FineTuneError] = []
        self._problems: list[Problem] = []

    def check(self, name: str, call: Check, *, setting: str = "") -> bool:
        """Run one check; return False if it found a problem. `setting` is the setting that it is about.

        A check without a `name` is listed only if it finds something.
        """
        try:
            told = call()
        except FineTuneError as error:
            self._note(name or setting, setting, error)
            return False
        if isinstance(told, Caution):
            state = Inspected(check=name or setting, state="warning", detail=told.message, remedy=told.remedy)
            self.inspected.append(state)
        elif name:
            self.inspected.append(Inspected(check=name, state="ok", detail=told))
        return True

    def _note(self, name: str, setting: str, error: FineTuneError) -> None:
        place = self._place(setting) if setting else name
        inside = [str(problem) for problem in error.problems[:OF_ONE_CHECK]]
        more = [f"and {len(error.problems) - OF_ONE_CHECK} more"] if len(error.problems) > OF_ONE_CHECK else []
        message = f"{error.message}: {'; '.join([*inside, *more])}" if inside else error.message
        self.inspected.append(Inspected(check=name, state="problem", detail=message, remedy=error.hint))
        self._errors.append(error)
        self._problems.append(Problem(place=place, message=message, hint=error.hint))

    def _place(self, setting: str) -> str:
        """Where a setting was given."""
        origin = self.config.origins.get(setting)
        if origin is None:
            return f"{setting} (default)"
        return origin if origin.startswith("--") else f"{origin}  {setting}"

    @property
    def cautions(self) -> Iterator[Inspected]:
        """What the user should know, although the run may begin."""
        return (entry for entry in self.inspected if entry.state == "warning")

    @property
    def refused(self) -> FineTuneError | None:
        """One error for all problems; None if there are none."""
        if len(self._errors) < 2:
            return self._errors[0] if self._errors else None
        return ConfigError(f"{len(self._errors)} problems; no run was opened", problems=self._problems)

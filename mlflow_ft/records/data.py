"""What plugins return to read, check and score rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from mlflow_ft.rows import Checked, Example, Finding, Kind, Severity, Task

if TYPE_CHECKING:
    from pathlib import Path

    from mlflow_ft.config.schema import ChecksSection, Config
    from mlflow_ft.values import Data, Handle, Machines, Score, Subject


@dataclass(frozen=True, kw_only=True)
class DataFormat:
    """A format of rows, and how to convert such a row to an `Example`.

    `convert` takes the row's columns and raises `ValueError` with one sentence where the row does not have this format;
    the caller adds file and line. `columns` are those that a row must have.
    """

    name: str
    summary: str
    columns: tuple[str, ...]
    """The columns that a row must have."""
    convert: Callable[[Mapping[str, Any]], Example]
    """Called once for each row."""
    kind: Kind = "conversation"
    """The kind of every example that `convert` returns."""


class Collector(Protocol):
    """A check over all rows: it sees each once, in order, and returns its finding at the end."""

    def see(self, row: Checked) -> None:
        """Process one row."""

    def found(self) -> Finding:
        """The finding over all rows."""


@runtime_checkable
class JoiningCollector(Collector, Protocol):
    """A collector that can be one of several, each of which has seen a part of the rows."""

    def join(self, later: Any) -> None:
        """Add what a collector of the same class has seen, of the rows after this one's."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """A check of the data before training. It has one of three forms.

    `inspect` takes a row and returns what is wrong with it in a few words, or None. `collect` makes a collector, which
    sees every row. `compare` takes the held-out rows (including those of benchmark files) and the training rows.
    """

    name: str
    summary: str
    severity: Severity = "warn"
    """How bad a finding is; `data.fail_on` says from which severity on no training begins."""
    inspect: Callable[[Checked], str | None] | None = None
    collect: Callable[[ChecksSection], Collector] | None = None
    compare: Callable[[Sequence[Checked], Iterable[Checked], ChecksSection], Finding] | None = None
    kinds: tuple[Kind, ...] = ("conversation", "text", "preference", "unpaired", "prompt")
    """The kinds of rows that it can judge."""
    across: Callable[[Sequence[Handle], Machines, ChecksSection], Finding] | None = None
    """The finding from handles of collectors that have seen consecutive rows on several machines, where they hold too
    much of each row to be joined (`JoiningCollector`) on one."""
    fix: str = ""
    """What `prepare --fix` does about it ("leaves these rows out"); "" where no fix is safe."""
    remedy: str = ""
    """What the user can do, in a few words."""


@dataclass(frozen=True, kw_only=True)
class Evaluator:
    """Scores a model on held-out rows. It is called once for the base model and once for the tuned one.

    `subject.answers` are generated, and `subject.losses` computed, on first access, once for all evaluators.
    `applies` says whether the evaluator applies to the held-out data; then it runs when `evaluation.evaluators` is
    not given.

    One that measures on rows of its own, such as a benchmark's, sets `own_rows`, and each `Score.digest`.
    """

    name: str
    summary: str
    evaluate: Callable[[Subject], Sequence[Score]]
    """Returns the scores of one model."""
    applies: Callable[[Data], bool] = lambda data: True
    task: Task = "generate"
    """Which models it evaluates: those that generate, or those that score."""
    scores: tuple[str, ...] = ()
    """The names of the scores that it returns; `reward/*` is any that begins so. Before a sweep begins, it refuses an
    objective that no evaluator returns. Empty: the names are known only after it has run."""
    lower_is_better: tuple[str, ...] = ()
    """Those of its scores that are better when they are lower; of others higher values are better, but for names that
    end in `loss` or `perplexity`. A score can say so itself (`Score.lower_is_better`), where it is not known before."""
    own_rows: bool = False
    """It measures on rows of its own. Then it is not run on guard sets, and not again when a promotion scores the
    champion on other held-out rows: the scores of the champion's run are compared."""
    refuses: Callable[[Config], str | None] = lambda config: None
    """Why it cannot run with these settings, and a remedy, in a sentence; None where it can. Called before anything is
    loaded, for each evaluator that would run if it applies to the data."""


@dataclass(frozen=True, kw_only=True)
class GuardSet:
    """Ready rows that training must not make worse, for `evaluation.guards: {general: NAME}`.

    The evaluators that apply to the rows score them; those of `prompt` rows see their other columns in
    `Answer.columns`, and can check answers by them.
    """

    name: str
    summary: str
    path: Path
    """A file of rows, or a folder of such files."""
    licence: str = ""


@dataclass(frozen=True, kw_only=True)
class Reward:
    """A reward function: how good sampled answers are, for methods that learn from sampled answers.

    `score` gets lists with one item per answer: `prompts` (lists of messages), `completions` (lists with the
    assistant's message), and by name the other columns of the prompts' rows. It returns a number for each answer, or
    None where it does not apply. TRL's reward functions have this form.
    """

    name: str
    summary: str
    score: Callable[..., Sequence[float | None]]
    """Called with the answers of a step."""

"""What plugins return to keep finished models, and to judge them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow_ft.candidacy import Candidacy
    from mlflow_ft.config.gates import Gates
    from mlflow_ft.values import Form, Job, Trained


@dataclass(frozen=True, kw_only=True)
class Packager:
    """A form of the trained model that is kept and registered: its adapter, the merged model.

    `package` writes a self-contained folder and returns nothing; the stage compares the folder's model with the
    trained one, adds the card and the manifest, logs it and registers it as `NAME` plus `suffix`.

    `rehearse` writes what it can of such a folder before training, without trained weights, and raises what `package`
    would raise: `Trained` then holds the initial adapter, or the configuration of a model without its weights. Where
    it is None, the form is not rehearsed.
    """

    name: str
    summary: str
    package: Callable[[Job, Trained, Path], None]
    """Called after the evaluation."""
    applies: Callable[[Job, Trained], bool] = lambda job, trained: True
    """Whether a trained model can have this form."""
    suffix: str = ""
    """No two packagers of a run may have the same."""
    rehearse: Callable[[Job, Trained, Path], None] | None = None


@dataclass(frozen=True, kw_only=True)
class Exporter:
    """A further form of the whole model (merged, or fully tuned): in fewer bits, or for another program.

    `export` reads the folder of the whole model, in transformers' format with its tokenizer, and writes another
    self-contained folder. `opened` loads that folder with the program that will run it, to compare it with the trained
    model before anything is logged; it is a context manager that releases the model on exit.
    """

    name: str
    summary: str
    export: Callable[[Path, Path], None]
    opened: Callable[[Path], AbstractContextManager[Form]]
    ready: Callable[[Path | None], str | None] = lambda folder: None
    """Why the export is not possible here: a tool is not installed, or does not support the model (the folder holds
    its config and tokenizer; None where they are not known yet). Called before the run costs anything."""
    max_kl: float = 0.1
    """Largest mean KL divergence per token (nats) from the trained model that its rounding may cause."""
    min_top1: float = 0.7
    """Smallest share of tokens on which it must agree with the trained model."""
    suffix: str = ""
    """Registered as `NAME` plus this, as a model that MLflow serves; logged as files of the run where it is empty."""
    grid: str = ""
    """The `model.quantize` that uses the same rounding. A model merged into a base dequantised from this grid would
    snap back to it and lose the adapter, so the export uses the merge into the original weights instead."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A gate's decision on one subject, in words for people and in numbers for programs."""

    passed: bool | None
    """None: the gate abstains, since it does not apply to this model."""
    found: str
    """What the evidence says: `0.91`, `12 days`, `no such score`; why the gate abstains."""
    wanted: str
    """What passes: `at least 0.9`."""
    subject: str = ""
    """Which of several things was judged: the name of a score."""
    numbers: Mapping[str, float] = field(default_factory=dict)
    """The same as numbers, kept with the decision."""

    @classmethod
    def abstain(cls, why: str, *, subject: str = "") -> Verdict:
        """A verdict that neither passes nor fails; shown with the reason."""
        return cls(passed=None, found=why, wanted="", subject=subject)


@dataclass(frozen=True, kw_only=True)
class Gate:
    """A condition that a version must meet before an alias is moved to it.

    `judge` gets the evidence about the version and about the present champion, and the settings of the gates. It
    returns a verdict for each subject; where it does not apply, it abstains (`Verdict.abstain`, or no verdict). It
    changes nothing. A `FineTuneError` that it raises counts as a failed verdict.
    """

    name: str
    summary: str
    judge: Callable[[Candidacy, Gates], Sequence[Verdict]]
    """Called once for each promotion."""
    options: tuple[str, ...] = ()
    """The keys that it reads under `options` of the gates file; any other is refused. `limits.high` is `high` in the
    mapping `limits`, and `limits.*` is any key in it."""
    always: bool = False
    """Applies even if `names` of the gates file leaves it out; it can only be waived, by name and with a reason."""

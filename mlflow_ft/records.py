"""What plugins return: small frozen records that name a thing, explain it and hold the function that does it.

A record is cheap to make. Its function imports torch, transformers or peft when it is called, never before:

    def _train(job, data, model):
        from mlflow_ft.engine import sft

        return sft.train(job, data, model)

    Trainer(name="my-sft", summary="SFT with my defaults", train=_train, defaults={"training.learning_rate": 1e-4})
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mlflow_ft.rows import Checked, Example, Finding, Kind, Severity, Task

if TYPE_CHECKING:
    from mlflow_ft.candidacy import Candidacy
    from mlflow_ft.config.gates import Gates
    from mlflow_ft.config.schema import ChecksSection, Config
    from mlflow_ft.values import Data, Form, Job, Model, Score, Subject, Trained

    # A value from another library (a peft config, a torch module): this module must not import it.
    Foreign = Any


@dataclass(frozen=True, kw_only=True)
class DataFormat:
    """A shape of rows, and how a row of it becomes an `Example`.

    `convert` takes the row's columns and raises `ValueError` with one sentence where the row is not of this shape;
    the caller adds file and line. `columns` are those that a row must have.
    """

    name: str
    summary: str
    columns: tuple[str, ...]
    convert: Callable[[Mapping[str, Any]], Example]
    kind: Kind = "conversation"


class Collector(Protocol):
    """A check over all rows: it sees each once, in order, and tells at the end what it found."""

    def see(self, row: Checked) -> None:
        """Take note of a row."""

    def found(self) -> Finding:
        """What all rows together say."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """A look at the data before training. It has one of three forms.

    `inspect` takes a row and returns what is wrong with it in a few words, or None. `collect` makes a collector, which
    sees every row. `compare` takes the held-out rows (those of benchmark files among them) and the training rows.
    """

    name: str
    summary: str
    severity: Severity = "warn"
    inspect: Callable[[Checked], str | None] | None = None
    collect: Callable[[ChecksSection], Collector] | None = None
    compare: Callable[[Sequence[Checked], Iterable[Checked], ChecksSection], Finding] | None = None
    kinds: tuple[Kind, ...] = ("conversation", "text", "preference", "unpaired", "prompt")
    fix: str = ""
    """What `prepare --fix` does about it, in words (it leaves these rows out); "" where no fix is safe."""
    remedy: str = ""


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """A method: what is minimised, and the defaults that make the method what it is.

    `train` gets the frozen job, data and model, trains, and returns where the result lies. `defaults` are config
    values by full path; they stand above the schema's defaults and below the user's file and command line.
    `example` is one line a user can type.
    """

    name: str
    summary: str
    train: Callable[[Job, Data, Model], Trained]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    paper: str = ""
    needs: str = "conversations: messages, ShareGPT, Alpaca, question and answer ..., or plain text"
    kinds: tuple[Kind, ...] = ("conversation", "text")
    """What it can learn from; rows of another kind are refused before anything is loaded."""
    task: Task = "generate"
    """What the model is for: to generate text, or to score it (a reward model)."""
    refuses: Callable[[Config, Adapter], str | None] = lambda config, adapter: None
    """Why these settings cannot work with this method and adapter, and what would, in a sentence; None where they can.
    Asked before anything is loaded."""
    settings: tuple[str, ...] | None = None
    """The fields of `objective` and `rollout` that it reads; others that were given are refused. None: any."""
    use_for: str = ""
    """When to take it, in a sentence."""
    memory: str = ""
    """How much it needs, beside other methods."""
    ranges: Mapping[str, str] = field(default_factory=dict)
    """Usual values by full path: `{"training.learning_rate": "1e-5 to 5e-4"}`."""
    scores: tuple[str, ...] = ()
    """The score that the method is for: the first of these that has a value for each held-out row. By it the tuned
    model is compared with its base after the training (`evaluation.on_worse`) and at a promotion (`metric: auto`).
    Empty: the first of loss, preference_accuracy and exact_match that there is, else any."""


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A way to change few weights: `configure` makes the PEFT config for it, or None where all weights train.

    `merges` says whether the adapter can be folded into the base model's weights.
    """

    name: str
    summary: str
    configure: Callable[[Job, Model], Foreign | None]
    merges: bool = True
    paper: str = ""
    learned_prompt: bool = False
    """It stands in front of the text, as virtual tokens or their keys and values, and changes no weights."""
    refuses: Callable[[Config], str | None] = lambda config: None
    """Why these settings cannot work with this adapter, and what would, in a sentence; None where they can."""
    use_for: str = ""
    memory: str = ""
    ranges: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Evaluator:
    """A judge of a model on held-out rows. It is called once for the base model and once for the tuned one.

    `subject.answers` are generated, and `subject.losses` computed, when first asked for, once for all evaluators.
    `applies` says by the held-out data whether the evaluator has anything to say; it runs when it is not named in
    `evaluation.evaluators` too.
    """

    name: str
    summary: str
    evaluate: Callable[[Subject], Sequence[Score]]
    applies: Callable[[Data], bool] = lambda data: True
    task: Task = "generate"
    """Of which models it is a judge: those that generate, or those that score."""


@dataclass(frozen=True, kw_only=True)
class Reward:
    """A reward function: how good sampled answers are, for methods that learn from their own answers.

    `score` gets, each as a list with an item an answer, `prompts` (lists of messages), `completions` (lists with the
    assistant's message), and by name the other columns of the prompts' rows; it returns a number for each answer, or
    None where it has nothing to say. TRL's reward functions are of this form.
    """

    name: str
    summary: str
    score: Callable[..., Sequence[float | None]]


@dataclass(frozen=True, kw_only=True)
class Packager:
    """A form of the trained model that is kept and registered: its adapter, the merged model.

    `package` writes a folder that is complete by itself and returns nothing; the stage compares the folder's
    model with the trained one, adds the card and the manifest, logs it and registers it as `NAME` plus `suffix`.

    `rehearse` writes what it can of such a folder before the training, without trained weights, and raises what
    `package` would raise: `Trained` then holds the adapter as it begins, or the configuration of a model without its
    weights. Where it is None, nothing of the form is tried beforehand.
    """

    name: str
    summary: str
    package: Callable[[Job, Trained, Path], None]
    applies: Callable[[Job, Trained], bool] = lambda job, trained: True
    suffix: str = ""
    rehearse: Callable[[Job, Trained, Path], None] | None = None


@dataclass(frozen=True, kw_only=True)
class Exporter:
    """A form that is made of the whole model (merged, or fully tuned): in fewer bits, or for another program.

    `export` reads the folder of the whole model, in transformers' form with its tokenizer, and writes another one that
    is complete by itself. `opened` loads that one again, by the program that will run it, to be compared with the
    trained model before anything is logged; it is a context manager that lets the model go at its end.
    """

    name: str
    summary: str
    export: Callable[[Path, Path], None]
    opened: Callable[[Path], AbstractContextManager[Form]]
    ready: Callable[[Path | None], str | None] = lambda folder: None
    """Why it cannot be done here, before anything is spent: a tool that is not installed, a model that it does not
    know (the folder holds its config and tokenizer; None where they are not known yet)."""
    max_kl: float = 0.1
    """Largest mean KL divergence per token (nats) from the trained model that its rounding may cause."""
    min_top1: float = 0.7
    """Smallest share of tokens on which it must agree with the trained model."""
    suffix: str = ""
    """Registered as `NAME` plus this, as a model that MLflow serves; logged as files of the run where it is empty."""
    grid: str = ""
    """The `model.quantize` whose rounding this repeats. A model that was merged into a base dequantised from the same
    grid would snap back to it, and lose the adapter; it is made of the merge into the original weights instead."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a gate says about one thing, in words for people and in numbers for machines."""

    passed: bool | None
    """None: the gate abstains, since it has nothing to say of this model."""
    found: str
    """What the evidence says: `0.91`, `12 days`, `no such score`; why the gate abstains."""
    wanted: str
    """What passes: `at least 0.9`."""
    subject: str = ""
    """What of several things was looked at: the name of the score."""
    numbers: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def abstain(cls, why: str, *, subject: str = "") -> Verdict:
        """Neither for nor against; shown with the reason."""
        return cls(passed=None, found=why, wanted="", subject=subject)


@dataclass(frozen=True, kw_only=True)
class Gate:
    """A condition that a version must meet before an alias is moved to it.

    `judge` gets all that is known of the version and of the present champion, and the settings of the gates; it
    returns a verdict for each thing that was asked of it; where nothing was, it abstains (`Verdict.abstain`, or no
    verdict at all). It changes nothing. A `FineTuneError` that it raises counts as a verdict that did not pass.
    """

    name: str
    summary: str
    judge: Callable[[Candidacy, Gates], Sequence[Verdict]]
    options: tuple[str, ...] = ()
    """The keys that it reads under `options` of the gates file; any other is refused. `limits.high` is `high` in the
    mapping `limits`, and `limits.*` any key in it."""
    always: bool = False
    """Asked whatever `names` of the gates file says; it can only be waived, by name and with a reason."""


Record = DataFormat | Check | Trainer | Adapter | Evaluator | Reward | Packager | Exporter | Gate

"""What plugins return: small frozen records with a name, a summary and the function that does the work.

A record is cheap to make. Its function imports torch, transformers or peft when it is called, never before:

    def _train(job, data, model):
        from mlflow_ft.engine import sft

        return sft.train(job, data, model)

    Trainer(name="my-sft", summary="SFT with my defaults", train=_train, defaults={"training.learning_rate": 1e-4})
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from mlflow_ft.rows import Checked, Example, Finding, Kind, Severity, Task

if TYPE_CHECKING:
    from mlflow_ft.candidacy import Candidacy
    from mlflow_ft.config.gates import Gates
    from mlflow_ft.config.schema import ChecksSection, Config
    from mlflow_ft.values import (
        Advice,
        Data,
        Form,
        Handle,
        Job,
        Launch,
        Machines,
        Model,
        Score,
        Situation,
        Subject,
        Trained,
    )

    # A value from another library (a peft config, a torch module): this module must not import it.
    Foreign = Any


@dataclass(frozen=True, kw_only=True)
class DataFormat:
    """A format of rows, and how to convert such a row to an `Example`.

    `convert` takes the row's columns and raises `ValueError` with one sentence where the row does not have this format;
    the caller adds file and line. `columns` are those that a row must have.
    """

    name: str
    summary: str
    columns: tuple[str, ...]
    convert: Callable[[Mapping[str, Any]], Example]
    kind: Kind = "conversation"


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
    inspect: Callable[[Checked], str | None] | None = None
    collect: Callable[[ChecksSection], Collector] | None = None
    compare: Callable[[Sequence[Checked], Iterable[Checked], ChecksSection], Finding] | None = None
    kinds: tuple[Kind, ...] = ("conversation", "text", "preference", "unpaired", "prompt")
    across: Callable[[Sequence[Handle], Machines, ChecksSection], Finding] | None = None
    """The finding from handles of collectors that have seen consecutive rows on several machines, where they hold too
    much of each row to be joined (`JoiningCollector`) on one."""
    fix: str = ""
    """What `prepare --fix` does about it ("leaves these rows out"); "" where no fix is safe."""
    remedy: str = ""


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """A method: what is minimised, and the defaults that define the method.

    `train` gets the frozen job, data and model, trains, and returns where the result is. `defaults` are config
    values by full path; they override the schema's defaults, and the user's file and command line override them.
    """

    name: str
    summary: str
    train: Callable[[Job, Data, Model], Trained]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    paper: str = ""
    needs: str = "conversations: messages, ShareGPT, Alpaca, question and answer ..., or plain text"
    kinds: tuple[Kind, ...] = ("conversation", "text")
    """The kinds of rows it can learn from; others are refused before anything is loaded."""
    task: Task = "generate"
    """What the model is for: to generate text, or to score it (a reward model)."""
    refuses: Callable[[Config, Adapter], str | None] = lambda config, adapter: None
    """Why these settings cannot work with this method and adapter, and a remedy, in a sentence; None where they can.
    Called before anything is loaded."""
    settings: tuple[str, ...] | None = None
    """The fields of `objective` and `rollout` that it uses; others are refused if set. None: any."""
    use_for: str = ""
    """When to use it, in a sentence."""
    memory: str = ""
    """How much memory it needs, compared with other methods."""
    ranges: Mapping[str, str] = field(default_factory=dict)
    """Usual values by full path: `{"training.learning_rate": "1e-5 to 5e-4"}`. A sweep searches those that are written
    so; where they differ, `1e-6 to 5e-6 for all weights, 1e-5 to 1e-4 with an adapter`."""
    scores: tuple[str, ...] = ()
    """The method's own score: the first of these that has a value for each held-out row. It is used to compare the
    tuned model with its base after training (`evaluation.on_worse`) and in a promotion (`metric: auto`).
    Empty: the first of loss, preference_accuracy and exact_match that exists, else any."""


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A parameter-efficient adapter: `configure` makes its PEFT config, or returns None where all weights train.

    `merges` says whether the adapter can be folded into the base model's weights.
    """

    name: str
    summary: str
    configure: Callable[[Job, Model], Foreign | None]
    merges: bool = True
    paper: str = ""
    learned_prompt: bool = False
    """It comes before the text, as virtual tokens or their keys and values, and changes no weights."""
    refuses: Callable[[Config], str | None] = lambda config: None
    """Why these settings cannot work with this adapter, and a remedy, in a sentence; None where they can."""
    use_for: str = ""
    memory: str = ""
    ranges: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Evaluator:
    """Scores a model on held-out rows. It is called once for the base model and once for the tuned one.

    `subject.answers` are generated, and `subject.losses` computed, on first access, once for all evaluators.
    `applies` says whether the evaluator applies to the held-out data; then it runs when `evaluation.evaluators` is
    not given.
    """

    name: str
    summary: str
    evaluate: Callable[[Subject], Sequence[Score]]
    applies: Callable[[Data], bool] = lambda data: True
    task: Task = "generate"
    """Which models it evaluates: those that generate, or those that score."""
    scores: tuple[str, ...] = ()
    """The names of the scores that it returns; `reward/*` is any that begins so. Before a sweep begins, it refuses an
    objective that no evaluator returns. Empty: the names are known only after it has run."""


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
    applies: Callable[[Job, Trained], bool] = lambda job, trained: True
    suffix: str = ""
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
    options: tuple[str, ...] = ()
    """The keys that it reads under `options` of the gates file; any other is refused. `limits.high` is `high` in the
    mapping `limits`, and `limits.*` is any key in it."""
    always: bool = False
    """Applies even if `names` of the gates file leaves it out; it can only be waived, by name and with a reason."""


@dataclass(frozen=True, kw_only=True)
class Launcher:
    """Where the processes of a run are: this process alone, several on this machine, a cluster.

    `launch` starts `launch.processes` processes, waits until they have ended, and returns what rank 0 returned. In
    each of them the launcher sets torchrun's variables (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT) and
    calls `mlflow_ft.launched.work(launch.request)`, or runs `python -m mlflow_ft.launched FILE` with the request in
    FILE. It passes SIGTERM and SIGINT on. Where `launch` is None, the run stays in the process that was started.
    """

    name: str
    summary: str
    launch: Callable[[Launch], str] | None = None
    refuses: Callable[[Config], str | None] = lambda config: None
    """Why these settings cannot work here, and a remedy, in a sentence; None where they can. Called before anything is
    loaded or started."""


@dataclass(frozen=True, kw_only=True)
class PlanRule:
    """A rule of `mlflow-ft plan`: in which situations it applies, and what it then advises.

    First all rules are asked for `methods`, `weights` and `strategies`. Of each, the first rule's list is preferred;
    what other rules add to it are fallbacks and alternatives. The plan takes the first way to train that fits, as the
    estimate of memory says. For each way all rules are asked again, with `situation.choice` set, for `settings`: the
    first rule that sets one decides.
    """

    name: str
    summary: str
    source: str
    """A citation: a paper's address, or a document's."""
    applies: Callable[[Situation], bool]
    advise: Callable[[Situation], Advice]
    priority: int = 0
    """Rules of a higher priority are asked first, then those registered earlier. All built-in rules have 0."""


@dataclass(frozen=True, kw_only=True)
class Engine:
    """Where the rows of a data set are tokenised, proved and checked: in this process and its helpers, or on a cluster.

    `machines` is a context manager that connects to several machines, or gives None for this one. Rows are read and
    written by this process, and the findings are the same.
    """

    name: str
    summary: str
    machines: Callable[[], AbstractContextManager[Machines | None]] = nullcontext
    refuses: Callable[[], str | None] = lambda: None
    """Why it cannot be used here, and a remedy, in a sentence; None where it can. Called before anything is read."""


Record = (
    DataFormat
    | Check
    | Trainer
    | Adapter
    | Evaluator
    | Reward
    | Packager
    | Exporter
    | Gate
    | Launcher
    | PlanRule
    | Engine
)

"""What `mlflow-ft plan` is about: the situation, the advice of its rules, and the plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from mlflow_ft.rows import Kind

Aim = Literal["instruct", "domain", "preference", "reward", "verifiable"]
AIMS: Mapping[Aim, str] = {
    "instruct": "answer as the rows do",
    "domain": "learn the language and the facts of plain texts",
    "preference": "give the answers that people prefer",
    "reward": "score answers, for ranking or as a reward",
    "verifiable": "solve tasks whose answers a function or a reward model scores",
}
"""What a training is for, in words."""
TRAINED_ON: Mapping[Aim, tuple[Kind, ...]] = {
    "instruct": ("conversation", "preference"),
    "domain": ("text",),
    "preference": ("preference", "unpaired"),
    "reward": ("preference",),
    "verifiable": ("prompt", "conversation"),
}
"""By aim, the kinds of rows that it can be reached with, the usual one first."""
USUAL_AIM: Mapping[Kind, Aim] = {
    "conversation": "instruct",
    "text": "domain",
    "preference": "preference",
    "unpaired": "preference",
    "prompt": "verifiable",
}
"""By kind of rows, the aim where none is given."""


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """The devices to train on."""

    gpus: int
    """0: the CPU."""
    memory: float
    """Memory of each GPU, or of the machine without a GPU, in GB (10^9 bytes): the size that cards are sold by."""
    name: str = ""
    """The name of the GPU, if it is known."""
    cores: int = 1
    """Cores of the CPU; they matter only without a GPU."""

    @property
    def shown(self) -> str:
        """In a few words: `2 x 24 GB`."""
        if not self.gpus:
            return f"the CPU ({self.cores} cores, {self.memory:.0f} GB)"
        return f"{self.gpus} x {self.name or 'GPU'} with {self.memory:.0f} GB"


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A way to train: the method, what trains, and how it is spread over processes."""

    method: str
    """The method that gives the objective: `sft`, `dpo`, `grpo` ..."""
    weights: str
    """The method whose adapter and quantisation are used: `full`, `lora`, `qlora`, `prompt` ..."""
    strategy: str = "local"
    """`local` (one process), `ddp`, `fsdp`, `deepspeed-zero2` or `deepspeed-zero3`."""


@dataclass(frozen=True, kw_only=True)
class Situation:
    """What a plan is made for, as a rule sees it."""

    aim: Aim
    kind: Kind
    rows: int
    """Rows of the data, before some are held out."""
    row_tokens: float
    """Mean length of a row, in tokens."""
    long_row: int
    """A length that 99 of 100 rows do not exceed, in tokens."""
    columns: frozenset[str] = frozenset()
    """The columns of the rows, where the data is at hand."""
    hardware: Hardware
    parameters: int
    """The number of the base model's weights."""
    positions: int | None = None
    """The longest row that the base model can read, in tokens, if its config tells."""
    chats: bool | None = None
    """Whether the base has a chat template, as instruction-tuned models have; None: not known."""
    choice: Choice | None = None
    """The way to train that settings are asked for; None while rules are asked which ways there are."""

    @property
    def tokens(self) -> int:
        """All tokens of the rows."""
        return round(self.rows * self.row_tokens)

    @property
    def adapter(self) -> bool:
        """Whether the way to train that settings are asked for has an adapter."""
        return self.choice is not None and self.choice.weights != "full"


@dataclass(frozen=True, kw_only=True)
class Advice:
    """What a rule recommends in a situation; what it does not set is left to other rules."""

    reason: str
    """Why, with the numbers of the situation, in a sentence without a full stop."""
    methods: Sequence[str] = ()
    """Methods for the aim, preferred first."""
    weights: Sequence[str] = ()
    """The methods whose adapter and quantisation to use, preferred first: `("qlora", "lora")`."""
    strategies: Sequence[str] = ()
    """How to spread the training over processes, preferred first: `("ddp", "fsdp")`."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Values of settings by full path; `reason` is the reason for each."""
    batch: int = 0
    """Rows per optimizer step over all devices; the plan divides them by what fits in memory."""
    before: str = ""
    """What to try or to do before the training, in a sentence without a full stop."""
    elsewhere: Mapping[str, str] = field(default_factory=dict)
    """Alternatives that are no single training, and what they cost: `{"few-shot": "nothing to train ..."}`."""


@dataclass(frozen=True, kw_only=True)
class Reason:
    """One piece of advice, and the rule that gave it."""

    rule: str
    text: str
    source: str


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a way to train takes."""

    memory: int
    """Bytes on each device, at the peak of the run."""
    available: int
    """Bytes of each device that a training can use."""
    parts: Mapping[str, int]
    """What the memory is for, in bytes."""
    phase: str
    """The phase of the run with the peak: training or evaluation."""
    hours: float
    """Rough duration of the training."""
    batch: int
    """Rows per device and forward pass."""
    accumulation: int
    """Forward passes per step."""
    eval_batch: int
    """Rows per forward pass in evaluation."""
    merges: bool = True
    """Whether there is room to merge the adapter and compare the result; else the adapter alone is kept."""
    at_least: bool = False
    """Whether the memory is that of the weights and the optimizer alone, which is too much already."""

    @property
    def fits(self) -> bool:
        return self.memory <= self.available


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A way to train with its settings, and what it takes."""

    choice: Choice
    command: str
    """The method to train with: `mlflow-ft train COMMAND`."""
    settings: Mapping[str, Any]
    """The values that differ from the method's defaults, or that a rule recommends, by full path."""
    reasons: Mapping[str, Reason]
    """By full path, why a setting has this value."""
    cost: Cost | None = None
    refused: str = ""
    """Why it is not possible, in a sentence, other than for lack of memory."""

    @property
    def fits(self) -> bool:
        return self.cost is not None and self.cost.fits


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The answer to "which method, with which settings, on this hardware"."""

    situation: Situation
    recommended: Planned | None
    """None: nothing fits."""
    reasons: Sequence[Reason]
    before: Sequence[str]
    """What to try or to do before the training."""
    alternatives: Sequence[Planned]
    elsewhere: Mapping[str, str]
    """Alternatives that are no single training, and what they cost."""
    would_fit: Sequence[str] = ()
    """If nothing fits: what would, a sentence each."""
    remarks: Sequence[str] = ()
    """What was assumed, or could not be read."""

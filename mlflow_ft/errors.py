"""Every error that a user can cause, with a place, a remedy and an exit code.

FineTuneError                 exit 2: the input is wrong
├── ConfigError               an unknown key, value, method, format, evaluator ...
├── DataError                 a file, a row, a column, a mask that cannot be proved correct
├── ModelError                a model path, a tokenizer, a chat template
├── PluginError               a plugin is broken, two plugins claim one name
├── TrackingError             the tracking server does not answer, or refuses
├── ResourceError             no space on the disk, no memory
├── ProcessError              another process of the same training ended
├── FollowedError             exit 0: no fault: machine 0 has the outcome, this one worked for it
├── RefusedError              exit 1: the evidence is against it (a gate, a parity, a diverged loss)
│   └── PrunedError           a trial of a sweep that cannot become the best one
├── UndeliveredError          exit 3: complete on disk, not yet on the tracking server
└── StoppedError              exit 130 or 143: a signal asked the run to stop
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from dataclasses import dataclass

SHOWN_PROBLEMS = 8
LONGEST_BRIEF = 500
"""Characters of another library's message that are shown."""
NO_EXIT = "code that a run calls must raise an exception instead, or return"


def brief(error: BaseException, *, with_type: bool = False) -> str:
    """Another library's error in one line: its first line, and the lines after it if it ends with a colon.

    `with_type` prepends the error's class, as for code that is not a library's.

    >>> brief(RuntimeError("Error(s) in loading state_dict:\\n\\tsize mismatch for weight\\n\\tsize mismatch for bias"))
    'Error(s) in loading state_dict: size mismatch for weight; size mismatch for bias'
    >>> brief(KeyError("lora_alpha"))
    "KeyError: 'lora_alpha'"
    """
    text = f"{type(error).__name__}: {error}" if with_type or isinstance(error, KeyError) else str(error)
    lines = [line.strip().removesuffix(".") for line in text.splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    first, *others = lines
    if first.endswith(":"):
        first = f"{first} {'; '.join(others)}" if others else first.removesuffix(":")
    return first if len(first) <= LONGEST_BRIEF else f"{first[:LONGEST_BRIEF].rstrip()} ..."


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One problem: where it is, what it is, and how to fix it."""

    place: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.place}  {self.message}" + (f"; {self.hint}" if self.hint else "")


class FineTuneError(Exception):
    """The base of every error that is shown to the user as a message, without a traceback."""

    exit_code = 2
    shown_problems: int | None = SHOWN_PROBLEMS
    """So many problems are printed; None: all."""

    def __init__(self, message: str, *, hint: str = "", problems: Sequence[Problem] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.problems = tuple(problems)

    def __str__(self) -> str:
        lines = [self.message]
        shown = self.problems[: self.shown_problems]
        lines += [f"  {problem}" for problem in shown]
        if len(self.problems) > len(shown):
            lines.append(f"  ... and {len(self.problems) - len(shown)} more")
        if self.hint:
            lines.append(f"  {self.hint}")
        return "\n".join(lines)


class ConfigError(FineTuneError):
    """A key, a value or a name in the configuration is wrong; all problems are reported at once."""

    shown_problems = None  # what a person wrote has an end, unlike the rows of a file


class DataError(FineTuneError):
    """The data cannot be read, recognised, converted or proved."""


class ModelError(FineTuneError):
    """The base model, its tokenizer or its chat template cannot be used."""


class PluginError(FineTuneError):
    """A plugin cannot be loaded, or two plugins register the same name."""


class TrackingError(FineTuneError):
    """The tracking server or the registry does not answer, or refuses a request."""


class ResourceError(FineTuneError):
    """The machine has too little disk space or memory for the run."""


class ProcessError(FineTuneError):
    """Another process of the same training has failed or was killed."""


class FollowedError(FineTuneError):
    """There is no outcome here, since this machine worked for machine 0, which has the run. Not a failure."""

    exit_code = 0


class RefusedError(FineTuneError):
    """The evidence is against continuing: a parity, a gate, a NaN or infinite loss."""

    exit_code = 1


class PrunedError(RefusedError):
    """A trial of a sweep was ended early because others are better; its run is KILLED."""


class UndeliveredError(FineTuneError):
    """The result is complete on disk, but the tracking server has not received all of it yet."""

    exit_code = 3


class StoppedError(FineTuneError):
    """A signal asked the run to stop.

    `exit_code` is 128 plus the signal's number: 130 for SIGINT, 143 for SIGTERM.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by signal {signal_number}")
        self.exit_code = 128 + signal_number


MEMORY_REMEDIES = (
    "in order of cost: halve training.per_device_train_batch_size and double training.gradient_accumulation_steps; "
    "training.gradient_checkpointing=true; a smaller data.max_length; model.quantize=nf4"
)


def exited(error: BaseException) -> FineTuneError | None:
    """What to raise instead of a SystemExit, with which a run would end without a word, or as if it had succeeded."""
    if not isinstance(error, SystemExit):
        return None
    called = traceback.extract_tb(error.__traceback__)
    while len(called) > 1 and called[-1].name == "exit":  # what a library put in the place of sys.exit: wandb does
        called.pop()
    where = "".join(f" in {frame.filename} line {frame.lineno}" for frame in called[-1:])
    return FineTuneError(f"exit({error.code if error.code is not None else ''}) was called{where}", hint=NO_EXIT)


def out_of_memory(error: BaseException) -> ResourceError | None:
    """What to raise instead of an error that means too little memory, of the GPU or of the machine; else None."""
    if isinstance(error, FineTuneError):  # already in the user's terms
        return None
    of_torch = type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in str(error)
    if not (of_torch or isinstance(error, MemoryError)):
        return None
    return ResourceError(f"out of memory: {brief(error)}", hint=MEMORY_REMEDIES)

"""Detects the format of rows by their columns and what these hold; rows that fit several formats are an error.

Where columns hold the same question in several forms, the fuller form wins: a preference over a conversation,
a conversation over a question and its answer. `data.format` overrides all of this.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from mlflow_ft import DataError, Example, Message
from mlflow_ft.builtin.formats.answers import with_answers
from mlflow_ft.builtin.formats.conversations import CALLS_COLUMN, TURN_COLUMNS, same
from mlflow_ft.builtin.formats.preferences import ANSWER_COLUMNS, PROMPT_COLUMNS, truth
from mlflow_ft.builtin.formats.tool_calls import TOOL_COLUMNS, written_calls
from mlflow_ft.builtin.formats.turns import ROLE_KEYS, is_turns, roles_of
from mlflow_ft.builtin.formats.values import from_json, key_in

Values = Mapping[str, Any]
Pairs = Mapping[str, tuple[Sequence[str], Sequence[str]]]
"""By format, the possible names of the question's and the answer's column."""
WEAK = frozenset({"text", "prompt-only"})
"""Formats of a single column, chosen only where no row has more."""
FULL = ("preference", "messages", "sharegpt")
"""Formats that win over another form of the same question."""
ALIKE = {frozenset(names): names for names in (("messages", "sharegpt"), ("alpaca", "instruction-response"))}
"""Pairs of formats that read each other's rows in the same way: of conversations, and of rows whose instruction is
empty."""
TARGETS = ("label", "labels", "target", "targets", "answer", "answers", "summary", "role")
"""Columns that show that a text is to be classified, answered or summarised, not learned by itself."""


class Detector:
    """Detects which built-in format rows have."""

    def __init__(self, convert: Mapping[str, Callable[[Values], Example]], pairs: Pairs) -> None:
        self._convert = convert
        self._pairs = pairs

    def format_of(self, sample: Sequence[Values]) -> str | None:
        """The one format that the rows fit, None where they fit none; single rows that do not are reported later.

        Raises:
            DataError: the rows fit several formats, or have several.
        """
        by_row = [names for values in sample if (names := self.of_row(values))]
        # a row that lacks something fits a weak format by accident
        by_row = [names for names in by_row if not set(names) <= WEAK] or by_row
        if not by_row:
            return None
        fitting = [name for name in by_row[0] if all(name in names for names in by_row)]
        everything = [name for names in by_row for name in names]
        if len(fitting) != 1 and frozenset(everything) in ALIKE:
            fitting = [max(ALIKE[frozenset(everything)], key=everything.count)]
        if not fitting:
            raise _several(by_row, len(sample))
        if len(fitting) > 1:
            raise _ambiguous(fitting)
        if fitting == ["text"] and any(values.get(name) is not None for values in sample for name in TARGETS):
            return None
        for values in sample:
            self._check_columns(fitting[0], values)
        return fitting[0]

    def of_row(self, values: Values) -> tuple[str, ...]:
        """Every format that a row fits; of formats that give the same example, only the first."""
        values = with_answers(values)
        there = {str(name) for name, value in values.items() if value is not None and value != ""}
        names = list(self._strong(values, there)) or list(_weak(values, there))
        return tuple(names) if len(names) < 2 else tuple(self._different(values, names))

    def _strong(self, values: Values, there: Collection[str]) -> Iterator[str]:
        roles = next((roles for column in TURN_COLUMNS if (roles := roles_of(values.get(column)))), [])
        pairs = [name for name in self._pairs if self._is_pair(values, name)]
        is_preference = all(_is_speech(values.get(name), may_be_empty=True) for name in ("chosen", "rejected"))
        is_judged = not is_preference and _is_judged(values)
        if is_preference:
            yield "preference"
        elif truth(values) is not None and ("assistant" in roles or pairs or (is_judged and _is_answered(there))):
            yield "unpaired-preference"
            if is_judged:
                return
        # with two answers, a conversation that does not end with the assistant is the prompt
        if "assistant" in roles and not (is_preference and roles[-1] != "assistant"):
            yield "messages" if _has_role(values) else "sharegpt"
            if roles[-1] == "user":
                yield "prompt-only"
        elif "" in roles and not is_preference:  # unknown roles are reported turn by turn
            yield "messages" if _has_role(values) else "sharegpt"
        yield from pairs
        if pairs and not is_preference and is_turns(values.get("prompt")) and "prompt-completion" not in pairs:
            yield "prompt-only"

    def _is_pair(self, values: Values, name: str) -> bool:
        questions, answers = self._pairs[name]
        is_asked = any(_is_speech(values.get(column)) for column in questions)
        return is_asked and any(_is_answer(values, column) for column in answers)

    def _different(self, values: Values, names: Sequence[str]) -> Iterator[str]:
        """The formats that read a row differently; also one that cannot read it."""
        readings: list[tuple[Any, ...]] = []
        prompts: list[Message] = []
        for name in names:
            try:
                example = self._convert[name](values)
            except ValueError:
                yield name
                continue
            reading = (*example.messages, *example.chosen, example.label)
            is_form = (name in FULL or name in self._pairs) and any(same(turn, example.prompt[-1]) for turn in prompts)
            if reading not in readings and not is_form:
                yield name
            readings.append(reading)
            prompts += example.messages if name in FULL else ()

    def _check_columns(self, name: str, values: Values) -> None:
        """Raise DataError where two columns could hold what the format reads from one of them."""
        for group in self._groups(name, values):
            there = [column for column in group if values.get(column) not in (None, "") and column != CALLS_COLUMN]
            first, *others = there or [""]
            if other := next((column for column in others if _differs(column, first, values)), None):
                raise DataError(
                    f"the rows have the format {name}, but either `{first}` or `{other}` could be its `{group[0]}`",
                    hint=f"--data.format {name} reads `{first}`, --data.columns {group[0]}={other} reads `{other}`",
                )

    def _groups(self, name: str, values: Values) -> Sequence[Sequence[str]]:
        """Groups of columns of which a format reads the first that has a value; an input goes with an instruction."""
        if name in ("messages", "sharegpt"):
            return ([column for column in TURN_COLUMNS if is_turns(values.get(column))],)
        if name in ("preference", "unpaired-preference"):
            if any(is_turns(values.get(column)) for column in ("chosen", "prompt", *TURN_COLUMNS)):
                return ()
            return PROMPT_COLUMNS[:-1], ANSWER_COLUMNS if name == "unpaired-preference" else ()
        return self._pairs.get(name, ())[1 if name == "instruction-response" else 0 :]


def _differs(column: str, first: str, values: Values) -> bool:
    """Whether two columns hold different things; a prompt often contains other columns."""
    value, other = values[first], values[column]
    if first == "prompt" and isinstance(value, str) and isinstance(other, str) and other.strip() in value:
        return False
    return bool(from_json(value) != from_json(other))


def _ambiguous(names: Sequence[str]) -> DataError:
    ways = [f"--data.format {name}" for name in names]
    if set(names) == WEAK:
        ways.append("--data.columns completion=text, if the text is the answer to the prompt")
    return DataError(f"the columns fit several formats: {', '.join(names)}", hint=f"choose one: {' or '.join(ways)}")


def _several(by_row: Sequence[Sequence[str]], rows: int) -> DataError:
    counts = Counter(" or ".join(names) for names in by_row)
    return DataError(
        f"the first {rows} rows have several formats: "
        f"{', '.join(f'{count} {names}' for names, count in counts.most_common())}",
        hint="put each format into a separate file and name the files as a list (--data '[a.jsonl, b.jsonl]'), or "
        "choose one format with --data.format and leave out the other rows with --data.on_bad_row drop",
    )


def _weak(values: Values, there: Collection[str]) -> Iterator[str]:
    if {"chosen", "rejected"} & set(there):
        return  # a preference that lacks an answer
    if any(isinstance(values.get(name), list) for name in ("completions", "labels")):
        return  # steps of an answer, judged one by one, or several answers
    if {"completion", "response"} & set(there) and "prompt" in there:
        return  # a pair whose answer is not text
    if isinstance(values.get("text"), str) and not set(TARGETS) & set(there) and not _is_message(values):
        yield "text"
    turns = [roles for name in ("prompt", *TURN_COLUMNS) if (roles := roles_of(values.get(name)))]
    if (turns and turns[0][-1] != "assistant") or (not turns and isinstance(values.get("prompt"), str)):
        yield "prompt-only"


def _is_message(values: Values) -> bool:
    """Whether a row is a chat message, as Slack and Telegram export it: not a text to learn by itself."""
    return values.get("type") == "message" and any(values.get(name) for name in ("user", "from", "sender", "author"))


def _is_judged(values: Values) -> bool:
    """Whether the label is a judgement: true or false, also as text as in CSV; a number may be a class."""
    label = values.get("label")
    written = isinstance(label, str) and label.strip().lower() in ("true", "false")
    return isinstance(label, bool) or written or values.get("kto_tag") is not None


def _is_answered(there: Collection[str]) -> bool:
    return bool(set(there) & set(PROMPT_COLUMNS[:-1]) and set(there) & set(ANSWER_COLUMNS))


def _is_speech(value: Any, *, may_be_empty: bool = False) -> bool:
    if isinstance(value, str):
        return may_be_empty or value != ""
    return is_turns(value) or is_turns([value])


def _is_answer(values: Values, column: str) -> bool:
    value = values.get(column)
    if column != CALLS_COLUMN:
        return _is_speech(value)
    try:
        return key_in(values, TOOL_COLUMNS) is not None and bool(written_calls(value))
    except ValueError:
        return False


def _has_role(values: Values) -> bool:
    """Whether the turns name the speaker under `role`, as OpenAI's do."""
    turns = next(from_json(values[column]) for column in TURN_COLUMNS if is_turns(values.get(column)))
    return key_in(turns[0] if isinstance(turns, list) else turns, ROLE_KEYS) == "role"

"""Which gates a version is held to, and whether what they ask for is there: options, names of gates and of scores."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from mlflow_ft.candidacy import Contender
from mlflow_ft.config.gates import Gates, near, read_gates
from mlflow_ft.config.given import headline
from mlflow_ft.errors import ConfigError, Problem
from mlflow_ft.records import Gate
from mlflow_ft.registry import Registry

if TYPE_CHECKING:
    from mlflow import MlflowClient

TUNED = "eval/tuned/"
OWN_SECTION = {"beats-champion": "beats_champion", "beats-base": "beats_base", "no-regression": "max_regression"}
"""Where the settings of built-in gates stand, which take no `options`."""


def settings(given: Gates | None, place: str, client: MlflowClient, candidate: Contender) -> tuple[Gates, str]:
    """The gates that were given, else those that the version's run has kept, else the defaults; and which it was."""
    from mlflow_ft.tracking import contenders

    if given is not None:
        return given, place
    kept = contenders.read(client, candidate.run_id, contenders.GATES_FILE) if candidate.run_id else None
    if kept:
        place = f"{contenders.GATES_FILE} of run {candidate.run_id}"
        return read_gates(kept, place=place), place
    return Gates(), "defaults"


def choose(gates: Gates, registry: Registry, *, place: str = "the gates file") -> list[Gate]:
    """The gates that were named and those that cannot be left out, or else all there are.

    Raises:
        ConfigError: a gate is not registered, or reads no such option.
    """
    for name in gates.waive:
        registry.gates[name]
    problems = [one for name, given in gates.options.items() for one in _unread(registry.gates[name], given, place)]
    if problems:
        raise ConfigError(headline(problems, "in the options of gates"), problems=problems)
    if gates.names is None:
        return list(registry.gates)
    named = [registry.gates[name] for name in gates.names]
    return [*named, *(gate for gate in registry.gates if gate.always and gate not in named)]


def _unread(gate: Gate, given: Mapping[str, Any], place: str) -> Iterator[Problem]:
    """Options that the gate does not read."""
    for path in _leaves(given):
        parts = path.split(".")
        above = {".".join([*parts[:depth], "*"]) for depth in range(1, len(parts))}
        if path in gate.options or above & set(gate.options):
            continue
        hint = f"its settings stand under {OWN_SECTION[gate.name]}" if gate.name in OWN_SECTION else ""
        hint = hint or near(path, gate.options, what=f"the gate {gate.name} reads")
        yield Problem(place=f"{place}  options.{gate.name}.{path}", message="unknown option", hint=hint)


def _leaves(given: Any, path: str = "") -> Iterator[str]:
    """The paths of all keys that hold no mapping, in lists too."""
    if isinstance(given, Mapping) and (given or not path):
        for key, value in given.items():
            yield from _leaves(value, f"{path}.{key}" if path else str(key))
    elif isinstance(given, list) and any(isinstance(one, Mapping) for one in given):
        for one in given:
            yield from _leaves(one, path)
    else:
        yield path


def check_scores(gates: Gates, contenders: Iterable[Contender | None], *, place: str) -> None:
    """Raise ConfigError for scores that no run has: a misspelt name would stand for missing evidence, or for nothing.

    Where the runs have no scores at all, the gates say so themselves.
    """
    known = [one for one in contenders if one is not None]
    for_rows = sorted({name for one in known for name in (*one.rows, *one.base_rows)})
    metrics = {name for one in known for name in one.metrics}
    scores = sorted({name.removeprefix(TUNED) for name in metrics if name.startswith(TUNED)} | set(for_rows))
    problems = []
    for setting, name in gates.scores():
        where = f"{place}  {setting}: {name}"
        if setting.endswith(".metric") and name in scores and for_rows and name not in for_rows:
            hint = f"those that have are {', '.join(for_rows)}"
            problems.append(Problem(place=where, message="a score without a value for each row", hint=hint))
        elif scores and name not in scores and name not in metrics:
            hint = near(name, scores, what="it has")
            if hint.startswith("did"):
                hint += f" The run has {', '.join(scores)}"
            problems.append(Problem(place=where, message="the run has no such score", hint=hint))
    if problems:
        raise ConfigError(headline(problems, "in what the gates ask for"), problems=problems)

"""A promotion: every gate looks at the evidence, all of it is told and kept, and the alias moves if all have passed."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from mlflow_ft.candidacy import Candidacy, Contender
from mlflow_ft.config.gates import Gates, read_gates
from mlflow_ft.errors import (
    ConfigError,
    FineTuneError,
    ModelError,
    RefusedError,
    TrackingError,
    UndeliveredError,
    brief,
)
from mlflow_ft.plugins import Plugins
from mlflow_ft.progress import Progress
from mlflow_ft.records import Gate, Verdict
from mlflow_ft.registry import Registry

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from mlflow_ft.tracking.promotion import Ledger, Standing

Outcome = Literal[
    "about to move", "promoted", "refused", "would be promoted", "would be refused", "champion already", "came too late"
]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Which version is to get which alias, and who says so."""

    name: str
    version: str
    """Its number, or an alias that it has."""
    by: str
    now_ms: int
    to: str = "champion"
    gates: Gates | None = None
    """None: those that the version's run has kept, else the defaults."""
    gates_from: str = ""
    dry_run: bool = False
    copy_to: str = ""
    """Another registered model: the bytes are copied there, and the alias is that model's."""
    registry: str = ""
    """URI of the tracking server whose registry has `copy_to`; "": the same."""
    open_run: str = ""
    """Id of the run that `mlflow run` opened for this, which keeps the decision too."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A verdict and the gate that gave it."""

    gate: str
    verdict: Verdict

    @property
    def name(self) -> str:
        return f"{self.gate} {self.verdict.subject}".strip()


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What was decided, by whom, when, and on what evidence."""

    outcome: Outcome
    name: str
    version: int
    alias: str
    champion: int | None
    """The version that had the alias."""
    by: str
    at_ms: int
    run_id: str
    judged: tuple[Judged, ...]
    gates: Gates
    gates_from: str
    notes: tuple[str, ...] = ()
    target: str = ""
    """The registered model whose alias it is, where the version is copied there."""
    copied: int | None = None
    """The number of the copy."""
    number: int | None = None
    """Of the move, in the record."""
    artifact: str = ""
    error: FineTuneError | None = field(default=None, compare=False)

    @property
    def passed(self) -> bool:
        return all(one.verdict.passed for one in self.judged)

    @property
    def failed(self) -> list[str]:
        return [one.name for one in self.judged if not one.verdict.passed]

    def as_dict(self) -> dict[str, Any]:
        """The decision as JSON, complete: the settings of the gates and every number are in it."""
        plain = ("outcome", "name", "version", "alias", "champion", "by", "run_id", "gates_from", "target", "copied")
        return {key: getattr(self, key) for key in plain} | {
            "number": self.number,
            "at": datetime.fromtimestamp(self.at_ms / 1000, UTC).isoformat(),
            "passed": self.passed,
            "artifact": self.artifact,
            "notes": list(self.notes),
            "gates": [{"gate": one.gate} | _finite(asdict(one.verdict)) for one in self.judged],
            "config": self.gates.model_dump(mode="json"),
            "error": str(self.error) if self.error else None,
        }


def _finite(found: dict[str, Any]) -> dict[str, Any]:
    """JSON knows no NaN and no infinity."""
    numbers = {name: value if math.isfinite(value) else None for name, value in found["numbers"].items()}
    return found | {"numbers": numbers}


def promote(asked: Asked, *, plugins: Plugins, progress: Progress) -> Decision:
    """Hold the version against every gate, keep the decision, and move the alias where all have passed.

    Raises:
        ModelError: there is no such version. ConfigError: the gates ask for what there is not, or for nothing.
        RefusedError: another promotion is under way. TrackingError: the server does not answer.
    """
    from mlflow_ft.stages import moving, rescore
    from mlflow_ft.tracking import contenders
    from mlflow_ft.tracking.promotion import Ledger

    here, there = moving.clients(asked)
    target = asked.copy_to or asked.name
    version = contenders.find_version(here, asked.name, asked.version)
    ledger = Ledger(there, target, asked.to)
    moving.ensure_target(there, asked)
    # before the evidence: what moves from now on makes ours come late
    standing = ledger.standing() if asked.dry_run else ledger.settled(now_ms=asked.now_ms)
    candidate = contenders.contender(here, version)
    gates, gates_from = settings(asked, here, candidate)
    chosen = choose(gates, Registry(plugins))
    champion, notes = None, []
    if standing.champion is not None:
        holder = contenders.find_version(there, target, str(standing.champion))
        champion = contenders.contender(there, holder, elsewhere=here)
    blank = Decision(
        outcome="champion already",
        name=candidate.name,
        version=candidate.version,
        alias=asked.to,
        champion=standing.champion,
        by=asked.by,
        at_ms=asked.now_ms,
        run_id=candidate.run_id if candidate.status else "",
        judged=(),
        gates=gates,
        gates_from=gates_from,
        target=asked.copy_to,
    )
    if champion and moving.same(candidate, champion, asked):
        return blank
    if champion and rescore.needed(candidate, champion, gates):
        champion, note = rescore.champion(candidate, champion, here, there, plugins=plugins, progress=progress)
        notes.append(note)
    about = Candidacy(alias=asked.to, candidate=candidate, champion=champion, now_ms=asked.now_ms)
    decision = replace(blank, judged=judge(chosen, about, gates), notes=tuple(notes))
    return conclude(decision, asked, here=here, there=there, standing=standing, ledger=ledger)


def conclude(
    decision: Decision, asked: Asked, *, here: MlflowClient, there: MlflowClient, standing: Standing, ledger: Ledger
) -> Decision:
    """Keep the decision, then move the alias, then say how it ended.

    The evidence is kept first: no alias moves without it.

    Raises:
        UndeliveredError: how it ended could not be written.
    """
    from mlflow_ft.stages import moving

    if asked.dry_run:
        return replace(decision, outcome="would be promoted" if decision.passed else "would be refused")
    decision = moving.keep(here, replace(decision, outcome="about to move" if decision.passed else "refused"), asked)
    if not decision.passed:
        moving.tag(here, decision)
        return decision
    decision = move(decision, asked, here=here, there=there, standing=standing, ledger=ledger)
    try:
        decision = moving.keep(here, decision, asked)
        moving.tag(here, decision)
        if decision.copied is not None:
            moving.tag(there, replace(decision, name=asked.copy_to, version=decision.copied))
    except TrackingError as error:
        raise UndeliveredError(
            f"{decision.name} version {decision.version}: {decision.outcome}; but {error.message}",
            hint=f"what moved is in `mlflow-ft history`, and the evidence in {decision.artifact or 'no run'}",
        ) from error
    return decision


def move(
    decision: Decision, asked: Asked, *, here: MlflowClient, there: MlflowClient, standing: Standing, ledger: Ledger
) -> Decision:
    """Copy the version where that was asked for, and move the alias; what speaks against it is the decision's error."""
    from mlflow_ft.stages import moving

    number = decision.version
    if asked.copy_to:
        try:
            number = moving.copy(here, there, asked, decision)
        except (RefusedError, ModelError) as error:
            return replace(decision, outcome="refused", error=error)
        decision = replace(decision, copied=number)
    try:
        made = ledger.move(number, kind="promote", standing=standing, by=asked.by, decision=decision.artifact)
    except RefusedError as error:
        return replace(decision, outcome="came too late", error=error)
    return replace(decision, outcome="promoted", number=made.number)


def settings(asked: Asked, client: MlflowClient, candidate: Contender) -> tuple[Gates, str]:
    """The gates that were given, else those that the version's run has kept, else the defaults; and which it was."""
    from mlflow_ft.tracking import contenders

    if asked.gates is not None:
        return asked.gates, asked.gates_from
    kept = contenders.read(client, candidate.run_id, contenders.GATES_FILE) if candidate.run_id else None
    if kept:
        place = f"{contenders.GATES_FILE} of run {candidate.run_id}"
        return read_gates(kept, place=place), place
    return Gates(), "defaults"


def choose(gates: Gates, registry: Registry) -> list[Gate]:
    """The gates that were named, or else all there are.

    Raises:
        ConfigError: a name is not registered.
    """
    for name in gates.options:
        registry.gates[name]
    return list(registry.gates) if gates.names is None else [registry.gates[name] for name in gates.names]


def judge(chosen: Sequence[Gate], about: Candidacy, gates: Gates) -> tuple[Judged, ...]:
    """The verdicts of all gates; one that raises has not passed, and the others are asked all the same.

    Raises:
        ConfigError: nothing was asked at all.
    """
    judged = [Judged(gate=gate.name, verdict=verdict) for gate in chosen for verdict in verdicts(gate, about, gates)]
    if not judged:
        raise ConfigError(
            "these gates ask for nothing, and a promotion needs evidence",
            hint="set one of require, min_scores, max_scores, beats_champion, max_regression, max_age_days",
        )
    return tuple(judged)


def verdicts(gate: Gate, about: Candidacy, gates: Gates) -> Sequence[Verdict]:
    """What one gate says; what it raises is told as its verdict."""
    try:
        return gate.judge(about, gates)
    except Exception as error:  # a stranger's gate must not hide what the others say
        told = error.message if isinstance(error, FineTuneError) else brief(error, with_type=True)
        return [Verdict(passed=False, found=told.splitlines()[0], wanted="a verdict")]


def dumps(decision: Decision) -> str:
    """The decision as it is kept."""
    return json.dumps(decision.as_dict(), indent=2, ensure_ascii=False, default=str)

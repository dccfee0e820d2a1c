"""A promotion: every gate looks at the evidence, all of it is told and kept, and the alias moves if all have passed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from mlflow_ft.candidacy import Candidacy, Contender
from mlflow_ft.config.gates import Gates
from mlflow_ft.errors import (
    ConfigError,
    FineTuneError,
    ModelError,
    RefusedError,
    TrackingError,
    UndeliveredError,
    brief,
)
from mlflow_ft.operations.promoting.decision import Decision, Judged, PromotionRequest
from mlflow_ft.operations.promoting.gates import check_scores, settings
from mlflow_ft.plugins import Plugins
from mlflow_ft.progress import Progress
from mlflow_ft.records import Gate, Verdict
from mlflow_ft.registry import Registry, chosen_gates

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from mlflow_ft.tracking.promotion import Ledger, Standing


def promote(asked: PromotionRequest, *, plugins: Plugins, progress: Progress) -> Decision:
    """Hold the version against every gate, keep the decision, and move the alias where all have passed.

    Raises:
        ModelError: there is no such version. ConfigError: the gates ask for what there is not, or for nothing.
        RefusedError: another promotion is under way. TrackingError: the server does not answer.
    """
    from mlflow_ft.operations.promoting import moving, rescore
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
    registry = Registry(plugins)
    gates, gates_from = settings(asked.gates, asked.gates_from, here, candidate)
    chosen = chosen_gates(registry, gates, place=gates_from)
    candidate = replace(candidate, aims=candidate.aims or aims(candidate, registry))
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
    check_scores(gates, (candidate, champion), place=gates_from)
    if champion and rescore.needed(candidate, champion, gates):
        champion, note = rescore.champion(candidate, champion, here, there, plugins=plugins, progress=progress)
        notes.append(note)
    about = Candidacy(alias=asked.to, candidate=candidate, champion=champion, now_ms=asked.now_ms)
    decision = replace(blank, judged=judge(chosen, about, gates), notes=tuple(notes))
    return conclude(decision, asked, here=here, there=there, standing=standing, ledger=ledger)


def conclude(
    decision: Decision,
    asked: PromotionRequest,
    *,
    here: MlflowClient,
    there: MlflowClient,
    standing: Standing,
    ledger: Ledger,
) -> Decision:
    """Keep the decision, then move the alias, then say how it ended.

    The evidence is kept first: no alias moves without it.

    Raises:
        UndeliveredError: how it ended could not be written.
    """
    from mlflow_ft.operations.promoting import moving

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
    decision: Decision,
    asked: PromotionRequest,
    *,
    here: MlflowClient,
    there: MlflowClient,
    standing: Standing,
    ledger: Ledger,
) -> Decision:
    """Copy the version where that was asked for, and move the alias; what speaks against it is the decision's error."""
    from mlflow_ft.operations.promoting import moving

    number = decision.version
    if asked.copy_to:
        try:
            number = moving.copy(here, there, asked, decision)
        except (RefusedError, ModelError) as error:
            return replace(decision, outcome="refused", error=error)
        decision = replace(decision, copied=number)
    try:
        made = ledger.move(
            number,
            kind="promote",
            standing=standing,
            by=asked.by,
            reason=decision.reason,
            decision=decision.artifact,
        )
    except RefusedError as error:
        return replace(decision, outcome="came too late", error=error)
    return replace(decision, outcome="promoted", number=made.number)


def aims(candidate: Contender, registry: Registry) -> tuple[str, ...]:
    """The scores that the candidate's method is for, where its run has not kept them."""
    method = candidate.params.get("cfg.method", "")
    return registry.trainers[method].scores if method in registry.trainers else ()


def judge(chosen: Sequence[Gate], about: Candidacy, gates: Gates) -> tuple[Judged, ...]:
    """The verdicts of all gates; one that raises has not passed, and the others are asked all the same.

    Raises:
        ConfigError: nothing was asked at all, or all of it was waived.
    """
    judged = [
        Judged(gate=gate.name, verdict=verdict, waived=gates.waive.get(gate.name, ""))
        for gate in chosen
        for verdict in verdicts(gate, about, gates)
    ]
    if not any(one.result in ("pass", "fail") for one in judged):
        told = ", ".join(f"{one.name} ({'waived' if one.waived else one.verdict.found})" for one in judged)
        raise ConfigError(
            f"these gates ask for nothing, and a promotion needs evidence: {told}",
            hint="set one of require, min_scores, max_scores, beats_champion, max_regression, max_age_days",
        )
    return tuple(judged)


def verdicts(gate: Gate, about: Candidacy, gates: Gates) -> Sequence[Verdict]:
    """What one gate says; what it raises is told as its verdict, and one that says nothing abstains."""
    try:
        return gate.judge(about, gates) or [Verdict.abstain("it has nothing to say of this model")]
    except Exception as error:  # a stranger's gate must not hide what the others say
        told = error.message if isinstance(error, FineTuneError) else brief(error, with_type=True)
        return [Verdict(passed=False, found=told.splitlines()[0], wanted="a verdict")]

"""A promotion: every gate judges the evidence, the verdicts are recorded, and the alias moves if all gates pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mlflow_ft.candidacy import Candidacy, Contender, Preference
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
from mlflow_ft.operations.promoting import decision_record
from mlflow_ft.operations.promoting.decision import Decision, Judged, Outcome, PromotionRequest
from mlflow_ft.operations.promoting.gates import check_scores, settings
from mlflow_ft.plugins import Plugins
from mlflow_ft.progress import Progress
from mlflow_ft.records import Gate, Verdict
from mlflow_ft.registry import Registry, chosen_gates

if TYPE_CHECKING:
    from mlflow_ft.tracking import Store
    from mlflow_ft.tracking.promotion import Ledger, Standing

COPIED_FROM = "mlflow_ft.copied_from"


@dataclass(frozen=True, kw_only=True)
class Target:
    """The alias to move, in its state before the evidence was read."""

    store: Store
    """The one whose registry has the alias."""
    model: str
    ledger: Ledger
    standing: Standing
    """A later move makes this promotion come too late."""


def promote(request: PromotionRequest, *, plugins: Plugins, progress: Progress) -> Decision:
    """Judge the version by every gate, record the decision, and move the alias if all gates pass.

    Raises:
        ModelError: there is no such version. ConfigError: the gates name scores that do not exist, or judge nothing.
        RefusedError: another promotion is in progress. TrackingError: the server does not answer.
    """
    from mlflow_ft.operations.promoting import rescore
    from mlflow_ft.tracking import Store, vanished

    vanished.reap_quietly()
    store = Store.connect()
    version = store.version(request.name, request.version)
    target = _target(request, store)
    candidate = store.contender(version)
    registry = Registry(plugins)
    gates, gates_from = settings(request.gates, request.gates_from, store, candidate)
    chosen = chosen_gates(registry, gates, place=gates_from)
    candidate = replace(candidate, aims=candidate.aims or aims(candidate, registry))
    champion, notes = _champion(target, store), []
    blank = Decision(
        outcome="champion already",
        name=candidate.name,
        version=candidate.version,
        alias=request.to,
        champion=target.standing.champion,
        by=request.by,
        at_ms=request.now_ms,
        run_id=candidate.run_id if candidate.status else "",
        judged=(),
        gates=gates,
        gates_from=gates_from,
        target=request.copy_to,
    )
    if champion and same(candidate, champion, request):
        return blank
    check_scores(gates, (candidate, champion), place=gates_from)
    if champion and rescore.needed(candidate, champion, gates):
        pair = rescore.Pair(candidate=candidate, champion=champion, store=store, champion_store=target.store)
        champion, note = rescore.champion(pair, plugins=plugins, progress=progress)
        notes.append(note)
    about = Candidacy(
        alias=request.to,
        candidate=candidate,
        champion=champion,
        preference=_preference(candidate, champion, store, target) if gates.preferred_by_people else None,
        now_ms=request.now_ms,
    )
    judged = judge(chosen, about, gates.knowing(registry.lower_is_better))
    decision = replace(blank, judged=judged, notes=tuple(notes), error=_without_files(candidate, store))
    return conclude(decision, request, store, target)


def _target(request: PromotionRequest, store: Store) -> Target:
    from mlflow_ft.tracking import Store

    target = Store.connect(request.registry) if request.registry else store
    model = request.copy_to or request.name
    ledger = target.ledger(model, request.to)
    if request.copy_to and not request.dry_run:
        target.ensure_model(request.copy_to)
    standing = ledger.standing() if request.dry_run else ledger.settled(now_ms=request.now_ms)
    return Target(store=target, model=model, ledger=ledger, standing=standing)


def _champion(target: Target, store: Store) -> Contender | None:
    if target.standing.champion is None:
        return None
    holder = target.store.version(target.model, str(target.standing.champion))
    return target.store.contender(holder, elsewhere=store)


def _preference(candidate: Contender, champion: Contender | None, store: Store, target: Target) -> Preference | None:
    from mlflow_ft.operations.promoting import people

    return people.preference(candidate, champion, store, target.store) if champion else None


def _without_files(candidate: Contender, store: Store) -> RefusedError | None:
    """The error of a version whose files are gone: nothing could serve it, whatever the gates say."""
    try:
        store.check_files(candidate.name, candidate.version)
    except RefusedError as error:
        return error
    return None


def same(candidate: Contender, champion: Contender, request: PromotionRequest) -> bool:
    """Whether the champion is the candidate or a copy of it."""
    if request.copy_to:
        return champion.tags.get(COPIED_FROM) == f"models:/{candidate.name}/{candidate.version}"
    return champion.version == candidate.version


def conclude(decision: Decision, request: PromotionRequest, store: Store, target: Target) -> Decision:
    """Record the decision, then move the alias, then record the outcome.

    The evidence is recorded first: no alias moves without it.

    Raises:
        UndeliveredError: the outcome could not be recorded.
    """
    ready = decision.passed and decision.error is None
    if request.dry_run:
        return replace(decision, outcome="would be promoted" if ready else "would be refused")
    outcome: Outcome = "about to move" if ready else "refused"
    decision = decision_record.write(store, replace(decision, outcome=outcome), request)
    if not ready:
        decision_record.tag(store, decision)
        return decision
    decision = move(decision, request, store, target)
    try:
        decision = decision_record.write(store, decision, request)
        decision_record.tag(store, decision)
        if decision.copied is not None:
            decision_record.tag(target.store, replace(decision, name=request.copy_to, version=decision.copied))
    except TrackingError as error:
        raise UndeliveredError(
            f"{decision.name} version {decision.version}: {decision.outcome}; but {error.message}",
            hint=f"`mlflow-ft history` shows what moved; the evidence is in {decision.artifact or 'no run'}",
        ) from error
    return decision


def move(decision: Decision, request: PromotionRequest, store: Store, target: Target) -> Decision:
    """Copy the version if requested, and move the alias; what prevents this becomes the decision's error."""
    number = decision.version
    if request.copy_to:
        try:
            number = store.copy(decision.name, decision.version, to=request.copy_to, store=target.store)
        except (RefusedError, ModelError) as error:
            return replace(decision, outcome="refused", error=error)
        decision = replace(decision, copied=number)
    try:
        move = target.ledger.move(
            number,
            kind="promote",
            standing=target.standing,
            by=request.by,
            reason=decision.reason,
            decision=decision.artifact,
        )
    except RefusedError as error:
        return replace(decision, outcome="came too late", error=error)
    return replace(decision, outcome="promoted", number=move.number)


def aims(candidate: Contender, registry: Registry) -> tuple[str, ...]:
    """The scores that the candidate's method optimises, if its run did not record them."""
    method = candidate.params.get("cfg.method", "")
    return registry.trainers[method].scores if method in registry.trainers else ()


def judge(chosen: Sequence[Gate], about: Candidacy, gates: Gates) -> tuple[Judged, ...]:
    """The verdicts of all gates; a gate that raises has not passed, and does not stop the others.

    Raises:
        ConfigError: no gate judged anything, or all were waived.
    """
    judged = [
        Judged(gate=gate.name, verdict=verdict, waived=gates.waive.get(gate.name, ""))
        for gate in chosen
        for verdict in verdicts(gate, about, gates)
    ]
    if not any(judgement.result in ("pass", "fail") for judgement in judged):
        verdict_list = ", ".join(
            f"{judgement.name} ({'waived' if judgement.waived else judgement.verdict.found})" for judgement in judged
        )
        raise ConfigError(
            f"these gates check nothing, and a promotion needs evidence: {verdict_list}",
            hint="set one of require, min_scores, max_scores, beats_champion, max_regression, max_age_days",
        )
    return tuple(judged)


def verdicts(gate: Gate, about: Candidacy, gates: Gates) -> Sequence[Verdict]:
    """The verdicts of one gate; an exception fails it with the message as verdict; no verdict is an abstention."""
    try:
        return gate.judge(about, gates) or [Verdict.abstain("it has no verdict on this model")]
    except Exception as error:  # a third-party gate must not hide the other verdicts
        message = error.message if isinstance(error, FineTuneError) else brief(error, with_type=True)
        return [Verdict(passed=False, found=message.splitlines()[0], wanted="a verdict")]

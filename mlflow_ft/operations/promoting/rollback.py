"""A rollback: the alias goes back to the previous champion, without gates; the reason is recorded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlflow_ft.errors import RefusedError
from mlflow_ft.operations.promoting.decision_record import TAG

if TYPE_CHECKING:
    from mlflow_ft.tracking.promotion import Move


@dataclass(frozen=True, kw_only=True)
class Returned:
    """An alias that was moved back."""

    move: Move
    name: str


def rollback(name: str, *, alias: str, reason: str, by: str, now_ms: int, to: int | None = None) -> Returned:
    """Move the alias back to the previous champion, or to `to`, without gates; the reason is recorded.

    Raises:
        ModelError: there is no such model or version. RefusedError: there was no champion before, its files are gone,
        or another move is in progress.
    """
    from mlflow_ft.tracking import Store, vanished

    vanished.reap_quietly()
    store = Store.connect()
    versions = store.versions(name)
    ledger = store.ledger(name, alias)
    standing = ledger.settled(now_ms=now_ms)
    if standing.champion is None:
        raise RefusedError(f"{name} has no {alias} to roll back", hint="promote a version first")
    earlier = [version for version in standing.earlier if version in versions]
    if to is not None and to not in versions:
        store.version(name, str(to))  # raises, and lists the versions
    if to is None and not earlier:
        raise RefusedError(
            f"{name} version {standing.champion} is the first {alias}: there is no earlier one",
            hint="promote another version, or name a version with --to",
        )
    target = earlier[0] if to is None else to
    if target == standing.champion:
        raise RefusedError(f"version {target} is already the {alias} of {name}", hint="nothing was moved")
    store.check_files(name, target)
    move = ledger.move(target, kind="rollback", standing=standing, by=by, reason=reason)
    outcome = {"": "rolled back", ".rolled_back_by": by, ".rolled_back_reason": reason}
    store.tag_version(name, standing.champion, {f"{TAG}{alias}{key}": value for key, value in outcome.items()})
    return Returned(move=move, name=name)

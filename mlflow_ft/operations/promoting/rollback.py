"""A rollback: the alias goes back to the champion before; no gate is asked, the reason is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlflow_ft.errors import RefusedError
from mlflow_ft.operations.promoting.moving import LONGEST, TAG

if TYPE_CHECKING:
    from mlflow_ft.tracking.promotion import Move


@dataclass(frozen=True, kw_only=True)
class Returned:
    """An alias that went back to the champion before."""

    move: Move
    name: str


def rollback(name: str, *, alias: str, reason: str, by: str, now_ms: int, to: int | None = None) -> Returned:
    """Move the alias back to the champion before, or to `to`; no gate is asked, the reason is kept.

    Raises:
        ModelError: there is no such model or version. RefusedError: there was no champion before; a move is under way.
    """
    from mlflow import MlflowClient

    from mlflow_ft import tracking
    from mlflow_ft.tracking import contenders
    from mlflow_ft.tracking.promotion import Ledger

    tracking.check_server()
    client = MlflowClient()
    contenders.find_model(client, name)
    ledger = Ledger(client, name, alias)
    standing = ledger.settled(now_ms=now_ms)
    if standing.champion is None:
        raise RefusedError(f"{name} has no {alias} to take back", hint="promote a version first")
    there = contenders.numbers(client, name)
    earlier = [version for version in standing.earlier if version in there]
    if to is not None and to not in there:
        contenders.find_version(client, name, str(to))  # it raises, and tells which there are
    if to is None and not earlier:
        raise RefusedError(
            f"{name} version {standing.champion} is the first {alias}: there was none before",
            hint="promote another version, or name one with --to",
        )
    target = earlier[0] if to is None else to
    if target == standing.champion:
        raise RefusedError(f"version {target} is the {alias} of {name} already", hint="nothing was moved")
    move = ledger.move(target, kind="rollback", standing=standing, by=by, reason=reason)
    with tracking.told(f"tag {name} version {standing.champion}"):
        for key, value in (("", "rolled back"), (".rolled_back_by", by), (".rolled_back_reason", reason)):
            client.set_model_version_tag(name, str(standing.champion), f"{TAG}{alias}{key}", value[:LONGEST])
    return Returned(move=move, name=name)

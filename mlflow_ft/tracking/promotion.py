"""An append-only record of an alias's moves, in which only one of two concurrent moves counts.

MLflow moves an alias without a precondition and keeps no history. So every move is first appended as a version of the
registered model `NAME.promotions`: version numbers are unique and in commit order, and a version's tags are written
with it. A move names the last move that it has seen and counts only if no other move that counts came in between, so
every reader of the record agrees on which moves count. Only then does the process that made the move set the alias.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TypeVar
from uuid import uuid4

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from mlflow.exceptions import MlflowException
from mlflow.utils.validation import _validate_model_alias_name, _validate_model_alias_name_reserved

from mlflow_ft.errors import ConfigError, RefusedError, TrackingError
from mlflow_ft.tracking.models import ensure_registered_model, set_alias
from mlflow_ft.tracking.server import told

SUFFIX = ".promotions"
TAG = "mlflow_ft.move."
ABOUT = "Every alias move of this model, one per version; written by `mlflow-ft promote` and `mlflow-ft rollback`."
UNFINISHED_MS = 120_000
"""After this long, the process of a move whose alias was not set is assumed dead, and the move is completed."""
TRIES = 12
LONGEST = 4000

Answer = TypeVar("Answer")


@dataclass(frozen=True, kw_only=True)
class Move:
    """One line of the record."""

    number: int
    kind: str
    """`promote` or `rollback`."""
    alias: str
    before: int | None
    """The version that had the alias."""
    after: int
    by: str
    reason: str
    decision: str
    """The artifact URI of the evidence."""
    at_ms: int
    token: str
    seen: str
    """Token of the last move that counted when this one was prepared; "" if there was none."""
    done: bool
    """Whether the alias was set."""
    counts: bool = True
    """Whether it was the first one after the move that it had seen."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """The alias and the moves that led to it, at one moment."""

    champion: int | None
    moves: tuple[Move, ...]
    """The moves that count, oldest first."""

    @property
    def last(self) -> Move | None:
        return self.moves[-1] if self.moves else None

    @property
    def by_hand(self) -> bool:
        """Whether something other than the last move set the alias."""
        return bool(self.last and self.last.done and self.last.after != self.champion)

    @property
    def earlier(self) -> tuple[int, ...]:
        """The champions before the present one, latest first, without those that were rolled back."""
        line: list[int] = []
        for move in self.moves:
            if move.before is not None and line[-1:] != [move.before]:
                line.append(move.before)
            if move.kind == "rollback" and move.after in line:
                del line[line.index(move.after) + 1 :]
            elif line[-1:] != [move.after]:
                line.append(move.after)
        return tuple(dict.fromkeys(version for version in reversed(line) if version != self.champion))


class Ledger:
    """The moves of one alias of one registered model.

    Raises:
        ConfigError: MLflow does not allow such an alias, which must be known before a move is recorded.
    """

    def __init__(self, client: MlflowClient, name: str, alias: str) -> None:
        try:
            _validate_model_alias_name(alias)
            _validate_model_alias_name_reserved(alias)
        except MlflowException as error:
            raise ConfigError(
                f"{alias!r} cannot be an alias: {error.message}", hint="choose a name such as champion"
            ) from error
        self.client = client
        self.name = name
        self.alias = alias
        self.record = name + SUFFIX

    def standing(self) -> Standing:
        """The alias and its moves. The moves are read first: a move in between makes a later append fail.

        Raises:
            TrackingError: the server does not answer.
        """
        with told(f"read the promotions of {self.name}"):
            moves = tuple(move for move in self.attempts() if move.counts)
            model = self._model()
        number = model.aliases.get(self.alias) if model else None
        return Standing(champion=int(number) if number is not None else None, moves=moves)

    def _model(self) -> RegisteredModel | None:
        try:
            return self.client.get_registered_model(self.name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None  # the target of a copy may not exist yet

    def attempts(self) -> list[Move]:
        """Every recorded move of this alias, including those that do not count, oldest first.

        The moves of an earlier model of this name, which was deleted, are left out: its versions had the same numbers.
        """
        model = self._model()
        versions = [version for version in self._versions() if model and _is_of(version, model)]
        moves = sorted((_move(version) for version in versions), key=lambda move: move.number)
        return counted(move for move in moves if move.alias == self.alias)

    def _versions(self) -> Iterable[ModelVersion]:
        quote = '"' if "'" in self.record else "'"
        token = None
        while True:
            page = self.client.search_model_versions(f"name={quote}{self.record}{quote}", page_token=token)
            yield from (version for version in page if f"{TAG}token" in version.tags)
            token = page.token
            if not token:
                return

    def settled(self, *, now_ms: int) -> Standing:
        """The standing when no move is in progress; a move whose process died is completed.

        Raises:
            RefusedError: a move is in progress.
        """
        standing = self.standing()
        last = standing.last
        if last is None or last.done:
            return standing
        if now_ms - last.at_ms < UNFINISHED_MS:
            raise RefusedError(
                f"{last.by} is moving {self.alias} of {self.name} to version {last.after} right now",
                hint="nothing was moved; check `mlflow-ft history` and try again",
            )
        with told(f"complete the move of {self.alias} of {self.name} to version {last.after}"):
            # otherwise the alias has been moved by hand since, or the version was deleted
            if standing.champion in (last.before, last.after) and self._exists(last.after):
                self._set(last)
            self._mark(last)
        return self.standing()

    def _exists(self, version: int) -> bool:
        try:
            self.client.get_model_version(self.name, str(version))
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False
        return True

    def move(self, to: int, *, kind: str, standing: Standing, by: str, reason: str = "", decision: str = "") -> Move:
        """Append the move, and set the alias if the move counts.

        Raises:
            RefusedError: another move finished first; the alias was not changed.
            TrackingError: the server does not accept it.
        """
        tags = {
            "token": uuid4().hex,
            "seen": standing.last.token if standing.last else "",
            "alias": self.alias,
            "kind": kind,
            "before": "" if standing.champion is None else str(standing.champion),
            "after": str(to),
            "by": by,
            "reason": reason[:LONGEST],
            "decision": decision,
        }
        with told(f"record the move of {self.alias} of {self.name}"):
            if model := _again(self._model):
                tags["model"] = str(model.creation_timestamp)
            _again(lambda: ensure_registered_model(self.client, self.record, description=ABOUT))
            self._append(tags, to)
            move = next(move for move in _again(self.attempts) if move.token == tags["token"])
            if not move.counts:
                raise self._lost(to)
            self._set(move)
            if (last := _again(self.standing).last) and last.token != move.token:
                self._set(last)  # this process was suspended while another one completed this move and made the next
            self._mark(move)
        return move

    def _append(self, tags: dict[str, str], to: int) -> None:
        """Append exactly once, retrying while a busy store refuses."""

        def append() -> None:
            if not any(move.token == tags["token"] for move in self.attempts()):  # only the response may have been lost
                self.client.create_model_version(
                    self.record,
                    source=f"models:/{self.name}/{to}",
                    tags={f"{TAG}{key}": value for key, value in tags.items()},
                )

        _again(append)

    def _lost(self, to: int) -> RefusedError:
        last = _again(self.standing).last
        assert last is not None  # another move came first
        return RefusedError(
            f"{self.alias} of {self.name} was not moved to version {to}: {last.by} moved it to version {last.after} "
            "first",
            hint="see `mlflow-ft history`; to compare this version with the new champion, promote it again",
        )

    def _set(self, move: Move) -> None:
        _again(lambda: set_alias(self.client, name=self.name, alias=self.alias, version=str(move.after)))

    def _mark(self, move: Move) -> None:
        _again(lambda: self.client.set_model_version_tag(self.record, str(move.number), f"{TAG}done", "true"))


def counted(moves: Iterable[Move]) -> list[Move]:
    """Mark whether each move counts: it does if the last move that it has seen is the last one that counts."""
    last, marked = "", []
    for move in moves:
        counts = move.seen == last
        last = move.token if counts else last
        marked.append(replace(move, counts=counts))
    return marked


def _is_of(version: ModelVersion, model: RegisteredModel) -> bool:
    """Whether a recorded move is one of this model; those of early versions do not say so, but when they were made."""
    of = version.tags.get(f"{TAG}model")
    return of == str(model.creation_timestamp) if of else version.creation_timestamp >= model.creation_timestamp


def _move(version: ModelVersion) -> Move:
    tags = {key.removeprefix(TAG): value for key, value in version.tags.items() if key.startswith(TAG)}
    return Move(
        number=int(version.version),
        kind=tags["kind"],
        alias=tags["alias"],
        before=int(tags["before"]) if tags.get("before") else None,
        after=int(tags["after"]),
        by=tags.get("by", ""),
        reason=tags.get("reason", ""),
        decision=tags.get("decision", ""),
        at_ms=int(version.creation_timestamp),
        token=tags["token"],
        seen=tags.get("seen", ""),
        done=tags.get("done") == "true",
    )


def _again(call: Callable[[], Answer], *, sleep: Callable[[float], None] = time.sleep) -> Answer:
    """Call until the store accepts it: many concurrent calls lock SQLite, produce duplicate keys in PostgreSQL, or use
    up a server's connections.
    """
    for attempt in range(1, TRIES):
        try:
            return call()
        except (MlflowException, OSError, TrackingError):
            sleep(random.uniform(0.02, 0.1) * attempt)
    return call()

"""What requests are routed to: models of vLLM processes by name, which may change while requests are answered."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from mlflow_ft import ServedModel
from mlflow_ft_vllm.engine.form import VllmForm
from mlflow_ft_vllm.engine.process import VllmProcess
from mlflow_ft_vllm.engine.trained import Trained


@dataclass(eq=False, kw_only=True)
class Target:
    """A model, as a vLLM process serves it."""

    model: ServedModel
    process: VllmProcess
    id: str
    """Its name in vLLM, which answers carry: with the version's number, so that they tell what gave them."""
    trained: Trained
    adapter: bool
    answering: int = 0
    """Requests that it has not answered completely."""

    @property
    def form(self) -> VllmForm:
        """The model as vLLM serves it, to be compared."""
        return VllmForm(self.process, self.id, self.trained)


class UnknownModelError(KeyError):
    """A request names a model that is not served."""


class Targets:
    """Targets by name; the first is the default. Requests take them in one thread, another one changes them."""

    def __init__(self) -> None:
        self._by_name: dict[str, Target] = {}
        self._retired: list[Target] = []
        self._lock = threading.Lock()

    @property
    def names(self) -> Sequence[str]:
        return tuple(self._by_name)

    @property
    def by_name(self) -> dict[str, Target]:
        return dict(self._by_name)

    def find(self, name: str) -> Target | None:
        """The target of a name; a single model also has the registered model's name, without version or alias."""
        only = next(iter(self._by_name.values()))
        if len(self._by_name) == 1 and name == only.model.plain_name:
            return only
        return self._by_name.get(name)

    @contextmanager
    def taken(self, name: str | None) -> Iterator[Target]:
        """The target of a name, or the default; it stays loaded for the duration of the block.

        Raises:
            UnknownModelError: there is none of this name.
        """
        with self._lock:
            target = self.find(name) if name else next(iter(self._by_name.values()))
            if target is None:
                raise UnknownModelError(name)
            target.answering += 1
        try:
            yield target
        finally:
            with self._lock:
                target.answering -= 1

    def put(self, name: str, target: Target) -> None:
        """Route a name to a target from now on; the one before is retired."""
        with self._lock:
            if before := self._by_name.get(name):
                self._retired.append(before)
            self._by_name[name] = target

    def released(self) -> Sequence[Target]:
        """The retired targets that have answered their last request; each is returned once."""
        with self._lock:
            done = [target for target in self._retired if not target.answering]
            self._retired = [target for target in self._retired if target.answering]
        return done

    def in_use(self, process: object) -> bool:
        """Whether a process still has a target."""
        with self._lock:
            return any(target.process is process for target in (*self._by_name.values(), *self._retired))

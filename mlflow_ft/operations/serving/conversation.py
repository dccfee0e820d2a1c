"""A conversation with one model, or with two that are asked the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from mlflow_ft.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from mlflow_ft.engine.serving.loaded_models import Served


class Conversation:
    """Each model goes on from its own answers; a turn that came to nothing leaves no trace."""

    def __init__(self, served: Served, *, system: str | None, options: Mapping[str, Any]) -> None:
        if served.scores:
            raise ModelError("a reward model scores answers and gives none", hint="mlflow-ft serve MODEL, /invocations")
        self.served = served
        self.options = dict(options)
        self.start = [{"role": "system", "content": system}] if system else []
        self.reset()

    def reset(self) -> None:
        """Forget what was said; the system prompt stays."""
        self.said: dict[str, list[dict[str, str]]] = {name: list(self.start) for name in self.served.names}

    def ask(self, prompt: str, *, written: Callable[[str], None] | None = None) -> dict[str, str]:
        """The answer of every model. `written` gets the beginning of an answer that is sure, as it grows.

        Raises:
            ConfigError: the models cannot be asked so.
        """
        from mlflow.exceptions import MlflowException

        from mlflow_ft.engine.serving.loaded_models import settled

        def watch(text: str) -> None:
            if written:
                written(settled(text))

        turn = {"role": "user", "content": prompt}
        answers = {}
        for name, before in self.said.items():
            request = {**self.options, "messages": [*before, turn], "model": name}
            try:
                found = self.served.answer(request, watch=watch)
            except MlflowException as error:
                raise ConfigError(error.message) from error
            answers[name] = str(found["choices"][0]["message"]["content"])
        for name, answer in answers.items():
            self.said[name] += [turn, {"role": "assistant", "content": answer}]
        return answers

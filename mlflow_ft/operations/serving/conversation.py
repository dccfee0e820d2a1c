"""A conversation with one model, or with two that get the same prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from mlflow_ft.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from mlflow_ft.engine.serving.loaded_models import Served


class Conversation:
    """Each model continues from its own answers; a turn that fails is not kept."""

    def __init__(self, served: Served, *, system: str | None, options: Mapping[str, Any]) -> None:
        if served.scores:
            raise ModelError(
                "a reward model scores answers and generates none", hint="mlflow-ft serve MODEL, /invocations"
            )
        self.served = served
        self.options = dict(options)
        self.start = [{"role": "system", "content": system}] if system else []
        self.reset()

    def reset(self) -> None:
        """Forget the conversation, except the system prompt."""
        self.turns: dict[str, list[dict[str, str]]] = {name: list(self.start) for name in self.served.names}

    def ask(self, prompt: str, *, written: Callable[[str], None] | None = None) -> dict[str, str]:
        """The answer of every model. `written` is called with the settled beginning of an answer as it grows.

        Raises:
            ConfigError: the models cannot answer such a request.
        """
        from mlflow.exceptions import MlflowException

        from mlflow_ft.engine.serving.loaded_models import settled

        def watch(text: str) -> None:
            if written:
                written(settled(text))

        turn = {"role": "user", "content": prompt}
        answers = {}
        for name, before in self.turns.items():
            request = {**self.options, "messages": [*before, turn], "model": name}
            try:
                response = self.served.answer(request, watch=watch)
            except MlflowException as error:
                raise ConfigError(error.message) from error
            answers[name] = str(response["choices"][0]["message"]["content"])
        for name, answer in answers.items():
            self.turns[name] += [turn, {"role": "assistant", "content": answer}]
        return answers

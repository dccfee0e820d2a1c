"""The two models, the prompts of the rows, and the answers of both, one model in memory at a time."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlflow_ft.config.schema import Config
from mlflow_ft.data import sources
from mlflow_ft.data.reading.readers import Unreadable
from mlflow_ft.errors import ConfigError, DataError, ModelError
from mlflow_ft.manifest import weights_digest
from mlflow_ft.operations.comparing.pairs import Asked, Comparison, Contestant, Pair, Prompt, sides
from mlflow_ft.operations.serving import served_models
from mlflow_ft.plugins import Plugins
from mlflow_ft.preparing import one_pass
from mlflow_ft.progress import Progress
from mlflow_ft.registry import Registry
from mlflow_ft.rows import Example
from mlflow_ft.values import ServedModel

if TYPE_CHECKING:
    from mlflow_ft.engine.serving.chat_model import ChatModel


@dataclass(frozen=True, kw_only=True)
class Models:
    """The two models with their files, in the order in which they were named."""

    first: ServedModel
    second: ServedModel

    @property
    def contestants(self) -> tuple[Contestant, Contestant]:
        """The same as a run records them."""
        return contestant(self.first), contestant(self.second)


def contestant(model: ServedModel) -> Contestant:
    """A model as a run records it."""
    return Contestant(uri=model.uri, weights=weights_digest(model.folder))


def find(first: str, second: str, *, base: str | None, progress: Progress) -> Models:
    """Both models.

    Raises:
        ModelError: one does not exist. ConfigError: both are the same. TrackingError: the server does not answer.
    """
    models = Models(
        first=served_models.found(first, base=base, progress=progress),
        second=served_models.found(second, base=base, progress=progress),
    )
    one, other = models.contestants
    if one.uri == other.uri or (one.weights and one.weights == other.weights):
        same = f"both {one.uri}" if one.uri == other.uri else f"{one.uri} and {other.uri}, with the same weights"
        raise ConfigError(
            f"{first} and {second} are {same}: there is nothing to compare",
            hint="name two versions; `mlflow-ft history NAME` lists those that were champion",
        )
    return models


def prompts(config: Config, *, plugins: Plugins, progress: Progress) -> list[Prompt]:
    """The prompts of all rows that have one: what comes before the last answer; the same prompt once.

    Raises:
        DataError: a source is missing, empty or of unknown format, or a row cannot be read.
    """
    paths, _ = sources.paths(config.data)
    opened = one_pass.open_sources(paths, config.data, plugins=plugins, registry=Registry(plugins))
    found: dict[str, Prompt] = {}
    for source in opened:
        for sentence in source.sentences:
            progress.say(sentence)
        for row in source.examples(config.data):
            if isinstance(row, Unreadable):
                raise DataError(f"{row.place}  {row.reason}", hint="`mlflow-ft data check` lists every such row")
            if _answerable(row[1]):
                prompt = Prompt(place=row[0].place, messages=[*map(dict, row[1].prompt)], tools=row[1].tools)
                found.setdefault(repr((prompt.messages, prompt.tools)), prompt)
    return list(found.values())


def _answerable(example: Example) -> bool:
    """Whether the prompt is there, and ends with a turn that is to be answered."""
    return bool(example.prompt) and example.prompt[-1]["role"] not in ("system", "assistant")


def answer(asked: Asked, models: Models, progress: Progress) -> Comparison:
    """Ask both models everything; a row that one of them cannot answer is left out and said.

    Raises:
        ModelError: a model gives no answers. DataError: no row can be answered by both.
    """
    answers = [_answers(model, asked, progress) for model in (models.first, models.second)]
    pairs, left_out = [], []
    drawn = sides(len(asked.prompts), seed=asked.seed)
    for prompt, left, first, second in zip(asked.prompts, drawn, *answers, strict=True):
        if isinstance(first, str) and isinstance(second, str):
            pairs.append(Pair(prompt=prompt, first=first, second=second, left=left))
            continue
        reason = first if isinstance(first, Exception) else second
        left_out.append(prompt.place)
        progress.warn(f"{prompt.place} is left out, it cannot be answered: {getattr(reason, 'message', reason)}")
    if not pairs:
        raise DataError("no row can be answered by both models", hint="the warnings above say why")
    return Comparison(
        first=asked.first,
        second=asked.second,
        seed=asked.seed,
        options=asked.options,
        pairs=pairs,
        left_out=left_out,
    )


def _answers(model: ServedModel, asked: Asked, progress: Progress) -> list[str | Exception]:
    import torch

    from mlflow_ft.engine.serving import opening

    chat: ChatModel = opening.alone(model, progress)
    if chat.scores:
        raise ModelError(f"{model.uri} is a reward model, which generates no answers", hint="name models that chat")
    answers: list[str | Exception] = []
    with progress.bar(f"answers of {model.uri}", total=len(asked.prompts), unit="rows") as bar:
        for prompt in asked.prompts:
            answers.append(_answer(chat, prompt, asked.options))
            bar.advance()
    del chat
    gc.collect()
    torch.cuda.empty_cache()
    return answers


def _answer(chat: ChatModel, prompt: Prompt, options: Mapping[str, Any]) -> str | Exception:
    """The answer, or why there is none."""
    import torch
    from mlflow.exceptions import MlflowException

    torch.manual_seed(options["seed"])
    request = {"messages": list(prompt.messages), "tools": prompt.tools, **options}
    try:
        response = chat.complete({name: value for name, value in request.items() if value is not None})
    except MlflowException as error:
        return error
    return str(response["choices"][0]["message"]["content"])

"""Models that answer by name: one alone, or one base in memory with several adapters on it."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from mlflow_ft.engine.adapters import fitting
from mlflow_ft.engine.hub import quiet_transformers
from mlflow_ft.engine.models import generation, loading
from mlflow_ft.engine.tokens import room
from mlflow_ft.errors import ConfigError, RefusedError, brief

with warnings.catch_warnings(record=True):  # MLflow wants another type in `predict`; recording wins over its own filter
    from mlflow_ft.engine.serving import chat_model
    from mlflow_ft.engine.serving.chat_model import ChatModel

BASE = "base"
"""The name of the model without an adapter."""
PROBE = 32
"""Tokens of the text on which a shared base is compared with itself."""
SAME = 1e-4
"""How far apart two logits of one model may be: the same kernels on the same numbers give the same bits on a CPU."""

Watch = Callable[[str], object]
"""Gets the text of an answer so far, after every token; the answer ends where it returns something true."""


class UnknownModelError(ConfigError):
    """A request names a model that is not served."""


@dataclass(frozen=True, kw_only=True)
class AdapterFolder:
    """An adapter to put on a base."""

    weights: Path
    tokenizer: Path
    """The folder whose tokenizer, template and end tokens go with it: its own, or its base's."""


class Served:
    """Models by name, the first the default. Requests are answered one after another, whoever asks."""

    def __init__(self, chats: Mapping[str, ChatModel]) -> None:
        self._chats = dict(chats)
        self._lock = threading.Lock()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._chats)

    @property
    def scores(self) -> bool:
        """Whether these are reward models, which score conversations and answer none."""
        return any(chat.scores for chat in self._chats.values())

    def name_of(self, request: Mapping[str, Any]) -> str:
        """Which model a request is for.

        Raises:
            UnknownModelError: it names one that is not there.
        """
        name = request.get("model") or self.names[0]
        if name not in self._chats:
            raise UnknownModelError(f"there is no model {name!r}; available models: {', '.join(self.names)}")
        return str(name)

    def answer(self, request: dict[str, Any], *, watch: Watch | None = None) -> dict[str, Any]:
        """An OpenAI chat completion, or the score of a reward model; `model` is the name of who answered.

        Raises:
            UnknownModelError: `model` names one that is not there. MlflowException: the request is wrong.
        """
        name = self.name_of(request)
        chat = self._chats[name]
        seed = request.get("seed")
        if seed is not None and not isinstance(seed, int):
            raise chat_model.refused(f"`seed` is {seed!r}; it must be a whole number")
        with self._lock, self._chosen(name):
            if seed is not None:
                torch.manual_seed(seed)
            if chat.scores:
                return chat.score(request)
            return chat.complete(request, watch) | {"model": name}

    @contextmanager
    def _chosen(self, name: str) -> Iterator[None]:
        yield


class Shared(Served):
    """Adapters of one base; the base without any answers to the name `base`, by the template of the first."""

    def __init__(self, module: PeftModel, chats: Mapping[str, ChatModel]) -> None:
        super().__init__({**chats, BASE: _of_base(next(iter(chats.values())))})
        self._module = module
        self._keys = {name: _key(number) for number, name in enumerate(chats)}

    @contextmanager
    def _chosen(self, name: str) -> Iterator[None]:
        if name == BASE:
            with self._module.disable_adapter():
                yield
        else:
            self._module.set_adapter(self._keys[name])
            yield


def share(
    base: Path, note: Mapping[str, Any], adapters: Mapping[str, AdapterFolder], *, say: fitting.Say = fitting.nobody
) -> Shared:
    """Load a base model once, as `note` (an adapter's `base.json`) says, and put every adapter on it.

    What is served is what each adapter is alone: after each step the base without adapters, and every adapter that
    was there before, must give the logits that they gave.

    Raises:
        ModelError: an adapter does not fit the base. ConfigError: PEFT cannot hold these adapters on one model.
        RefusedError: one changes the base, or another one.
    """
    with quiet_transformers():
        model: Any = chat_model.load_base(str(base), dict(note), **generation.for_loading(base))
    model.eval()
    length = min(PROBE, room.positions(model) or PROBE)
    probe = torch.arange(length, device=model.device)[None] * 7 % model.get_input_embeddings().weight.shape[0]
    bare = _logits(model, probe)
    module: Any = None
    seen: dict[str, torch.Tensor] = {}
    for number, (name, adapter) in enumerate(adapters.items()):
        module = _put(module or model, adapter.weights, _key(number), name=name, say=say)
        with module.disable_adapter():
            _hold(bare, _logits(module, probe), f"adapter {name!r} changes the shared base")
        for earlier, logits in seen.items():
            module.set_adapter(earlier)
            _hold(logits, _logits(module, probe), f"adapter {name!r} changes the output of another adapter")
        module.set_adapter(_key(number))
        seen[_key(number)] = _logits(module, probe)
    chats = {name: ChatModel() for name in adapters}
    for name, chat in chats.items():
        chat.adopt(module, adapters[name].tokenizer)
    return Shared(module, chats)


def settled(text: str, stop: str | list[str] | None = None) -> str:
    """What of an answer will stay as it is, whatever comes: nothing that a stop text or half a letter may be part of.

    Every one of these is the beginning of the next, and of the answer.
    """
    stops = [stop] if isinstance(stop, str) else stop or []
    if not any(one in text for one in stops):
        text = text.rstrip("\ufffd")
        held = (size for one in stops for size in range(1, len(one)) if text.endswith(one[:size]))
        text = text[: len(text) - max(held, default=0)]
    return chat_model.shown(text, stops)


def _put(module: Any, folder: Path, key: str, *, name: str, say: fitting.Say) -> Any:
    try:
        with loading.quiet_peft():
            return fitting.put_on(module, folder, key=key, say=lambda text: say(f"adapter {name!r}: {text}")).eval()
    except fitting.UnattachedError as error:
        raise ConfigError(
            f"adapter {name!r} cannot be loaded onto the base with the others: {brief(error.__cause__ or error)}",
            hint="serve it by itself: mlflow-ft serve MODEL",
        ) from error


@torch.no_grad()
def _logits(module: Any, probe: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = module(input_ids=probe, attention_mask=torch.ones_like(probe)).logits.float()
    return found


def _hold(wanted: torch.Tensor, found: torch.Tensor, what: str) -> None:
    apart = float((wanted - found).abs().max())
    if not apart <= SAME:
        raise RefusedError(
            f"{what}: the logits differ by {apart:.3g}", hint="serve it by itself: mlflow-ft serve MODEL"
        )


def _of_base(chat: ChatModel) -> ChatModel:
    """The base is asked in the words that the adapter was trained on, and may end as either does."""
    bare = ChatModel()
    bare.model, bare.tokenizer, bare.scores = chat.model, chat.tokenizer, chat.scores
    own = loading.token_ids(chat.model.get_base_model().generation_config.eos_token_id)
    bare.end_tokens = list(dict.fromkeys((*chat.end_tokens, *own)))
    return bare


def _key(number: int) -> str:
    """PEFT's name of an adapter, in which a user's might not be allowed."""
    return f"served{number}"

"""Several models by name in one process: a single model, or one base in memory with several adapters."""

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

with warnings.catch_warnings(record=True):  # MLflow warns of the type in `predict`, whatever filters are set
    from mlflow_ft.engine.serving import chat_model
    from mlflow_ft.engine.serving.chat_model import ChatModel

BASE = "base"
"""The name of the model without an adapter."""
PROBE = 32
"""Tokens of the text with which a shared base is compared with itself."""
SAME = 1e-4
"""Largest difference of two logits of one model: on a CPU, the same kernels on the same numbers give the same bits."""

SEEDS = range(-(2**63), 2**64)
"""What torch takes."""
Watch = Callable[[str], object]
"""Gets the text of an answer so far, after every token; the answer ends when it returns something true."""


class UnknownModelError(ConfigError):
    """A request names a model that is not served."""


@dataclass(frozen=True, kw_only=True)
class AdapterFolder:
    """An adapter to load onto a base."""

    weights: Path
    tokenizer: Path
    """The folder with its tokenizer, template and end tokens: its own, or its base's."""


class Served:
    """Models by name; the first is the default. Requests are answered one after another."""

    def __init__(self, chats: Mapping[str, ChatModel], *, plain_name: str = "") -> None:
        """`plain_name` is another name of a single model: that of the registered model, whatever its version."""
        self._chats = dict(chats)
        self._plain_name = plain_name if len(self._chats) == 1 else ""
        self._lock = threading.Lock()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._chats)

    @property
    def scores(self) -> bool:
        """Whether these are reward models, which score conversations and do not answer."""
        return any(chat.scores for chat in self._chats.values())

    def name_of(self, request: Mapping[str, Any]) -> str:
        """Which model a request is for.

        Raises:
            UnknownModelError: it names a model that is not served.
        """
        name = request.get("model") or self.names[0]
        if not isinstance(name, str):
            raise chat_model.refused(f"`model` is {name!r}; it must be a text")
        if name == self._plain_name:
            return self.names[0]
        if name not in self._chats:
            raise UnknownModelError(f"there is no model {name!r}; available models: {', '.join(self.names)}")
        return str(name)

    def answer(self, request: dict[str, Any], *, watch: Watch | None = None) -> dict[str, Any]:
        """An OpenAI chat completion, or the score of a reward model; `model` in it is the model's name.

        Raises:
            UnknownModelError: `model` names one that is not served. MlflowException: the request is invalid.
        """
        name = self.name_of(request)
        chat = self._chats[name]
        seed = request.get("seed")
        if seed is not None and not (type(seed) is int and seed in SEEDS):
            raise chat_model.refused(f"`seed` is {seed!r}; it must be a whole number of 64 bits")
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
    """Adapters of one base. The base without an adapter has the name `base`, and the first adapter's template."""

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
    base: Path, note: Mapping[str, Any], adapters: Mapping[str, AdapterFolder], *, say: fitting.Say = fitting.silent
) -> Shared:
    """Load a base model once, as described by `note` (an adapter's `base.json`), and every adapter onto it.

    Each adapter must give the outputs that it gives alone: after each step, the logits of the base without adapters
    and of every earlier adapter must be unchanged.

    Raises:
        ModelError: an adapter does not fit the base. ConfigError: PEFT cannot hold these adapters on one model.
        RefusedError: an adapter changes the base, or another adapter.
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
    """The part of an answer that later tokens cannot change: without a possible stop text or incomplete character.

    Each result is a prefix of the next one, and of the final answer.
    """
    stops = [stop] if isinstance(stop, str) else stop or []
    if not any(stop_text in text for stop_text in stops):
        text = text.rstrip("\ufffd")
        held = (size for stop_text in stops for size in range(1, len(stop_text)) if text.endswith(stop_text[:size]))
        text = text[: len(text) - max(held, default=0)]
    return chat_model.shown(text, stops)


def _put(module: Any, folder: Path, key: str, *, name: str, say: fitting.Say) -> Any:
    try:
        with loading.quiet_peft():
            return fitting.put_on(module, folder, key=key, say=lambda text: say(f"adapter {name!r}: {text}")).eval()
    except fitting.UnattachedError as error:
        raise ConfigError(
            f"adapter {name!r} cannot be loaded onto the base with the others: {brief(error.__cause__ or error)}",
            hint="serve it separately: mlflow-ft serve MODEL",
        ) from error


@torch.no_grad()
def _logits(module: Any, probe: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = module(input_ids=probe, attention_mask=torch.ones_like(probe)).logits.float()
    return logits


def _hold(wanted: torch.Tensor, logits: torch.Tensor, problem: str) -> None:
    difference = float((wanted - logits).abs().max())
    if not difference <= SAME:
        raise RefusedError(
            f"{problem}: the logits differ by {difference:.3g}", hint="serve it separately: mlflow-ft serve MODEL"
        )


def _of_base(chat: ChatModel) -> ChatModel:
    """The base with the adapter's template and the end tokens of both."""
    bare = ChatModel()
    bare.model, bare.tokenizer, bare.scores = chat.model, chat.tokenizer, chat.scores
    own = loading.token_ids(chat.model.get_base_model().generation_config.eos_token_id)
    bare.end_tokens = list(dict.fromkeys((*chat.end_tokens, *own)))
    return bare


def _key(number: int) -> str:
    """PEFT's name of an adapter, in which a user's might not be allowed."""
    return f"served{number}"

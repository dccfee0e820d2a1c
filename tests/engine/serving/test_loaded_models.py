"""Adapters on one base give the same outputs as alone; those that cannot share a base are refused."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from mlflow_ft.engine.serving import chat_model, loaded_models
from mlflow_ft.errors import ConfigError, RefusedError

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning", "ignore:.*:FutureWarning")
NOTE = {"dtype": "float32", "quantization": None, "revision": None}
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "lora": (peft.LoraConfig, {"r": 4, "target_modules": "all-linear"}),
    "lora on one": (peft.LoraConfig, {"r": 8, "lora_alpha": 32, "target_modules": ["q_proj"], "use_rslora": True}),
    "dora": (peft.LoraConfig, {"r": 4, "use_dora": True, "target_modules": ["v_proj"]}),
    "head": (peft.LoraConfig, {"r": 4, "target_modules": ["q_proj"], "modules_to_save": ["lm_head", "norm"]}),
    "embeddings": (peft.LoraConfig, {"r": 4, "target_modules": ["embed_tokens", "lm_head"]}),
    "tokens": (peft.LoraConfig, {"r": 4, "target_modules": ["q_proj"], "trainable_token_indices": [5, 6]}),
    "other tokens": (peft.LoraConfig, {"r": 4, "target_modules": ["k_proj"], "trainable_token_indices": [7]}),
    "ia3": (peft.IA3Config, {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]}),
    "oft": (peft.OFTConfig, {"r": 4, "oft_block_size": 0, "target_modules": ["q_proj"]}),
    "vera": (peft.VeraConfig, {"r": 8, "target_modules": ["q_proj"]}),
    "norms": (peft.LNTuningConfig, {"target_modules": ["input_layernorm", "norm"]}),
    "prompt": (peft.PromptTuningConfig, {"num_virtual_tokens": 4}),
    "longer prompt": (peft.PromptTuningConfig, {"num_virtual_tokens": 8}),
    "prefix": (peft.PrefixTuningConfig, {"num_virtual_tokens": 4}),
    "adaption": (peft.AdaptionPromptConfig, {"adapter_len": 4, "adapter_layers": 2}),
}


@pytest.fixture(scope="module")
def base(learned: SimpleNamespace) -> Path:
    """A model that knows its rows, with its tokenizer."""
    folder: Path = learned.trained.model
    learned.bench.data.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`adapter("lora", 2)`: an adapter that changes the model, and another one by another number."""
    root = tmp_path_factory.mktemp("adapters")

    def make(kind: str, seed: int = 1, **more: Any) -> Path:
        folder = root / f"{kind} {seed} {json.dumps(more)}"
        if not folder.exists():
            config, settings = KINDS[kind]
            torch.manual_seed(seed)
            model = get_peft_model(load(base), config(task_type="CAUSAL_LM", **(settings | more)))
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.data += torch.randn_like(parameter) * 0.1
            model.save_pretrained(folder)
        return folder

    return make


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def share(base: Path, note: dict[str, Any] | None = None, **adapters: Path) -> loaded_models.Shared:
    folders = {name: loaded_models.AdapterFolder(weights=folder, tokenizer=base) for name, folder in adapters.items()}
    return loaded_models.share(base, note or NOTE, folders)


def request(prompt: str = "blue lamp green", **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": prompt}], "max_tokens": 12, **more}


def said(answer: dict[str, Any]) -> str:
    return str(answer["choices"][0]["message"]["content"])


def alone(base: Path, folder: Path | None, note: dict[str, Any] | None = None) -> Any:
    """A single model with its own base."""
    model = chat_model.load_base(str(base), dict(note or NOTE))
    chat = loaded_models.ChatModel()
    chat.adopt(PeftModel.from_pretrained(model, folder) if folder else model, base)
    return chat


PAIRS = [
    *((kind, kind) for kind in KINDS),
    *(("lora", kind) for kind in ("lora on one", "dora", "head", "embeddings")),
    *(("dora", "lora"), ("head", "lora on one"), ("tokens", "other tokens"), ("prompt", "longer prompt")),
]


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_two_that_share_a_base_are_what_they_are_alone(
    base: Path, adapter: Callable[..., Path], first: str, second: str
) -> None:
    folders = {"a": adapter(first, 1), "b": adapter(second, 2)}
    served = share(base, **folders)
    assert served.names == ("a", "b", "base")
    logits = {}
    for name in ("a", "b", "base", "a"):
        model = alone(base, folders.get(name))
        with served._chosen(name), torch.no_grad():
            ids = torch.arange(4, 30)[None]
            logits[name] = served._module(input_ids=ids).logits
            assert torch.equal(logits[name], model.model(input_ids=ids).logits)
        for prompt in ("blue lamp green", "red door"):
            assert said(served.answer(request(prompt, model=name))) == said(model.complete(request(prompt)))
    tail = {name: shared_logits[:, -1] for name, shared_logits in logits.items()}  # a learned prompt comes first
    assert not torch.equal(tail["a"], tail["b"])
    assert not torch.equal(tail["a"], tail["base"])


def test_on_a_base_in_4_bits(base: Path, adapter: Callable[..., Path]) -> None:
    note = NOTE | {"quantization": NF4}
    folders = {"a": adapter("lora", 1), "b": adapter("dora", 2)}
    served = share(base, note, **folders)
    assert any(type(parameter).__name__ == "Params4bit" for parameter in served._module.parameters())
    for name in ("b", "base", "a"):
        model = alone(base, folders.get(name), note)
        assert said(served.answer(request(model=name))) == said(model.complete(request()))


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ("lora", "ia3", "different peft types"),
        ("lora", "prompt", "different peft types"),
        ("prompt", "prefix", "different peft types"),
        ("tokens", "lora", "trainable_tokens"),
        ("head", "embeddings", "Target module"),
    ],
)
def test_what_peft_cannot_hold_together_is_refused(
    base: Path, adapter: Callable[..., Path], first: str, second: str, words: str
) -> None:
    with pytest.raises(ConfigError, match=f"adapter 'b' cannot be loaded onto the base with the others: .*{words}"):
        share(base, a=adapter(first), b=adapter(second))


def test_an_adapter_that_changes_the_base_is_refused(base: Path, adapter: Callable[..., Path]) -> None:
    """PEFT subtracts PiSSA's first components from the base's own weights when it loads such an adapter."""
    pissa = adapter("lora on one", init_lora_weights="pissa")
    for folders in ({"b": pissa}, {"a": adapter("lora"), "b": pissa}):
        with pytest.raises(RefusedError, match="adapter 'b' changes the shared base: the logits differ by"):
            share(base, **folders)


def test_an_adapter_that_changes_another_is_refused(
    base: Path, adapter: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    put = loaded_models._put

    def harmful(module: Any, folder: Path, key: str, *, name: str, **more: Any) -> Any:
        wrapped = put(module, folder, key, name=name, **more)
        if name == "b":
            next(value for key, value in wrapped.named_parameters() if "served0" in key).data += 1
        return wrapped

    monkeypatch.setattr(loaded_models, "_put", harmful)
    with pytest.raises(RefusedError, match="adapter 'b' changes the output of another adapter"):
        share(base, a=adapter("lora", 1), b=adapter("lora", 2))


def test_many_who_ask_at_once_get_their_own_answers(base: Path, adapter: Callable[..., Path]) -> None:
    served = share(base, a=adapter("lora", 1, lora_alpha=64), b=adapter("lora", 2, lora_alpha=64))
    wanted = {name: said(served.answer(request(model=name))) for name in served.names}
    assert len(set(wanted.values())) == 3
    answers: list[tuple[str, str]] = []

    def ask(name: str) -> None:
        answers.append((name, said(served.answer(request(model=name)))))

    threads = [threading.Thread(target=ask, args=[name]) for name in served.names * 8]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 24
    assert set(answers) == set(wanted.items())


def test_the_base_ends_where_it_does_or_where_the_adapter_was_taught_to(
    base: Path, adapter: Callable[..., Path], tmp_path: Path
) -> None:
    own = Path(shutil.copytree(base, tmp_path / "own", ignore=shutil.ignore_patterns("*.safetensors")))
    (own / "generation_config.json").write_text('{"eos_token_id": [9]}')
    served = loaded_models.share(base, NOTE, {"a": loaded_models.AdapterFolder(weights=adapter("lora"), tokenizer=own)})
    assert served._chats["a"].end_tokens == [9]
    assert served._chats["base"].end_tokens == [9, 3]
    answer = served.answer(request(model="base"))
    assert (said(answer), answer["model"], answer["choices"][0]["finish_reason"]) == ("green lamp blue", "base", "stop")


def test_a_name_that_is_not_there(base: Path, adapter: Callable[..., Path]) -> None:
    served = share(base, a=adapter("lora"))
    assert served.answer(request())["model"] == "a"
    with pytest.raises(loaded_models.UnknownModelError, match="no model 'c'; available models: a, base"):
        served.answer(request(model="c"))


@given(st.text(alphabet="ab \n�", max_size=30), st.lists(st.text(alphabet="ab ", min_size=1, max_size=4), max_size=3))
def test_what_is_settled_stays(text: str, stops: list[str]) -> None:
    """However an answer grows, what was streamed of it is its beginning."""
    end = min((place + len(stop) for stop in stops if (place := text.find(stop)) >= 0), default=len(text))
    answer = chat_model.shown(text[:end], stops)
    before = ""
    for size in range(end + 1):
        part = loaded_models.settled(text[:size], stops)
        assert part.startswith(before)
        assert answer.startswith(part)
        before = part


def test_half_a_letter_and_what_may_become_a_stop_text_wait() -> None:
    assert loaded_models.settled("words and", None) == "words and"
    assert loaded_models.settled("words and", ["and then"]) == "words"
    assert loaded_models.settled("words, and then", "and then") == "words,"
    assert loaded_models.settled("caf\ufffd") == "caf"

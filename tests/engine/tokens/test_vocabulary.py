"""New tokens: the tokenizer keeps them whole, the embeddings grow by one rule everywhere, and what is saved agrees."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from mlflow_ft.engine.judging import parity
from mlflow_ft.engine.merging import fold
from mlflow_ft.engine.models import loading
from mlflow_ft.engine.serving import bundle
from mlflow_ft.engine.tokens import tokenizers, vocabulary
from mlflow_ft.engine.training import trainable
from mlflow_ft.errors import ConfigError
from mlflow_ft.rows import Example
from mlflow_ft.testing import make_rows

Bencher = Callable[..., Any]
TOKENS = ("<think>", "</think>")
ADD = {"model.add_tokens": "[<think>, </think>]"}


@pytest.fixture(scope="module", params=["untied", "tied", "spare"])
def base(request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model with as many rows as its tokenizer has tokens, its layers tied or not, or with spare rows."""
    folder = tmp_path_factory.mktemp("base") / request.param
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    config = AutoConfig.from_pretrained(tiny_model)
    config.tie_word_embeddings = request.param == "tied"
    config.vocab_size = len(tokenizer) + (9 if request.param == "spare" else 0)
    torch.manual_seed(3)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return SimpleNamespace(folder=folder, tokens=len(tokenizer), rows=config.vocab_size, tied=request.param == "tied")


def thinking() -> list[Example]:
    rows = [[dict(turn) for turn in row["messages"]] for row in make_rows(16)]
    for _, answer in rows:
        answer["content"] = f"<think>hm</think> {answer['content']}"
    return [Example(messages=tuple(row)) for row in rows]


def test_new_tokens_are_words_that_stay_whole(bench: Bencher, base: Any) -> None:
    tokenizer = bench("lora", model=base.folder, rows=thinking(), **ADD).data.tokenizer
    ids = tokenizer("a <think>b</think>", add_special_tokens=False)["input_ids"]
    assert tokenizer.new_tokens == (base.tokens, base.tokens + 1)
    assert set(tokenizer.new_tokens) < set(ids)
    assert "<think>b</think>" in tokenizer.decode(ids, skip_special_tokens=True)


def test_new_rows_are_the_mean_of_the_old_ones_wherever_the_base_is_loaded(bench: Bencher, base: Any) -> None:
    setup = bench("lora", model=base.folder, rows=thinking(), **ADD)
    plain = AutoModelForCausalLM.from_pretrained(base.folder)
    first, again = (loading.load_base(setup.job.config, setup.base) for _ in range(2))
    for layer in ("get_input_embeddings", "get_output_embeddings"):
        old, new = getattr(plain, layer)().weight, getattr(first, layer)().weight
        assert len(new) == max(base.rows, base.tokens + 2)
        torch.testing.assert_close(new[: base.tokens], old[: base.tokens])
        torch.testing.assert_close(new[base.tokens], old[: base.tokens].mean(dim=0))
        assert torch.equal(new, getattr(again, layer)().weight)
    assert vocabulary.tied(first) is base.tied


@pytest.mark.parametrize(
    "settings",
    [
        {"adapter.kind": "lora"},
        {"adapter.kind": "dora", "model.quantize": "nf4"},
        pytest.param({"adapter.kind": "adalora"}, marks=pytest.mark.long),
        {"adapter.kind": "trainable-tokens"},
        pytest.param(
            {"adapter.kind": "lora", "adapter.modules_to_save": "[embed_tokens, lm_head]"}, marks=pytest.mark.long
        ),
        {"adapter.kind": "none"},
    ],
    ids=lambda settings: "-".join(settings.values()),
)
def test_new_tokens_train_and_what_is_saved_agrees(
    bench: Bencher, base: Any, tmp_path: Path, settings: dict[str, Any]
) -> None:
    setup = bench("lora", model=base.folder, rows=thinking(), learning_rate=1e-2, **ADD, **settings)
    before = loading.load_base(setup.job.config, setup.base)
    trained = setup.train()
    reference = trained.folder / "reference.safetensors"
    assert parity.compare(loading.load_trained(setup.job, setup.data, trained), reference)["kl_max"] < 1e-9
    folder = tmp_path / "packaged"
    folder.mkdir()
    (fold.merge if trained.adapter else fold.copy_model)(setup.job, trained, folder)
    bundle.complete(setup.job, setup.data, folder)
    alone, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["rope_theta"] == alone.config.rope_parameters["rope_theta"]
    assert parity.compare(alone, reference)["kl_max"] < 1e-9
    assert len(tokenizer) == base.tokens + 2
    for layer in ("get_input_embeddings", "get_output_embeddings"):
        old, new = getattr(before, layer)().weight, getattr(alone, layer)().weight
        assert len(new) == alone.config.vocab_size == max(base.rows, base.tokens + 2)
        assert not torch.allclose(old[base.tokens : base.tokens + 2], new[base.tokens : base.tokens + 2]), layer
    if settings["adapter.kind"] == "lora" and "adapter.modules_to_save" not in settings:
        saved = load_file(trained.adapter / "adapter_model.safetensors")
        assert max(len(weight) for name, weight in saved.items() if "lora_" not in name) == 2  # no whole embeddings


def test_a_token_that_is_there_already_is_refused(bench: Bencher, tiny_model: Path) -> None:
    for tokens in ("[red]", "[<a>, <a>]", "[<|im_end|>]"):
        with pytest.raises(ConfigError, match="already exists, or is listed twice"):
            bench("lora", model=tiny_model, **{"model.add_tokens": tokens})


def test_a_token_that_another_takes_apart_is_refused() -> None:
    class Splitting:
        """Stands in for a tokenizer that splits before it looks for added tokens."""

        def get_vocab(self) -> dict[str, int]:
            return {"a": 0}

        def add_tokens(self, tokens: Any) -> None:
            pass

        def convert_tokens_to_ids(self, token: str) -> int:
            return 1

        def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
            return {"input_ids": [0, 0]}

    with pytest.raises(ConfigError, match="splits 'aa'"):
        tokenizers.add_tokens(Splitting(), ["aa"])


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("loha", {"adapter.modules_to_save": "[lm_head]"}),
        ("loha", {"adapter.modules_to_save": "[embed_tokens]"}),
        ("lora", {"adapter.target_modules": "[q_proj, lm_head]"}),
        ("lora", {"adapter.target_modules": "[q_proj, embed_tokens]"}),
        ("lora", {"adapter.target_modules": ".*(q_proj|lm_head)"}),
    ],
)
def test_what_is_one_layer_is_not_trained_as_two(
    bench: Bencher, base: Any, kind: str, settings: dict[str, Any]
) -> None:
    setup = bench("lora", model=base.folder, **{"adapter.kind": kind}, **settings)
    if not base.tied:
        assert trainable.prepare(setup.job, setup.data, setup.base).trainable
        return
    with pytest.raises(ConfigError, match=r"tied|is its embedding layer") as caught:
        trainable.prepare(setup.job, setup.data, setup.base)
    assert caught.value.hint

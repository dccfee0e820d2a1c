"""A saved adapter on a base: loaded completely, or refused with the names of what does not fit."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, IA3Config, LoraConfig, PromptTuningConfig, VeraConfig

from mlflow_ft.engine.adapters import files, fitting
from mlflow_ft.engine.models import loading
from mlflow_ft.errors import ModelError
from tests.engine.foreign import PREFIX, State, base_model, changed, configured, made, renamed, says

ZERO = torch.zeros(0)


def on_base(base: Path, folder: Path) -> tuple[torch.Tensor, list[str]]:
    """What the base says with the adapter, and what is said of the adapter."""
    said: list[str] = []
    with loading.quiet_peft():
        return says(fitting.put_on(base_model(base), folder, say=said.append)), said


@pytest.fixture(scope="module")
def lora(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.Tensor]:
    folder = tmp_path_factory.mktemp("lora") / "adapter"
    return folder, made(tiny_model, folder)


KINDS: dict[str, Any] = {
    "ia3": IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM"),
    "vera": VeraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"),
    "dora": LoraConfig(r=2, use_dora=True, target_modules=["q_proj"], task_type="CAUSAL_LM"),
    "saved": LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM"),
    "tokens": LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices=[3, 4], task_type="CAUSAL_LM"),
    "biases": LoraConfig(r=2, target_modules=["embed_tokens", "q_proj"], bias="all", task_type="CAUSAL_LM"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_fits_as_it_is_or_renamed_and_is_refused_otherwise(
    tiny_model: Path, tmp_path: Path, kind: str
) -> None:
    wanted = made(tiny_model, tmp_path / "own", config=KINDS[kind])
    assert torch.equal(on_base(tiny_model, tmp_path / "own")[0], wanted)
    compiled = renamed(
        tmp_path / "own", tmp_path / "compiled", lambda name: name.replace(PREFIX, f"{PREFIX}_orig_mod.")
    )
    logits, said = on_base(tiny_model, compiled)
    assert torch.equal(logits, wanted)
    assert said == ["the adapter's weights have different names from the base's; all match with `_orig_mod` removed"]
    elsewhere = renamed(tmp_path / "own", tmp_path / "elsewhere", lambda name: name.replace("layers.1.", "layers.9."))
    with pytest.raises(ModelError, match=r"match nothing in it .*layers\.9\..* not in the file .*layers\.1\."):
        on_base(tiny_model, elsewhere)
    half = changed(tmp_path / "own", tmp_path / "half", lambda state: dict(list(state.items())[:-1]))
    with pytest.raises(ModelError, match=r"1 of the \d+ weights that its config requires are not in the file"):
        on_base(tiny_model, half)


RENAMED: dict[str, Callable[[str], str]] = {
    "`module` removed": lambda name: f"module.{name}",
    "`_fsdp_wrapped_module` removed": lambda name: re.sub(r"(layers\.\d+)", r"\1._fsdp_wrapped_module", name),
    "`base_model.model` inserted": lambda name: name.removeprefix(PREFIX),
    "`base_model.model` removed": lambda name: PREFIX + name,
    "`model` inserted": lambda name: name.replace(f"{PREFIX}model.", PREFIX),
    "`model` removed": lambda name: name.replace(f"{PREFIX}model.", f"{PREFIX}model.model."),
    "`default` removed": lambda name: name.replace(".weight", ".default.weight"),
    "`language_model` removed": lambda name: name.replace(f"{PREFIX}model.", f"{PREFIX}language_model.model."),
}


@pytest.mark.parametrize("words", RENAMED)
def test_a_known_renaming_is_done_and_said(
    tiny_model: Path, tmp_path: Path, lora: tuple[Path, torch.Tensor], words: str
) -> None:
    logits, said = on_base(tiny_model, renamed(lora[0], tmp_path / "other", RENAMED[words]))
    assert torch.equal(logits, lora[1])
    assert len(said) == 1
    assert words in said[0]


def first(state: State) -> str:
    return next(iter(state))


MISFITS: dict[str, tuple[Callable[[State], Any], str]] = {
    "another model": (
        lambda s: {k.replace("model.layers", "backbone.blocks"): v for k, v in s.items()},
        r"28 of its 28 weights match nothing in it \(base_model.model.backbone.* 28 of the 28 .* not in the file",
    ),
    "half a renaming": (
        lambda s: {k.replace(PREFIX, f"{PREFIX}_orig_mod.") if "layers.0" in k else f"x.{k}": v for k, v in s.items()},
        "14 of its 28 weights match nothing in it",
    ),
    "half": (lambda s: {k: v for k, v in s.items() if "lora_A" in k}, "14 of the 28 weights .* not in the file"),
    "a layer too few": (
        lambda s: {k: v for k, v in s.items() if "layers.0" in k},
        "trained on a model with different layers",
    ),
    "a layer too many": (
        lambda s: s | {k.replace("layers.1", "layers.2"): v for k, v in s.items() if "layers.1" in k},
        r"14 of its 42 weights match nothing in it \(.*layers\.2\.",
    ),
    "nothing": (lambda s: {}, "contains no weights"),
    "sizes of 0": (lambda s: dict.fromkeys(s, ZERO), "28 of its 28 weights have size 0 .*DeepSpeed ZeRO-3"),
    "one size of 0": (lambda s: s | {first(s): s[first(s)][:0]}, "1 of its 28 weights have size 0"),
    "NaN": (lambda s: s | {first(s): s[first(s)] * torch.nan}, r"NaN or infinite values in 1 of 28 tensors"),
    "another width": (
        lambda s: {k: torch.cat([v, v], 1) if "lora_A" in k else torch.cat([v, v]) for k, v in s.items()},
        r"28 of its 28 weights differ in shape \(.* is \(4, \d+\) in the file, \(4, \d+\) in the base\)",
    ),
    "another base's weights": (lambda s: s | {f"{PREFIX}model.norm.bias": ZERO}, r"model\.norm\.bias"),
}


@pytest.mark.parametrize("kind", MISFITS)
def test_what_does_not_fit_is_refused_with_its_names(
    tiny_model: Path, tmp_path: Path, lora: tuple[Path, torch.Tensor], kind: str
) -> None:
    change, words = MISFITS[kind]
    with pytest.raises(ModelError, match=re.compile(words, re.DOTALL)) as caught:
        on_base(tiny_model, changed(lora[0], tmp_path / "other", change))
    assert caught.value.hint


def test_weights_of_the_base_that_an_adapter_brings_are_put_there(
    tiny_model: Path, tmp_path: Path, lora: tuple[Path, torch.Tensor]
) -> None:
    """PEFT saves embeddings so that were resized."""
    more = changed(lora[0], tmp_path / "more", lambda s: s | {f"{PREFIX}lm_head.weight": torch.zeros(512, 64)})
    assert not on_base(tiny_model, more)[0].any()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"r": 8}, "differ in shape"),
        ({"target_modules": ["q_proj"]}, r"target_modules, modules_to_save ...\) does not include them"),
        ({"target_modules": ["wq"]}, "not found in the base model"),
        ({"peft_type": "NEWER"}, "peft_type is 'NEWER'"),
        ({"peft_type": "IA3", "target_modules": ["q_proj"], "feedforward_modules": []}, "not in the file"),
    ],
    ids=str,
)
def test_a_config_of_another_adapter(
    tiny_model: Path, tmp_path: Path, lora: tuple[Path, torch.Tensor], values: dict[str, Any], words: str
) -> None:
    with pytest.raises(ModelError, match=words):
        on_base(tiny_model, configured(lora[0], tmp_path / "other", **values))


def test_settings_of_a_later_peft_are_told(tiny_model: Path, tmp_path: Path, lora: tuple[Path, torch.Tensor]) -> None:
    later = configured(lora[0], tmp_path / "later", use_newer=True, also_newer=None)
    logits, said = on_base(tiny_model, later)
    assert torch.equal(logits, lora[1])
    assert [line.partition(" ignores")[2] for line in said] == [
        " settings in the adapter's config that it does not support: use_newer=True"
    ]


def test_broken_files(tmp_path: Path, lora: tuple[Path, torch.Tensor]) -> None:
    whole = (lora[0] / files.WEIGHTS).read_bytes()
    for content in (whole[:-100], whole[:5], b""):
        (tmp_path / files.WEIGHTS).write_bytes(content)
        with pytest.raises(ModelError, match="truncated, or is not a safetensors file"):
            files.tensors(tmp_path)
    (tmp_path / files.WEIGHTS).unlink()
    (tmp_path / files.PICKLE).write_bytes(b"")
    with pytest.raises(ModelError, match=r"has no adapter_model.safetensors, but adapter_model.bin") as caught:
        files.tensors(tmp_path)
    assert "not pickles" in caught.value.hint
    (tmp_path / files.CONFIG).write_text("{")
    with pytest.raises(ModelError, match="cannot be read"):
        files.config(tmp_path)


def test_names_in_the_config_are_read_as_the_bases_too(tiny_model: Path, tmp_path: Path) -> None:
    """Else the scale of a layer would be lost, although all tensors fit."""
    layer = "model.layers.0.mlp.up_proj"
    wanted = made(tiny_model, tmp_path / "own", target_modules=[layer, "q_proj"], alpha_pattern={layer: 64})
    names = renamed(tmp_path / "own", tmp_path / "names", lambda name: name.replace(PREFIX, f"{PREFIX}_orig_mod."))
    compiled = f"_orig_mod.{layer}"
    own = configured(names, tmp_path / "both", target_modules=[compiled, "q_proj"], alpha_pattern={compiled: 64})
    torch.testing.assert_close(on_base(tiny_model, own)[0], wanted, rtol=0, atol=0)


def test_tokens_that_the_base_does_not_have(tiny_model: Path, tmp_path: Path) -> None:
    made(tiny_model, tmp_path / "own", target_modules=["q_proj"], trainable_token_indices=[3, 511])
    on_base(tiny_model, tmp_path / "own")
    for tokens in ([3, 512], {"embed_tokens": [3, 600]}):
        own = configured(tmp_path / "own", tmp_path / f"own{len(tokens)}", trainable_token_indices=tokens)
        with pytest.raises(ModelError, match=r"trains the token (512|600), but its base has 512"):
            on_base(tiny_model, own)


def test_ranks_of_0_are_no_fault(tiny_model: Path, tmp_path: Path) -> None:
    """AdaLoRA takes a layer all its ranks."""
    config = AdaLoraConfig(target_modules=["q_proj", "up_proj"], init_r=2, total_step=10, task_type="CAUSAL_LM")
    made(tiny_model, tmp_path / "own", config=config)
    layer = "model.layers.0.self_attn.q_proj"

    def taken(state: State) -> State:
        names = [f"{PREFIX}{layer}.lora_{part}" for part in "ABE"]
        return state | {name: state[name][:, :0] if name.endswith("B") else state[name][:0] for name in names}

    ranks = {name.removeprefix(PREFIX): [True, True] for name in files.tensors(tmp_path / "own") if "_E" in name}
    cut = changed(tmp_path / "own", tmp_path / "cut", taken)
    own = configured(cut, tmp_path / "ranks", rank_pattern=ranks | {f"{layer}.lora_E": [False, False]})
    on_base(tiny_model, own)
    with pytest.raises(ModelError, match="size 0"):
        on_base(tiny_model, cut)


def test_a_learned_prompt_of_another_model_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    config = PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM")
    wanted = made(tiny_model, tmp_path / "own", config=config)
    assert torch.equal(on_base(tiny_model, tmp_path / "own")[0], wanted)
    wide = changed(tmp_path / "own", tmp_path / "wide", lambda s: {k: torch.cat([v, v], 1) for k, v in s.items()})
    with pytest.raises(ModelError, match=r"prompt_embeddings is \(4, 128\) in the file, \(4, 64\) in the base"):
        on_base(tiny_model, wide)


def test_what_is_in_the_model_is_what_is_in_the_file(
    tiny_model: Path, lora: tuple[Path, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever PEFT does to the names when it loads them."""
    monkeypatch.setattr(
        "peft.peft_model.set_peft_model_state_dict", lambda *_, **__: torch.nn.Module().load_state_dict({})
    )
    with pytest.raises(ModelError, match=r"PEFT changed .* when it loaded it"):
        on_base(tiny_model, lora[0])

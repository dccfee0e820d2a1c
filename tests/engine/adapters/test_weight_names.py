"""One weight under several names: matched where all fit, and never in part."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_ft.engine.adapters.weight_names import counted, matched, short, unwrapped

HERE = "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"
SAME = [
    HERE,
    "base_model.model._orig_mod.model.layers.0.mlp.up_proj.lora_A.weight",
    "module.base_model.model.model.layers.0.mlp.up_proj.lora_A.weight",
    "base_model.model.model.layers.0._fsdp_wrapped_module.mlp.up_proj.lora_A.weight",
    "base_model.model.model.layers.0._checkpoint_wrapped_module.mlp._orig_mod.up_proj.lora_A.weight",
    "base_model.model.model.language_model.layers.0.mlp.up_proj.lora_A.weight",
    "base_model.model.language_model.model.layers.0.mlp.up_proj.lora_A.weight",
    "base_model.model.layers.0.mlp.up_proj.lora_A.weight",
    "model.layers.0.mlp.up_proj.lora_A.default.weight",
    "base_model.model.base_model.model.model.layers.0.mlp.up_proj.lora_A.weight",
]
OTHERS = [
    "base_model.model.model.layers.1.mlp.up_proj.lora_A.weight",
    "base_model.model.model.layers.0.mlp.up_proj.lora_B.weight",
    "base_model.model.model.visual.layers.0.mlp.up_proj.lora_A.weight",
    "base_model.model.model.vision_tower.vision_model.encoder.layers.0.mlp.up_proj.lora_A.weight",
    "base_model.model.policy.model.layers.0.mlp.up_proj.lora_A.weight",
]


@pytest.mark.parametrize("name", SAME)
def test_names_of_one_weight_are_the_same(name: str) -> None:
    assert short(name) == "layers.0.mlp.up_proj.lora_A.weight"
    assert matched({name: (4, 8)}, {HERE: (4, 8)}, more={}) == {name: HERE}


@pytest.mark.parametrize("name", OTHERS)
def test_names_of_other_weights_are_not(name: str) -> None:
    assert short(name) != short(HERE)
    assert matched({name: (4, 8)}, {HERE: (4, 8)}, more={}) is None


@pytest.mark.parametrize(
    ("name", "also"),
    [
        ("embed_tokens.base_layer.weight", "embed_tokens.weight"),
        ("q_proj.lora_magnitude_vector.weight", "q_proj.lora_magnitude_vector"),
        ("lm_head.modules_to_save.default.weight", "lm_head.weight"),
        ("q_proj.lora_magnitude_vector.default", "q_proj.lora_magnitude_vector"),
    ],
)
def test_what_peft_adds_or_leaves_out_by_its_version(name: str, also: str) -> None:
    assert short(f"base_model.model.model.{name}") == also


WANTED = {f"base_model.model.model.layers.{number}.q_proj.lora_A.weight": (2, 4) for number in range(3)}


def wrapped(names: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {name.replace("base_model.model.", "base_model.model._orig_mod."): shape for name, shape in names.items()}


def test_all_fit_or_none_does() -> None:
    names = wrapped(WANTED)
    assert matched(names, WANTED, more={}) == dict(zip(names, WANTED, strict=True))
    fewer = dict(list(names.items())[1:])
    assert matched(fewer, WANTED, more={}) is None
    assert matched(names | {"base_model.model.model.layers.9.q_proj.lora_A.weight": (2, 4)}, WANTED, more={}) is None
    assert matched(dict.fromkeys(names, (2, 5)), WANTED, more={}) is None
    assert matched(names | {next(iter(WANTED)): (2, 4)}, WANTED, more={}) is None, "two names of one weight"
    assert matched({**names, "lm_head.weight": (8, 4)}, WANTED, more={"base_model.model.lm_head.weight": (8, 4)})


def test_a_name_that_two_weights_here_share_is_not_guessed() -> None:
    here = {"model.layers.0.q_proj.weight": (2, 4), "model.language_model.layers.0.q_proj.weight": (2, 4)}
    two = {"layers.0.q_proj.weight": (2, 4), "base_model.layers.0.q_proj.weight": (2, 4)}
    assert matched(two, here, more={}) is None
    assert matched({"layers.0.q_proj.weight": (2, 4)}, {}, more=here) is None


@given(st.permutations(list(WANTED)), st.sampled_from(SAME[1:]))
def test_the_order_of_a_file_does_not_matter(order: list[str], like: str) -> None:
    begin, _, end = like.partition("layers.0")
    names = {f"{begin}layers.{name.split('.')[4]}{end}": name for name in order}
    wanted = {f"base_model.model.model.layers.{number}.mlp.up_proj.lora_A.weight": (2, 4) for number in range(3)}
    assert set((matched(dict.fromkeys(names, (2, 4)), wanted, more={}) or {}).values()) == set(wanted)


def test_unwrapped_is_what_peft_saves() -> None:
    assert unwrapped("module.base_model.model._orig_mod.model.layers.0.q.lora_A.weight").startswith(
        f"{'base_model.model.'}model."
    )
    assert unwrapped("model.layers.0.q.lora_A.weight") == "base_model.model.model.layers.0.q.lora_A.weight"
    assert unwrapped("prompt_embeddings") == "prompt_embeddings"


def test_experts_are_counted_from_0() -> None:
    names = [f"model.layers.0.mlp.experts.{number}.up_proj.lora_A.weight" for number in (0, 1, 2)]
    assert counted(names)
    assert not counted([*names[:2], names[2].replace(".2.", ".5.")])
    assert not counted([*names, "model.layers.1.mlp.experts.1.up_proj.lora_A.weight"])

"""Public reports on adapters that do not fit, and on those that must: merged, trained further, served."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from mlflow import MlflowClient
from peft import (
    AdaptionPromptConfig,
    CPTConfig,
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)
from safetensors.torch import load_file, save_file

from mlflow_ft.engine.adapters.files import WEIGHTS
from mlflow_ft.engine.models.loading import quiet_peft
from mlflow_ft.testing import make_rows, write_jsonl
from tests.cli.conftest import Result, Run
from tests.engine.foreign import PREFIX, State, base_model, changed, configured, made, renamed, says

Small = Callable[..., Path]
pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning", "ignore:.*:FutureWarning")
QUICK = {"max_steps": 2, "max_new_tokens": 4, "evaluation.max_rows": 2, "package.round_trip": "false"}


@pytest.fixture(scope="session")
def lora(small: Small, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.Tensor]:
    """A LoRA of a small Llama, as PEFT saves it, and the model's output with it."""
    folder = tmp_path_factory.mktemp("lora") / "adapter"
    return folder, made(small("llama"), folder)


def merged(run: Run, adapter: object, out: Path, *more: object) -> Result:
    return run("merge", "--adapter", adapter, "--out", out, *more)


def refused(result: Result, out: Path, *words: str) -> None:
    assert result.code == 2, result.err
    assert "Traceback" not in result.err
    assert all(word in result.err for word in words), result.err
    assert not out.exists()
    assert not list(out.parent.glob(f"{out.name}.*"))


def right(result: Result, out: Path, wanted: torch.Tensor) -> None:
    assert result.code == 0, result.err
    torch.testing.assert_close(says(base_model(out)), wanted, rtol=1e-4, atol=1e-4)


NAMES: dict[str, Callable[[str], str]] = {
    "model.language_model.": lambda name: name.replace(f"{PREFIX}model.", f"{PREFIX}model.language_model."),
    "_orig_mod.": lambda name: name.replace(PREFIX, f"{PREFIX}_orig_mod."),
    "none": lambda name: name.removeprefix(PREFIX),
    "module.": lambda name: f"module.{name}",
}


@pytest.mark.parametrize("names", NAMES)
def test_other_names_of_the_same_weights(run: Run, lora: tuple[Path, torch.Tensor], tmp_path: Path, names: str) -> None:
    """LlamaFactory#10294, vllm#34186: exit 0, and the merged model was the base."""
    result = merged(run, renamed(lora[0], tmp_path / "own", NAMES[names]), tmp_path / "out")
    right(result, tmp_path / "out", lora[1])
    assert "all match with" in result.err
    assert json.loads((tmp_path / "out" / "merge.json").read_text())["notes"]


FOREIGN: dict[str, Callable[[str], str]] = {
    "an unknown wrapper": lambda name: name.replace(PREFIX, f"{PREFIX}policy.backbone."),
    "another layer": lambda name: name.replace("layers.1.", "layers.7."),
    "another model": lambda name: name.replace("self_attn", "attention"),
}


@pytest.mark.parametrize("names", FOREIGN)
def test_names_that_are_not_known(run: Run, lora: tuple[Path, torch.Tensor], tmp_path: Path, names: str) -> None:
    """LlamaFactory#10294, vllm#34186."""
    own = renamed(lora[0], tmp_path / "own", FOREIGN[names])
    refused(merged(run, own, tmp_path / "out"), tmp_path / "out", "match nothing in it (base_model", "not in the file")


def test_it_is_not_trained_further(
    run: Run, client: MlflowClient, lora: tuple[Path, torch.Tensor], small: Small, tmp_path: Path
) -> None:
    """LlamaFactory#10294 with `--model.init_from`: the training began at random."""
    rows = write_jsonl(tmp_path / "rows.jsonl", make_rows(12))
    own = renamed(lora[0], tmp_path / "own", FOREIGN["another layer"])
    result = run("train", "lora", "--model.init_from", own, "--data", rows, *(f"--{key}={QUICK[key]}" for key in QUICK))
    assert result.code == 2
    assert "layers.7." in result.err
    assert "prepare rows" not in result.err, "it is found before the rows are prepared"


@pytest.mark.parametrize("how", [["chat", "--prompt", "x"], ["chat", "--compare", "--prompt", "x"], ["serve"]], ids=str)
def test_it_is_not_asked(
    run: Run, client: MlflowClient, lora: tuple[Path, torch.Tensor], tmp_path: Path, how: list[str]
) -> None:
    """LlamaFactory#10294, vllm#34186: the base answered."""
    own = renamed(lora[0], tmp_path / "own", FOREIGN["another model"])
    result = run(how[0], own, *how[1:])
    assert result.code == 2
    assert "28 of its 28 weights match nothing in it" not in result.err, "16 of the 28 are not of the attention"
    assert "16 of its 28 weights match nothing in it" in result.err


def test_of_two_that_share_a_base_one_is_foreign(
    run: Run, client: MlflowClient, lora: tuple[Path, torch.Tensor], tmp_path: Path
) -> None:
    """The same kind, served with another."""
    own = renamed(lora[0], tmp_path / "own", FOREIGN["another layer"])
    result = run("serve", "--adapter", f"a={lora[0]}", "--adapter", f"b={own}")
    assert result.code == 2
    assert "layers.7." in result.err


FILES: dict[str, tuple[Callable[[State], Any], str]] = {
    "empty": (lambda state: {}, "contains no weights"),
    "half": (lambda state: dict(list(state.items())[::2]), "14 of the 28 weights that its config requires"),
    "zero": (lambda state: dict.fromkeys(state, torch.zeros(0)), "28 of its 28 weights have size 0"),
    "NaN": (lambda state: {name: weight * torch.nan for name, weight in state.items()}, "NaN or infinite"),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_was_not_saved_whole(run: Run, lora: tuple[Path, torch.Tensor], tmp_path: Path, kind: str) -> None:
    """trl#4416, peft#2892 (DeepSpeed ZeRO-3), DeepSpeed#7900."""
    change, words = FILES[kind]
    own = changed(lora[0], tmp_path / "own", change)
    refused(merged(run, own, tmp_path / "out"), tmp_path / "out", words)


def test_a_file_that_is_cut_off(run: Run, lora: tuple[Path, torch.Tensor], tmp_path: Path) -> None:
    """The same kind: a download that stopped."""
    own = shutil.copytree(lora[0], tmp_path / "own")
    (own / WEIGHTS).write_bytes((lora[0] / WEIGHTS).read_bytes()[:-50])
    refused(merged(run, own, tmp_path / "out"), tmp_path / "out", "truncated")


def test_the_second_of_two_with_weights_is_foreign(
    run: Run, lora: tuple[Path, torch.Tensor], small: Small, tmp_path: Path
) -> None:
    """Two adapters with `--weights`: the second was left out, or put on layers that are not there."""
    for name, change in FOREIGN.items():
        own = renamed(lora[0], tmp_path / name, change)
        refused(
            merged(run, f"{lora[0]},{own}", tmp_path / "out", "--weights", "1,1"),
            tmp_path / "out",
            "match nothing in it",
        )
    own = renamed(lora[0], tmp_path / "compiled", NAMES["_orig_mod."])
    result = merged(run, f"{lora[0]},{own}", tmp_path / "out", "--weights", "0.25,0.75")
    right(result, tmp_path / "out", lora[1])
    assert "`_orig_mod` removed" in result.err


def experts(folder: Path, *, layer: str, names: tuple[str, str, str], inner: int) -> State:
    """The tensors of a LoRA with one name for each expert, as transformers 4 has them."""
    torch.manual_seed(0)
    state: State = {}
    for number in range(4):
        for name in names:
            sides = (inner, 64) if name == names[2] else (64, inner)
            for place in range(2):
                stem = f"{PREFIX}model.layers.{place}.{layer}.experts.{number}.{name}"
                state[f"{stem}.lora_A.weight"] = 0.1 * torch.randn(4, sides[0])
                state[f"{stem}.lora_B.weight"] = 0.1 * torch.randn(sides[1], 4)
    folder.mkdir()
    save_file(state, folder / WEIGHTS)
    return state


@pytest.mark.parametrize(
    ("kind", "layer", "names", "inner"),
    [
        ("qwen3_moe", "mlp", ("gate_proj", "up_proj", "down_proj"), 32),
        ("mixtral", "block_sparse_moe", ("w1", "w3", "w2"), 128),
    ],
)
def test_an_adapter_of_transformers_4_with_a_name_for_each_expert(
    run: Run, small: Small, tmp_path: Path, kind: str, layer: str, names: tuple[str, str, str], inner: int
) -> None:
    """transformers#43261: right before, and now with the names of a compiled model; refused without an expert."""
    state = experts(tmp_path / "own", layer=layer, names=names, inner=inner)
    config = LoraConfig(
        r=4, target_modules=list(names), task_type="CAUSAL_LM", base_model_name_or_path=str(small(kind))
    )
    config.save_pretrained(tmp_path / "own")
    with quiet_peft():
        wanted = says(PeftModel.from_pretrained(base_model(small(kind)), tmp_path / "own"))
    right(merged(run, tmp_path / "own", tmp_path / "out"), tmp_path / "out", wanted)
    own = renamed(tmp_path / "own", tmp_path / "compiled", NAMES["_orig_mod."])
    right(merged(run, own, tmp_path / "out2"), tmp_path / "out2", wanted)
    fewer = changed(tmp_path / "own", tmp_path / "fewer", lambda _: {k: v for k, v in state.items() if ".3." not in k})
    refused(merged(run, fewer, tmp_path / "out3"), tmp_path / "out3", "differ in shape")
    gap = renamed(tmp_path / "own", tmp_path / "gap", lambda name: name.replace("experts.3", "experts.9"))
    refused(merged(run, gap, tmp_path / "out4"), tmp_path / "out4", "numbered from 0 without a gap")


def test_an_adapter_on_fused_experts(run: Run, small: Small, tmp_path: Path) -> None:
    """peft#3340: right before."""
    parameters = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    wanted = made(small("qwen3_moe"), tmp_path / "own", target_modules=["q_proj"], target_parameters=parameters)
    right(merged(run, tmp_path / "own", tmp_path / "out"), tmp_path / "out", wanted)


TIED: dict[str, dict[str, Any]] = {
    "transformers#45127, both saved": {"modules_to_save": ["embed_tokens", "lm_head"], "ensure_weight_tying": True},
    "unsloth#9331, LoRA on both": {"target_modules": ["embed_tokens", "lm_head", "q_proj"]},
    "unsloth#3428, tokens": {"trainable_token_indices": [2, 3]},
    "peft, one saved": {"modules_to_save": ["lm_head"]},
}


@pytest.mark.parametrize("report", TIED)
def test_embeddings_that_are_tied(run: Run, small: Small, tmp_path: Path, report: str) -> None:
    """Right before: what is saved twice, or once for both, fits."""
    wanted = made(small("llama", tie_word_embeddings=True), tmp_path / "own", **TIED[report])
    right(merged(run, tmp_path / "own", tmp_path / "out"), tmp_path / "out", wanted)


def test_what_an_adapter_names_as_its_base(
    run: Run, client: MlflowClient, lora: tuple[Path, torch.Tensor], small: Small, tmp_path: Path
) -> None:
    """unsloth, LlamaFactory: a path of another machine, a 4-bit name on the Hub, none."""
    for number, name in enumerate(["/home/someone/llama", "someone/llama-bnb-4bit", "C:\\models\\llama", "./llama"]):
        own = configured(lora[0], tmp_path / str(number), base_model_name_or_path=name)
        result = merged(run, own, tmp_path / "out")
        refused(result, tmp_path / "out", f"names {name!r} as its base model", "name its base with --base")
        assert f"names {name!r} as its base model" in run("chat", own, "--prompt", "x").err
        here = tmp_path / f"merged{number}"
        right(merged(run, own, here, "--base", small("llama")), here, lora[1])
    rows = write_jsonl(tmp_path / "rows.jsonl", make_rows(12))
    result = run("train", "lora", "--model.init_from", own, "--data", rows)
    assert result.code == 2
    assert "name its base with --model" in result.err
    none = configured(lora[0], tmp_path / "none", base_model_name_or_path=None)
    refused(merged(run, none, tmp_path / "out"), tmp_path / "out", "does not name its base", "--base")


def test_a_config_of_a_later_peft_and_a_pickle(run: Run, lora: tuple[Path, torch.Tensor], tmp_path: Path) -> None:
    """unsloth's adapter names: clear before; what is left out of the config is said."""
    later = configured(lora[0], tmp_path / "later", peft_version="9.9", use_newest=True)
    result = merged(run, later, tmp_path / "out")
    right(result, tmp_path / "out", lora[1])
    assert "ignores settings in the adapter's config that it does not support: use_newest=True" in result.err
    own = shutil.copytree(lora[0], tmp_path / "own")
    (own / WEIGHTS).rename(own / "adapter_model.bin")
    refused(merged(run, own, tmp_path / "out2"), tmp_path / "out2", "only safetensors files are read")


def test_a_folder_with_several_checkpoints(
    run: Run, client: MlflowClient, lora: tuple[Path, torch.Tensor], tmp_path: Path
) -> None:
    """The first as text was taken: checkpoint-100 before checkpoint-30."""
    for number in (30, 100, 60):
        shutil.copytree(lora[0], tmp_path / "run" / f"checkpoint-{number}")
    result = merged(run, tmp_path / "run", tmp_path / "out")
    refused(result, tmp_path / "out", "3 adapters and none above them: checkpoint-30, checkpoint-60, checkpoint-100")
    for asked in (
        ["chat", tmp_path / "run", "--prompt", "x"],
        ["train", "lora", "--model.init_from", tmp_path / "run"],
    ):
        result = run(*asked)
        assert result.code == 2
        assert "checkpoint-30, checkpoint-60, checkpoint-100" in result.err
    right(merged(run, tmp_path / "run" / "checkpoint-30", tmp_path / "out"), tmp_path / "out", lora[1])
    for file in lora[0].iterdir():
        shutil.copy(file, tmp_path / "run" / file.name)  # its training ended
    right(merged(run, tmp_path / "run", tmp_path / "out2"), tmp_path / "out2", lora[1])


def test_a_picture_model_trained_on_text(run: Run, client: MlflowClient, small: Small, tmp_path: Path) -> None:
    """axolotl#3409, unsloth#3045: what becomes of the picture part is said; the adapter is for the whole model."""
    base, rows = small("qwen3_5_pictures"), write_jsonl(tmp_path / "rows.jsonl", make_rows(16))
    given = QUICK | {"model": base, "data": rows, "learning_rate": 1e-2, "registry.model_name": "pictures"}
    result = run("train", "lora", *(f"--{key}={value}" for key, value in given.items()), "--json")
    assert result.code == 0, result.err
    assert result.err.index("only its text part (Qwen3_5ForCausalLM) is loaded and trained") < result.err.index(
        "train ..."
    )
    made_of = json.loads(result.out)
    metrics = client.get_run(made_of["run_id"]).data.metrics
    assert metrics["parity/adapter/whole_kl_mean"] < 1e-6
    folder = Path(made_of["folder"]) / "package" / "adapter"
    text = merged(run, folder, tmp_path / "out")
    assert text.code == 0, text.err
    assert "only its text part" in text.err
    whole = PeftModel.from_pretrained(base_model(base, "Qwen3_5ForConditionalGeneration"), folder)
    torch.testing.assert_close(says(base_model(tmp_path / "out")), says(whole), rtol=1e-4, atol=1e-4)
    card, other = ((folder.parent / name / "README.md").read_text() for name in ("adapter", "merged"))
    assert 'Qwen3_5ForConditionalGeneration.from_pretrained("' in card
    assert "does not read pictures" in other
    logged = mlflow.pyfunc.load_model("models:/pictures-adapter@candidate").unwrap_python_model().model
    torch.testing.assert_close(says(logged), says(whole), rtol=1e-4, atol=1e-4)


def test_a_picture_model_that_is_loaded_whole(run: Run, client: MlflowClient, small: Small, tmp_path: Path) -> None:
    """axolotl#3409, unsloth#3045 on Gemma 3: right before, and now said."""
    rows = write_jsonl(tmp_path / "rows.jsonl", make_rows(16))
    given = QUICK | {"model": small("gemma3"), "data": rows}
    result = run("train", "lora", *(f"--{key}={value}" for key, value in given.items()), "--json")
    assert result.code == 0, result.err
    assert "all of it is loaded (Gemma3ForConditionalGeneration)" in result.err
    assert "is not trained" in result.err


def test_patterns_that_fit_no_layer(run: Run, client: MlflowClient, small: Small, tmp_path: Path) -> None:
    """peft#3582: a clear refusal before."""
    rows = write_jsonl(tmp_path / "rows.jsonl", make_rows(12))
    for name in ("alpha_pattern", "rank_pattern"):
        given = {"model": small("llama"), "data": rows, "adapter.options": f"{name}={{wq: 2}}"}
        result = run("train", "lora", *(f"--{key}={value}" for key, value in given.items()))
        assert result.code == 2
        assert "matches no adapted layer" in result.err


@pytest.mark.parametrize(
    ("report", "settings", "words"),
    [
        ("peft#3761", {"lora_bias": True}, "lora_bias"),
        ("peft#1707", {"layer_replication": [[0, 2], [1, 2]]}, "layer_replication"),
    ],
)
def test_what_cannot_be_merged(
    run: Run, client: MlflowClient, small: Small, tmp_path: Path, report: str, settings: dict[str, Any], words: str
) -> None:
    """A traceback after the training (peft#3761), and a merged model that was another one (peft#1707)."""
    made(small("llama"), tmp_path / "own", **settings)
    refused(merged(run, tmp_path / "own", tmp_path / "out"), tmp_path / "out", words, "cannot be merged")
    rows = write_jsonl(tmp_path / "rows.jsonl", make_rows(12))
    options = f"{words}={json.dumps(next(iter(settings.values())))}"
    result = run("train", "lora", "--model", small("llama"), "--data", rows, "--adapter.options", options)
    assert result.code == 2
    assert "the adapter could not be merged after training" in result.err
    assert "train ..." not in result.err


@pytest.mark.parametrize(
    "config",
    [
        PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
        PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
        PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
        CPTConfig(task_type="CAUSAL_LM", cpt_token_ids=[1, 2], cpt_mask=[1, 1], cpt_tokens_type_mask=[1, 1]),
        AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_len=2, adapter_layers=1),
    ],
    ids=lambda config: config.peft_type.value,
)
def test_a_learned_prompt_is_not_merged(run: Run, small: Small, tmp_path: Path, config: Any) -> None:
    """The message named a method that the model does not have, and another base."""
    made(small("llama"), tmp_path / "own", config=config)
    words = (f"{config.peft_type.value} adds to the input", "serve it on its base instead (mlflow-ft serve)")
    refused(merged(run, tmp_path / "own", tmp_path / "out"), tmp_path / "out", "cannot be merged", *words)


@pytest.mark.parametrize("begin", ["pissa_niter_4", "corda", "lora_ga", "loftq"])
def test_a_beginning_that_cannot_be_repeated(
    run: Run, client: MlflowClient, lora: tuple[Path, torch.Tensor], small: Small, tmp_path: Path, begin: str
) -> None:
    """peft#3310: every merge gave another model."""
    own = configured(lora[0], tmp_path / "own", init_lora_weights=begin)
    words = (f"began as {begin}", "save the changed base, too")
    refused(merged(run, own, tmp_path / "out"), tmp_path / "out", *words)
    refused(merged(run, f"{lora[0]},{own}", tmp_path / "out", "--weights", "1,1"), tmp_path / "out", *words)
    rows = write_jsonl(tmp_path / "rows.jsonl", make_rows(12))
    train = ["train", "lora", "--model.init_from", own, "--data", rows]
    for command in (["chat", own, "--prompt", "a"], ["serve", own], train):
        result = run(*command)
        assert result.code == 2, result.err
        assert all(word in result.err for word in words), result.err
        assert "load " not in result.err


def test_pissa_as_peft_converts_it(run: Run, small: Small, tmp_path: Path) -> None:
    """The remedy for those that cannot be repeated."""
    with quiet_peft():
        config = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights="pissa_niter_4", task_type="CAUSAL_LM")
        wrapped: Any = get_peft_model(base_model(small("llama")), config)
        wrapped.peft_config["default"].init_lora_weights = True
        wrapped.save_pretrained(tmp_path / "first")
        with torch.no_grad():
            for weight in wrapped.parameters():
                if weight.requires_grad:
                    weight.add_(0.05 * torch.randn_like(weight))
        wrapped.peft_config["default"].init_lora_weights = "pissa_niter_4"
        wanted = says(wrapped)
        first = str(tmp_path / "first")
        wrapped.save_pretrained(tmp_path / "own", path_initial_model_for_weight_conversion=first)
    right(merged(run, tmp_path / "own", tmp_path / "out"), tmp_path / "out", wanted)


RIGHT: list[dict[str, Any]] = [
    {"modules_to_save": ["mlp"]},
    {"modules_to_save": ["self_attn", "input_layernorm"], "target_modules": ["up_proj"]},
    {"exclude_modules": ["q_proj"]},
    {"layers_to_transform": [1], "target_modules": ["q_proj", "up_proj"]},
    {"use_rslora": True},
]


@pytest.mark.parametrize("settings", RIGHT, ids=str)
def test_what_was_right(run: Run, small: Small, tmp_path: Path, settings: dict[str, Any]) -> None:
    """exclude_modules, layers_to_transform, rsLoRA; peft#3114: whole blocks could not be merged."""
    wanted = made(small("llama"), tmp_path / "own", **settings)
    right(merged(run, tmp_path / "own", tmp_path / "out"), tmp_path / "out", wanted)
    assert load_file(tmp_path / "out" / "model.safetensors")

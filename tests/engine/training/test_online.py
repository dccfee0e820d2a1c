"""GRPO and RLOO learn from rewards as a plain TRL script does, with prompts rendered as in serving."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib import util
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from mlflow_ft.engine.training import online, trainable
from mlflow_ft.errors import ConfigError, DataError, RefusedError
from mlflow_ft.rows import Example
from mlflow_ft.testing import make_rows

Bench = Callable[..., Any]
METHODS: dict[str, tuple[Any, Any, Any]] = {
    "grpo": (online.grpo, GRPOConfig, GRPOTrainer),
    "rloo": (online.rloo, RLOOConfig, RLOOTrainer),
}
REWARDS = '''
def early(completions, **_):
    """The share of letters in the first half of the alphabet."""
    texts = [turns[-1]["content"] for turns in completions]
    return [sum("a" <= sign <= "m" for sign in text) / max(1, len(text)) for text in texts]

def length(completions, answer, **_):
    return [-abs(len(turns[-1]["content"]) - len(wanted)) / 100 for turns, wanted in zip(completions, answer)]
'''


def asked(count: int = 24, **columns: Any) -> list[Example]:
    """Prompts, each with the answer and further columns."""
    return [
        Example(
            messages=tuple(row["messages"][:1]),
            columns={"answer": row["messages"][1]["content"], **{name: of[n] for name, of in columns.items()}},
        )
        for n, row in enumerate(make_rows(count))
    ]


@pytest.fixture
def rewards(tmp_path: Path) -> Path:
    file = tmp_path / "rewards.py"
    file.write_text(REWARDS)
    return file


@pytest.fixture
def make(bench: Bench, rewards: Path) -> Bench:
    """`make("grpo", rows=..., **settings)`: a bench of prompts with short answers, fully tuned."""

    def call(method: str = "grpo", *, funcs: Sequence[str] = ("early",), rows: Any = None, **more: Any) -> Any:
        names = [f"{rewards}:{name}" if name.isidentifier() else name for name in funcs]
        quick = {"max_completion_length": 8, "adapter.kind": "none", "learning_rate": 1e-3, "max_steps": 3}
        given = {"reward_funcs": f"[{', '.join(names)}]", **quick, **more}
        setup = bench(method, rows=rows if rows is not None else asked(), **given)
        return replace(setup, data=replace(setup.data, kind="prompt"))

    return call


def train(setup: Any, model: Any = None) -> Any:
    run = METHODS[setup.job.config.method][0]
    return run(setup.job, setup.data, model or trainable.prepare(setup.job, setup.data, setup.base))


def weights(trained: Any) -> dict[str, torch.Tensor]:
    folder = trained.adapter or trained.model
    return {name: weight for file in folder.glob("*.safetensors") for name, weight in load_file(file).items()}


# --- what is learned


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["none", "lora"])
def test_a_plain_trl_script_learns_the_same(make: Bench, tmp_path: Path, rewards: Path, method: str, kind: str) -> None:
    """Two rewards with weights, each batch learned from twice, a reference, and evaluations in between."""
    settings = {"num_iterations": 2, "max_steps": 6, "objective.beta": 0.1, "temperature": 0.8, "top_p": 0.9}
    rate = {"none": 1e-3, "lora": 3e-2}[kind]
    setup = make(
        method,
        funcs=("early", "length"),
        reward_weights="[1.0, 0.5]",
        eval_steps=2,
        **settings,
        **{"adapter.kind": kind, "adapter.r": 4, "learning_rate": rate},
    )
    train(setup)
    space: dict[str, Any] = {}
    exec(rewards.read_text(), space)  # our own text
    _, config, kind_of_trainer = METHODS[method]
    module = trainable.prepare(setup.job, setup.data, setup.base).module if kind == "lora" else None
    trainer = kind_of_trainer(
        model=module or AutoModelForCausalLM.from_pretrained(setup.base.path, dtype=torch.float32),
        reward_funcs=[space["early"], space["length"]],
        args=config(
            output_dir=str(tmp_path / "plain"),
            max_steps=6,
            learning_rate=rate,
            lr_scheduler_type="cosine",
            warmup_steps=0.03,
            per_device_train_batch_size=4,
            num_generations=4,
            num_iterations=2,
            beta=0.1,
            temperature=0.8,
            top_p=0.9,
            max_completion_length=8,
            reward_weights=[1.0, 0.5],
            optim="adamw_torch_fused",
            activation_checkpointing=False,
            seed=42,
            data_seed=42,
            logging_steps=1,
            bf16=False,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        ),
        train_dataset=Dataset.from_list(
            [{"prompt": [dict(turn) for turn in row.messages], **row.columns} for row in setup.data.train.examples]
        ),
        processing_class=setup.data.tokenizer,
    )
    trainer.train()
    for name in ("loss", "grad_norm", "reward", "rewards/early/mean", "rewards/length/mean", "kl", "entropy"):
        theirs = [entry[name] for entry in trainer.state.log_history if name in entry]
        assert len(theirs) in (3, 6)  # every batch of answers serves twice
        assert setup.curve(f"train/{name}") == pytest.approx(theirs, rel=1e-4, abs=1e-6), name
    assert any(abs(value) > 1e-3 for value in setup.curve("train/loss"))
    assert max(setup.curve("train/kl")) > 1e-5


@pytest.mark.parametrize("method", METHODS)
def test_the_reward_rises(make: Bench, method: str) -> None:
    setup = make(method, max_steps=60, learning_rate=1e-2, per_device_train_batch_size=16, **{"objective.beta": 0.0})
    train(setup)
    curve = setup.curve("train/reward")
    assert sum(curve[-5:]) / 5 > sum(curve[:5]) / 5 + 0.4
    assert setup.curve("eval/reward")[-1] > setup.curve("eval/reward")[0] + 0.3
    first, last = (setup.job.run.tables[f"samples/step_{step:06}.json"] for step in (0, 60))
    assert sum(row["reward/early"] for row in last) > sum(row["reward/early"] for row in first) + 1


@pytest.mark.parametrize("method", METHODS)
def test_evaluations_and_samples_change_nothing_of_what_is_learned(make: Bench, method: str) -> None:
    often = make(method, eval_steps=1, **{"evaluation.samples": 3})
    seldom = make(method, eval_steps=100, **{"evaluation.samples": 0})
    first, second = weights(train(often)), weights(train(seldom))
    assert len(often.job.run.tables) == 4
    assert all(torch.equal(first[name], second[name]) for name in second)
    assert often.curve("train/reward") == seldom.curve("train/reward")


def test_the_curves_that_are_watched(make: Bench) -> None:
    setup = make("grpo", **{"objective.beta": 0.1})
    train(setup)
    names = {name for name, _, _ in setup.points}
    for name in ("reward", "reward_std", "rewards/early/mean", "kl", "entropy", "completions/mean_length", "grad_norm"):
        assert f"train/{name}" in names
    assert {"train/clip_ratio/region_mean", "eval/reward", "eval/rewards/early/mean"} <= names
    assert not {name for name in names if name.startswith(("eval/clip_ratio", "eval/frac_reward_zero_std"))}


@pytest.mark.parametrize("method", METHODS)
def test_qlora_holds_what_trains_in_float32_and_saves_no_reference(make: Bench, method: str) -> None:
    more = {"adapter.kind": "lora", "model.quantize": "nf4", "objective.beta": 0.1, "learning_rate": 1e-2}
    setup = make(method, **more)
    model = trainable.prepare(setup.job, setup.data, setup.base)
    trained = train(setup, model)
    assert {part.dtype for part in model.module.parameters() if part.requires_grad} == {torch.float32}
    assert trained.adapter is not None
    assert not list(trained.adapter.rglob("ref"))
    names = weights(trained)
    assert names
    assert not any("ref" in name.split(".") for name in names)


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_the_reference_leaves_the_model_as_it_was(make: Bench, start: str) -> None:
    """Some beginnings move a part of the base into the adapter: the copy that is the reference must not do it again."""
    setup = make("grpo", max_steps=1, **{"adapter.kind": "lora", "init_lora_weights": start, "objective.beta": 0.1})
    model = trainable.prepare(setup.job, setup.data, setup.base)
    ids = torch.tensor([setup.data.train.encoded[0].input_ids])
    with torch.no_grad():
        before = model.module.eval()(input_ids=ids).logits
    train(replace_learning_rate(setup), model)
    with torch.no_grad():
        after = model.module.eval()(input_ids=ids).logits
    assert torch.allclose(before, after, atol=1e-3)


def replace_learning_rate(setup: Any) -> Any:
    """The same job at a learning rate that changes nothing."""
    settings = setup.job.config.training.model_copy(update={"learning_rate": 1e-12})
    return replace(setup, job=replace(setup.job, config=setup.job.config.model_copy(update={"training": settings})))


# --- what reward functions are given


def test_columns_keep_their_types(make: Bench, tmp_path: Path) -> None:
    file = tmp_path / "typed.py"
    file.write_text(
        "import json\nSEEN = []\n"
        "def typed(prompts, completions, **columns):\n"
        "    own = ('answer', 'number', 'mixed', 'nested', 'some')\n"
        f"    with open({str(tmp_path / 'seen.jsonl')!r}, 'a') as out:\n"
        "        for n, prompt in enumerate(prompts):\n"
        "            row = {name: columns[name][n] for name in own}\n"
        "            out.write(json.dumps({'prompt': prompt, 'said': completions[n], **row}) + '\\n')\n"
        "    return [float(n % 2) for n, _ in enumerate(completions)]\n"
    )
    rows = asked(24, number=range(24), mixed=["x", 1, None, 2.5] * 6, nested=[{"a": [1, {"b": None}]}, {"c": "d"}] * 12)
    rows = [replace(row, columns={**row.columns, "some": 1} if n % 2 else row.columns) for n, row in enumerate(rows)]
    train(make("grpo", rows=rows, funcs=[f"{file}:typed"]))
    seen = [json.loads(line) for line in (tmp_path / "seen.jsonl").read_text().splitlines()]
    assert len(seen) > 12
    known = {row.columns["number"]: row for row in rows}
    for row in seen:
        told = known[row["number"]]
        assert row["prompt"] == [dict(turn) for turn in told.messages]
        assert {name: row[name] for name in told.columns} == dict(told.columns)
        assert row["some"] == told.columns.get("some")
        assert row["said"][-1]["role"] == "assistant"
    assert len({row["number"] for row in seen}) > 4


def test_of_a_conversation_the_last_answer_is_a_column(make: Bench) -> None:
    rows = [Example(messages=tuple(row["messages"])) for row in make_rows(24)]
    setup = make("grpo", rows=rows, funcs=("length", "exact-answer"))
    questions = online.questions(setup.job, setup.data, setup.data.train, {})
    assert [json.loads(row) for row in questions.rows] == [
        {"prompt": [row.messages[0]], "answer": row.messages[1]["content"]} for row in setup.data.train.examples
    ]
    train(setup)
    assert setup.curve("train/rewards/exact-answer/mean")


def test_a_reward_that_has_nothing_to_say_leaves_no_point_in_its_curve(make: Bench, tmp_path: Path) -> None:
    file = tmp_path / "silent.py"
    file.write_text("def silent(completions):\n    return [None] * len(completions)\n")
    setup = make("grpo", funcs=["early", f"{file}:silent"])
    train(setup)
    assert setup.curve("train/rewards/silent/mean") == []
    assert setup.curve("train/reward") == setup.curve("train/rewards/early/mean") != []


def test_a_reward_function_that_raises_ends_the_run(make: Bench, tmp_path: Path) -> None:
    file = tmp_path / "bad.py"
    file.write_text("def bad(completions, answer):\n    return [1 / 0 for _ in answer]\n")
    with pytest.raises(RefusedError, match="'bad' raised ZeroDivisionError"):
        train(make("grpo", funcs=[f"{file}:bad"]))


def test_a_column_that_is_not_there_is_told_before_the_first_step(make: Bench, tmp_path: Path) -> None:
    file = tmp_path / "needs.py"
    file.write_text("def needs(completions, solution, weight=1):\n    return [0.0 for _ in solution]\n")
    with pytest.raises(DataError, match="needs columns that the rows do not have: solution") as caught:
        train(make("grpo", funcs=[f"{file}:needs"]))
    assert "they have answer" in str(caught.value.hint)


def test_columns_with_names_that_trl_uses_are_left_out(make: Bench) -> None:
    setup = make("grpo", rows=asked(24, images=["a"] * 24, completions=["b"] * 24))
    assert online.questions(setup.job, setup.data, setup.data.train, {}).columns == ("answer",)
    train(setup)


# --- prompts


def test_prompts_are_tokenised_as_they_are_served(make: Bench) -> None:
    setup = make("grpo")
    for example, encoded in zip(setup.data.train.examples, setup.data.train.encoded, strict=True):
        assert online.tokens(setup.data.tokenizer, example, {}) == (list(encoded.input_ids), "")


def test_a_prompt_that_trl_would_write_otherwise_is_refused(make: Bench) -> None:
    setup = make("grpo", **{"objective.options": "chat_template_kwargs={shout: red}"})
    setup.data.tokenizer.chat_template = "{{ shout | default('') }}" + setup.data.tokenizer.chat_template
    with pytest.raises(DataError, match="18 train prompts cannot be used for sampling") as caught:
        train(setup)
    assert len(caught.value.problems) == online.TOLD
    assert "differently from the server" in caught.value.problems[0].message
    assert caught.value.problems[0].place.startswith("rows:")


def test_prompts_that_offer_tools_are_refused(make: Bench) -> None:
    rows = asked()
    setup = make("grpo", rows=rows)
    tools = ({"type": "function", "function": {"name": "f", "parameters": {}}},)
    split: Any = replace(setup.data.train, examples=[replace(row, tools=tools) for row in setup.data.train.examples])
    with pytest.raises(DataError, match="18 train prompts") as caught:
        online.questions(setup.job, setup.data, split, {})
    assert "offers tools" in caught.value.problems[0].message


def test_prompts_that_are_too_long_are_left_out(make: Bench) -> None:
    rows = asked()
    longer = replace(rows[20], messages=({"role": "user", "content": "red " * 40},))
    setup = make("grpo", rows=[*rows[:20], longer, *rows[21:]], **{"data.max_length": 32})
    questions = online.questions(setup.job, setup.data, setup.data.train, {})
    assert (len(questions.rows), len(setup.data.train.examples)) == (17, 18)
    assert questions.longest <= 32
    short = make("grpo", **{"data.max_length": 8})
    with pytest.raises(DataError, match="no train prompts are left"):
        train(short)


def test_too_few_prompts_for_a_step_are_refused(make: Bench) -> None:
    with pytest.raises(DataError, match="answers to 4 prompts, but there are only 3"):
        train(make("grpo", rows=asked(4), per_device_train_batch_size=16))


def test_what_does_not_fit_into_the_model_is_refused(make: Bench) -> None:
    with pytest.raises(ConfigError, match="do not fit into the model's 256 positions"):
        train(make("grpo", max_completion_length=250))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"target_modules": "[q_proj, lm_head]", "adapter.kind": "lora"},
            "the trainer of grpo rejects the settings: .*lm_head",
        ),
        ({"objective.options": "{num_generation: 3}"}, "has no field 'num_generation'"),
        ({"objective.options": "{temperature: 3}"}, "temperature has its own setting"),
        ({"objective.options": "{use_vllm: true}"}, "use_vllm has its own setting"),
    ],
)
def test_what_trl_refuses_is_told_in_a_line(make: Bench, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        train(make("grpo", **settings))


def test_a_first_step_without_a_gradient_is_right_where_all_answers_earn_the_same(make: Bench, tmp_path: Path) -> None:
    file = tmp_path / "same.py"
    file.write_text("def same(completions):\n    return [1.0] * len(completions)\n")
    setup = make(
        "grpo", funcs=[f"{file}:same"], rows=[Example(messages=tuple(row["messages"])) for row in make_rows(24)]
    )
    train(replace(setup, data=replace(setup.data, kind="conversation")))
    assert setup.curve("train/grad_norm") == [0.0, 0.0, 0.0]


@pytest.mark.skipif(util.find_spec("vllm") is not None, reason="it would start")
@pytest.mark.parametrize("method", METHODS)
def test_vllm_samples_if_it_is_asked_to(make: Bench, method: str) -> None:
    with pytest.raises(ConfigError, match=f"the trainer of {method} rejects the settings: vLLM is not available"):
        train(make(method, **{"rollout.engine": "vllm"}))


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing. is deprecated")
@pytest.mark.parametrize("method", METHODS)
def test_vllm_reads_as_much_as_is_needed_and_stops_where_trl_does(tmp_path: Path, method: str) -> None:
    kind = partial(METHODS[method][1], output_dir=str(tmp_path), bf16=False, use_cpu=True)
    own = kind(max_completion_length=16)
    online.for_vllm(own, 40, 7)
    assert (own.vllm_max_model_length, own.generation_kwargs) == (56, {"stop_token_ids": [7]})
    given = kind(vllm_max_model_length=99, generation_kwargs={"stop_token_ids": [1], "min_tokens": 2})
    online.for_vllm(given, 40, 7)
    assert given.vllm_max_model_length == 99
    assert given.generation_kwargs == {"stop_token_ids": [1], "min_tokens": 2}


def test_options_reach_trl(make: Bench) -> None:
    setup = make("grpo", max_steps=2, **{"objective.options": "{scale_rewards: none, num_generations_eval: 4}"})
    train(setup)
    assert "eval/frac_reward_zero_std" in {name for name, _, _ in setup.points}

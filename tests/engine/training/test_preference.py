"""Learning from preferences and labels: collated batches give TRL's own losses."""

from __future__ import annotations

import itertools
import math
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, set_seed
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, RewardConfig, RewardTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from mlflow_ft.engine.judging import parity
from mlflow_ft.engine.models import loading
from mlflow_ft.engine.training import preference, trainable, unpaired
from mlflow_ft.errors import ConfigError
from mlflow_ft.rows import Encoded, Example
from mlflow_ft.testing import WORDS

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Nothing follows the end of a turn, so TRL's mask, everything after the prompt, is correct."""
SETTINGS: dict[str, Any] = {"max_steps": 4, "learning_rate": 1e-3, "per_device_train_batch_size": 4, "seed": 42}


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def pairs(count: int = 16) -> list[Example]:
    draw = random.Random(0)
    rows = []
    for number in range(count):
        words = draw.sample(WORDS, 3)
        rows.append(
            Example(
                messages=(turn("user", f"{' '.join(words)} {number}"),),
                chosen=(turn("assistant", " ".join(reversed(words))),),
                rejected=(turn("assistant", " ".join(words[: number % 3 + 1])),),
            )
        )
    return rows


def labelled(count: int = 16) -> list[Example]:
    return [
        Example(messages=(*row.messages, *(row.rejected if number % 2 else row.chosen)), label=not number % 2)
        for number, row in enumerate(pairs(count))
    ]


def plain(kind: Any, settings: Any, rows: list[dict[str, Any]], model: Path, folder: Path, **more: Any) -> list[float]:
    """The losses of a plain script that uses TRL directly."""
    arguments = settings(
        output_dir=str(folder),
        **SETTINGS,
        data_seed=42,
        lr_scheduler_type="cosine",
        warmup_steps=0.03,
        bf16=False,
        activation_checkpointing=False,
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
        **more,
    )
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = TEMPLATE
    set_seed(42)
    if kind is RewardTrainer:
        module: Any = AutoModelForSequenceClassification.from_pretrained(model, num_labels=1)
        module.config.pad_token_id = tokenizer.pad_token_id
    else:
        module = AutoModelForCausalLM.from_pretrained(model)
    trainer = kind(model=module, args=arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def as_pairs(rows: list[Example]) -> list[dict[str, Any]]:
    return [{"prompt": [*row.messages], "chosen": [*row.chosen], "rejected": [*row.rejected]} for row in rows]


PLAIN = {
    "dpo": (DPOTrainer, DPOConfig, {"beta": 0.1}),
    "cpo": (CPOTrainer, CPOConfig, {"beta": 0.1, "max_length": 64}),
    "simpo": (CPOTrainer, CPOConfig, {"beta": 2.0, "loss_type": "simpo", "cpo_alpha": 0.0, "max_length": 64}),
    "orpo": (ORPOTrainer, ORPOConfig, {"beta": 0.1, "max_length": 64}),
    "reward": (RewardTrainer, RewardConfig, {}),
}


@pytest.mark.parametrize("method", PLAIN)
def test_the_first_losses_are_those_of_trl(
    bench: Callable[..., Any], tiny_model: Path, tmp_path: Path, method: str
) -> None:
    setup = bench(method, rows=pairs(), **SETTINGS, **{"adapter.kind": "none", "data.chat_template": TEMPLATE})
    setup.train()
    kind, settings, more = PLAIN[method]
    expected = plain(kind, settings, as_pairs(pairs()[4:]), tiny_model, tmp_path / "trl", **more)
    assert len(expected) == 4
    assert setup.curve("train/loss") == pytest.approx(expected, rel=1e-5)
    assert len(set(expected)) >= 3, "the model learns, so that a wrong gradient would show"


def test_the_first_losses_of_kto_are_those_of_trl(bench: Callable[..., Any], tiny_model: Path, tmp_path: Path) -> None:
    setup = bench("kto", rows=labelled(), **SETTINGS, **{"adapter.kind": "none", "data.chat_template": TEMPLATE})
    setup.train()
    rows = [
        {"prompt": [*row.messages[:-1]], "completion": [row.messages[-1]], "label": row.label} for row in labelled()[4:]
    ]
    expected = plain(KTOTrainer, KTOConfig, rows, tiny_model, tmp_path / "trl", beta=0.1)
    assert setup.curve("train/loss") == pytest.approx(expected, rel=1e-5)
    assert len(set(expected)) >= 3


# ---- what is collated


def row(example: Encoded) -> dict[str, Any]:
    assert example.rejected
    return {
        "input_ids": example.input_ids,
        "labels": example.labels,
        "rejected_ids": example.rejected.input_ids,
        "rejected_labels": example.rejected.labels,
    }


TALK = Encoded(
    input_ids=(5, 6, 7, 8, 9),
    labels=(-100, 6, -100, 8, -100),
    rejected=Encoded(input_ids=(5, 6, 4), labels=(-100, 6, 4)),
)


def test_dpo_compares_the_tokens_that_are_learned_and_no_others() -> None:
    batch = preference.ForDPO(pad_token_id=0)([row(TALK)])
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9], [5, 6, 4, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert batch["completion_mask"].tolist() == [[0, 1, 0, 1, 0], [0, 1, 1, 0, 0]]
    assert set(batch) == {"input_ids", "attention_mask", "completion_mask"}


def test_dpo_gets_what_was_computed_before() -> None:
    given = row(TALK) | {"ref_chosen_logps": -1.5, "ref_rejected_logps": -2.5}
    batch = preference.ForDPO(pad_token_id=0)([given, given])
    assert (batch["ref_chosen_logps"].tolist(), batch["ref_rejected_logps"].tolist()) == ([-1.5] * 2, [-2.5] * 2)


def test_cpo_gets_each_side_for_itself() -> None:
    batch = preference.ForCPO(pad_token_id=0)([row(TALK)])
    assert batch["chosen_labels"].tolist() == [[-100, 6, -100, 8, -100]]
    assert batch["rejected_input_ids"].tolist() == [[5, 6, 4]]
    assert {name.partition("_")[0] for name in batch} == {"chosen", "rejected"}


@pytest.mark.parametrize(
    ("labels", "prompt", "answer"),
    [
        ((-100, -100, 3, 4, -100), (1, 2), (3, 4)),
        ((-100, 2, -100, 4, 5), (1, 2, 3), (4, 5)),
        ((1, 2, 3, 4, 5), (), (1, 2, 3, 4, 5)),
    ],
)
def test_kto_takes_the_last_answer(labels: tuple[int, ...], prompt: tuple[int, ...], answer: tuple[int, ...]) -> None:
    assert unpaired.last_answer(Encoded(input_ids=(1, 2, 3, 4, 5), labels=labels)) == (prompt, answer)


def test_kto_pairs_every_prompt_with_the_answer_before_it_in_its_batch(
    bench: Callable[..., Any], tmp_path: Path
) -> None:
    rows = unpaired.answers(bench("kto", rows=labelled()).data.train, tmp_path, batch_size=5)
    answers, others = rows["completion_ids"], rows["KL_completion_ids"]
    assert len(rows) == 12
    assert others[:5] == [answers[4], *answers[:4]]
    assert others[10:] == [answers[11], answers[10]]
    assert rows["label"] == [not number % 2 for number in range(4, 16)]


def test_kto_takes_both_answers_of_a_preference(bench: Callable[..., Any], tmp_path: Path) -> None:
    train = bench("kto", rows=pairs(8)).data.train
    rows = unpaired.answers(train, tmp_path, batch_size=4)
    assert rows["label"] == [True, False] * 6
    first = train.encoded[0]
    assert [rows["prompt_ids"][place] + rows["completion_ids"][place] for place in (0, 1)] == [
        [*first.input_ids[: len(rows["prompt_ids"][0]) + len(rows["completion_ids"][0])]],
        [*first.rejected.input_ids[: len(rows["prompt_ids"][1]) + len(rows["completion_ids"][1])]],
    ]


def test_kto_holds_some_rows_in_memory_however_many_there_are(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        """Bytes of Python objects at once, while so many rows of 200 tokens are written."""
        row = Encoded(input_ids=tuple(range(1000, 1200)), labels=(-100,) * 100 + tuple(range(1100, 1200)))
        split = SimpleNamespace(
            name=f"of-{count}",
            examples=itertools.repeat(Example(label=True), count),
            encoded=itertools.repeat(row, count),
        )
        tracemalloc.start()
        assert len(unpaired.answers(cast(Any, split), tmp_path, batch_size=4)) == count
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    peak(8)  # imports
    assert peak(8000) < 1.5 * peak(2000)


# ---- the reference


@pytest.mark.parametrize("method", ["dpo", "kto"])
@pytest.mark.parametrize(
    "settings", [{"adapter.kind": "none"}, {"adapter.kind": "lora"}, {"adapter.kind": "lora", "model.quantize": "nf4"}]
)
def test_training_begins_at_the_reference(bench: Callable[..., Any], method: str, settings: dict[str, Any]) -> None:
    rows = pairs() if method == "dpo" else labelled()
    setup = bench(method, rows=rows, max_steps=1, learning_rate=1e-3, **settings)
    trained = setup.train()
    assert setup.curve("train/loss") == pytest.approx([math.log(2) if method == "dpo" else 0.5], abs=1e-6)
    assert setup.curve("train/rewards/chosen") == pytest.approx([0.0], abs=1e-6)
    assert not list(trained.folder.rglob("ref")), "no copy of the reference is kept"


def test_a_new_learned_prompt_is_held_to_the_base_without_it(bench: Callable[..., Any]) -> None:
    setup = bench("dpo", rows=pairs(), max_steps=1, **{"adapter.kind": "prompt"})
    setup.train()
    assert abs(setup.curve("train/rewards/chosen")[0]) > 1e-3


def test_an_adapter_that_is_trained_further_is_held_to_what_it_was(
    bench: Callable[..., Any], tiny_model: Path, tmp_path: Path
) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    get_peft_model(base, config).save_pretrained(tmp_path / "start")
    setup = bench("dpo", rows=pairs(), max_steps=3, learning_rate=1e-2, start=tmp_path / "start")
    trained = setup.train()
    assert setup.curve("train/loss")[0] == pytest.approx(math.log(2), abs=1e-6)
    assert setup.curve("train/loss")[-1] < math.log(2) - 1e-3
    assert [file.name for file in trained.folder.rglob("adapter_model.safetensors")] == ["adapter_model.safetensors"]
    assert not (trained.folder / "adapter" / "ref").exists()


def test_a_reference_that_was_asked_before_is_the_same(bench: Callable[..., Any]) -> None:
    curves = []
    for before in (False, True):
        setup = bench("dpo", rows=pairs(), max_steps=3, learning_rate=1e-2, precompute_ref_log_probs=before)
        setup.train()
        curves.append((setup.curve("train/loss"), setup.curve("eval/loss")))
    assert curves[0][0] == pytest.approx(curves[1][0], rel=1e-5)
    assert curves[0][1] == pytest.approx(curves[1][1], rel=1e-5)
    assert curves[0][0][-1] < math.log(2) - 1e-3


def test_what_was_computed_of_other_rows_is_not_taken(bench: Callable[..., Any], tmp_path: Path) -> None:
    """TRL keeps the reference's log-probabilities in a file by the fingerprint of the rows."""
    setup = bench("dpo", rows=pairs())
    fingerprints = {preference.pairs(side)._fingerprint for side in (setup.data.train, setup.data.eval)}
    assert len(fingerprints) == 2


# ---- it learns


@pytest.mark.parametrize(
    ("method", "rate"), [("dpo", 1e-3), ("kto", 1e-3), ("cpo", 1e-3), ("orpo", 3e-3), ("simpo", 1e-3)]
)
def test_chosen_answers_become_likelier_than_rejected_ones(bench: Callable[..., Any], method: str, rate: float) -> None:
    rows = labelled(40) if method == "kto" else pairs(40)
    more = {"adapter.kind": "none", "per_device_train_batch_size": 8}
    setup = bench(method, rows=rows, max_steps=25, learning_rate=rate, **more)
    setup.train()
    margins = [value for value in setup.curve("train/rewards/margins") if not math.isnan(value)]
    assert sum(margins[-5:]) > sum(margins[:5])
    assert sum(setup.curve("train/loss")[-5:]) < sum(setup.curve("train/loss")[:5])


def test_a_reward_model_learns_and_is_read_back(bench: Callable[..., Any]) -> None:
    more = {"adapter.kind": "none", "per_device_train_batch_size": 8}
    setup = bench("reward", rows=pairs(40), max_steps=40, learning_rate=1e-3, **more)
    trained = setup.train()
    assert setup.curve("train/accuracy")[-1] > 0.95
    module = loading.load_trained(setup.job, setup.data, trained)
    encoded = setup.data.train.encoded[0]
    with torch.no_grad():
        better, worse = (
            module(input_ids=torch.tensor([side.input_ids])).logits[0, 0] for side in (encoded, encoded.rejected)
        )
    assert better > worse


def test_a_reward_adapter_keeps_its_head(bench: Callable[..., Any]) -> None:
    setup = bench("reward", rows=pairs(16), max_steps=6, learning_rate=1e-2)
    model = trainable.prepare(setup.job, setup.data, setup.base)
    trained = setup.job.registry.trainers["reward"].train(setup.job, setup.data, model)
    ids = torch.tensor([setup.data.eval.encoded[0].input_ids])
    again = loading.load_trained(setup.job, setup.data, trained)
    assert isinstance(again, PeftModel)
    assert torch.equal(again(input_ids=ids).logits, model.module.eval()(input_ids=ids).logits)


# ---- what cannot work


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("bta=1", "did you mean beta"),
        ("output_dir=x", "run.output_dir chooses it"),
        ("f_divergence_type=nonsense", "the trainer of dpo rejects the settings: Unknown f_divergence_type: nonsense"),
    ],
)
def test_options_that_trl_does_not_know_are_told(bench: Callable[..., Any], options: str, words: str) -> None:
    with pytest.raises(ConfigError) as error:
        bench("dpo", rows=pairs(), **{"objective.options": options}).train()
    assert words in str(error.value)


def test_options_reach_trl(bench: Callable[..., Any]) -> None:
    curves = []
    for options in ("ld_alpha=0.1", "ld_alpha=1.0"):
        setup = bench("dpo", rows=pairs(), max_steps=4, learning_rate=1e-2, **{"objective.options": options})
        setup.train()
        curves.append(setup.curve("train/loss"))
    assert curves[0][-1] != curves[1][-1]


@pytest.mark.parametrize("loss", ["ipo", "hinge", "robust", "[sigmoid,bco_pair]"])
def test_the_relatives_of_dpo_train(bench: Callable[..., Any], loss: str) -> None:
    setup = bench(
        "dpo", rows=pairs(), max_steps=2, learning_rate=1e-2, **{"objective.loss_type": loss, "label_smoothing": 0.1}
    )
    setup.train()
    assert all(map(math.isfinite, setup.curve("train/loss")))


@pytest.mark.parametrize("begins", ["pissa", "olora"])
def test_an_adapter_that_begins_with_a_part_of_the_base_is_held_to_the_base(
    bench: Callable[..., Any], begins: str
) -> None:
    setup = bench("dpo", rows=pairs(), max_steps=2, learning_rate=1e-2, **{"adapter.init_lora_weights": begins})
    trained = setup.train()
    assert setup.curve("train/loss")[0] == pytest.approx(math.log(2), abs=1e-5)
    again = loading.load_trained(setup.job, setup.data, trained)
    numbers = parity.compare(again, trained.folder / "reference.safetensors")
    assert numbers["kl_max"] < 1e-6

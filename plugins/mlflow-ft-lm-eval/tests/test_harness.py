"""What the harness measures of a model in memory: the scores, their rows, direction and digest, and the tables."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mlflow_ft_lm_eval.engine import harness, results, tasks
from mlflow_ft_lm_eval.options import LmEvalOptions
from transformers import AutoModelForCausalLM, AutoTokenizer

from mlflow_ft import Score
from mlflow_ft.progress import Progress


class Kept:
    """A run that keeps what is logged."""

    def __init__(self) -> None:
        self.tables: dict[str, Sequence[Mapping[str, Any]]] = {}
        self.texts: dict[str, str] = {}

    def table(self, rows: Sequence[Mapping[str, Any]], path: str) -> None:
        json.dumps(rows)
        self.tables[path] = rows

    def artifact_text(self, text: str, path: str) -> None:
        self.texts[path] = text


@pytest.fixture(scope="module")
def subject(tiny_model: Path) -> Any:
    return SimpleNamespace(
        name="tuned",
        model=AutoModelForCausalLM.from_pretrained(tiny_model).eval(),
        data=SimpleNamespace(tokenizer=AutoTokenizer.from_pretrained(tiny_model)),
        config=SimpleNamespace(run=SimpleNamespace(seed=1), evaluation=SimpleNamespace(per_device_eval_batch_size=4)),
        run=Kept(),
        progress=Progress(quiet=True),
    )


@pytest.fixture(scope="module")
def options(task_files: list[str]) -> LmEvalOptions:
    return LmEvalOptions(tasks=task_files)


def by_name(scores: Sequence[Score]) -> dict[str, Score]:
    return {score.name: score for score in scores}


@pytest.fixture(scope="module")
def scores(subject: Any, options: LmEvalOptions) -> dict[str, Score]:
    return by_name(harness.evaluate(subject, options))


def chosen(model: Any, tokenizer: Any, row: Mapping[str, Any], *, by_length: bool) -> int:
    """The choice with the highest log-likelihood after the question, computed without the harness."""
    start = tokenizer(row["question"]).input_ids
    values = []
    for choice in row["choices"]:
        ids = torch.tensor([tokenizer(f"{row['question']} {choice}").input_ids])
        with torch.no_grad():
            logits = model(ids).logits[0].log_softmax(-1)
        picked = logits[:-1].gather(1, ids[0, 1:, None])[len(start) - 1 :].sum().item()
        values.append(picked / len(choice) if by_length else picked)
    return values.index(max(values))


@pytest.mark.parametrize("metric", ["acc", "acc_norm"])
def test_multiple_choice_is_scored_as_by_hand(
    scores: dict[str, Score], subject: Any, rows: list[dict[str, Any]], metric: str
) -> None:
    score, tokenizer = scores[f"lm_eval/colours/{metric}"], subject.data.tokenizer
    by_length = metric == "acc_norm"
    wanted = [float(chosen(subject.model, tokenizer, row, by_length=by_length) == row["answer"]) for row in rows]
    assert score.rows == tuple(wanted)
    assert score.value == pytest.approx(sum(wanted) / len(wanted))
    assert 0 < score.value < 1


def test_the_direction_comes_from_the_task(scores: dict[str, Score]) -> None:
    assert {name: score.lower_is_better for name, score in scores.items()} == {
        "lm_eval/colours/acc": False,
        "lm_eval/colours/acc_norm": False,
        "lm_eval/reverse/exact_match": False,
        "lm_eval/reverse/misses": True,
    }


def continued(subject: Any, text: str, *, tokens: int) -> str:
    """The model's greedy continuation, up to a line's end."""
    ids = torch.tensor([subject.data.tokenizer(text).input_ids])
    with torch.no_grad():
        new = subject.model.generate(ids, max_new_tokens=tokens, do_sample=False)[0, ids.shape[1] :]
    return str(subject.data.tokenizer.decode(new, skip_special_tokens=True)).split("\n")[0]


def test_generated_answers_are_the_models_own(scores: dict[str, Score], subject: Any, options: LmEvalOptions) -> None:
    kept = subject.run.tables["eval/lm_eval/tuned/samples_reverse.json"]
    assert [row["doc_id"] for row in kept] == list(range(12))
    for row in kept[:3]:
        assert continued(subject, row["asked"], tokens=12) == row["answer"]
    assert scores["lm_eval/reverse/exact_match"].rows == tuple(row["exact_match"] for row in kept)


def test_tables_and_settings_are_logged(scores: dict[str, Score], subject: Any) -> None:
    table = {(row["task"], row["metric"]): row for row in subject.run.tables["eval/lm_eval/tuned/results.json"]}
    row = table["colours", "acc"]
    score = scores["lm_eval/colours/acc"]
    assert row["value"] == score.value
    assert row["stderr"] == pytest.approx(torch.tensor(score.rows).std().item() / 12**0.5)
    assert (row["samples"], row["examples"], row["version"], row["higher_is_better"]) == (12, 0, 1.0, True)
    assert table["reverse", "misses"]["higher_is_better"] is False
    settings = json.loads(subject.run.texts["eval/lm_eval/tuned/tasks.json"])
    assert settings["reverse"]["generation_kwargs"]["max_gen_toks"] == 12


def test_options_reach_the_harness_and_change_the_digest(
    scores: dict[str, Score], subject: Any, options: LmEvalOptions
) -> None:
    acc = "lm_eval/colours/acc"
    digests = {scores[acc].digest}
    others = {
        "limit": replace(options, limit=3),
        "share": replace(options, limit=0.5),
        "template": replace(options, apply_chat_template=True, system_instruction="be brief"),
        "examples": replace(options, num_fewshot=2, seed=3, max_new_tokens=2, batch_size=2),
    }
    found, run = {}, subject.run
    for name, changed in others.items():
        subject.run = Kept()
        found[name] = by_name(harness.evaluate(subject, changed))
        digests.add(found[name][acc].digest)
        kept = subject.run.tables["eval/lm_eval/tuned/samples_reverse.json"]
        if name == "template":
            assert kept[0]["asked"].startswith("<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\n")
        if name == "examples":
            assert kept[0]["asked"].count("\n\n") == 2
            assert kept[0]["answer"] == continued(subject, kept[0]["asked"], tokens=2)
    subject.run = run
    assert len(digests) == 5
    assert len(found["limit"][acc].rows) == 3
    assert len(found["share"][acc].rows) == 6
    again = by_name(harness.evaluate(subject, replace(options, samples=False)))
    assert again == scores  # neither the number of examples nor anything else is left over


def test_nothing_is_left_changed(subject: Any, options: LmEvalOptions) -> None:
    random.seed(5)
    torch.manual_seed(5)
    before = random.getstate(), torch.random.get_rng_state()
    weights = {name: value.clone() for name, value in subject.model.state_dict().items()}
    tie = subject.model.tie_weights
    harness.measure(subject, options)
    assert random.getstate() == before[0]
    assert torch.equal(torch.random.get_rng_state(), before[1])
    assert subject.model.tie_weights == tie
    assert all(torch.equal(weights[name], value) for name, value in subject.model.state_dict().items())


def test_untied_embeddings_stay_untied(subject: Any, options: LmEvalOptions, tiny_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    model.config.tie_word_embeddings = True  # as in a base whose head was trained apart
    head = model.lm_head.weight
    wrapped = harness.wrapped(SimpleNamespace(**{**vars(subject), "model": model}), options)
    assert wrapped.model.lm_head.weight is head
    assert head is not model.get_input_embeddings().weight


def test_an_adapter_stays_on(subject: Any, options: LmEvalOptions, scores: dict[str, Score], tiny_model: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    adapted = get_peft_model(model, LoraConfig(r=4, init_lora_weights=False, target_modules="all-linear"))
    torch.manual_seed(0)
    for name, weight in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=1.0)
    other = SimpleNamespace(**{**vars(subject), "model": adapted.eval(), "run": Kept()})
    found = by_name(harness.evaluate(other, options))
    asked = "eval/lm_eval/tuned/samples_colours.json"
    ours = [row["answer"] for row in other.run.tables[asked]]
    assert ours != [row["answer"] for row in subject.run.tables[asked]]
    with adapted.disable_adapter():
        assert by_name(harness.evaluate(other, options)) == scores
    assert found.keys() == scores.keys()


def test_where_nothing_is_logged_only_scores_are_returned(
    subject: Any, options: LmEvalOptions, scores: dict[str, Score]
) -> None:
    assert by_name(harness.evaluate(SimpleNamespace(**{**vars(subject), "run": None}), options)) == scores


def test_rows_are_given_only_of_a_mean() -> None:
    samples = [
        {"filter": "none", "doc_id": 1, "a": 1, "pair": (1, 2), "hole": 4.0},
        {"filter": "none", "doc_id": 0, "a": 0, "pair": (3, 4), "hole": float("nan")},
    ]
    found = {"samples": {"t": samples}}
    assert results.rows_of(found, "t", "a", "none", 0.5) == (0.0, 1.0)
    assert results.rows_of(found, "t", "a", "none", 0.7) == ()  # a score that is not their mean, such as an F1
    assert results.rows_of(found, "t", "pair", "none", 0.5) == ()
    assert results.rows_of(found, "t", "hole", "none", 4.0) == (None, 4.0)
    assert results.rows_of(found, "group", "a", "none", 0.5) == ()


def test_names_have_only_letters_that_mlflow_takes() -> None:
    assert results.name_of("mmlu", "acc", "none") == "lm_eval/mmlu/acc"
    assert results.name_of("gsm8k", "exact_match", "strict-match") == "lm_eval/gsm8k/exact_match/strict-match"
    assert results.name_of("a+b c", "f1", "none") == "lm_eval/a_b_c/f1"


def test_a_groups_digest_is_of_its_tasks() -> None:
    found: dict[str, Any] = {
        "samples": {"a": [{"doc_hash": "1", "target_hash": "2"}], "b": []},
        "versions": {"a": 1},
        "n-shot": {"a": 0},
        "group_subtasks": {"both": ["a", "b"]},
    }
    before = results.digest(found, "both", "")
    found["samples"]["b"] = [{"doc_hash": "3", "target_hash": "4"}]
    assert results.digest(found, "both", "") != before
    assert results.digest(found, "a", "") != results.digest(found, "b", "")


def test_the_plugin_is_imported_without_the_harness() -> None:
    code = "import sys, mlflow_ft_lm_eval; print('lm_eval' in sys.modules, 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"False False\n"


def test_loaded_tasks_are_used_for_both_models(options: LmEvalOptions) -> None:
    assert tasks.load(tasks.wanted(options)) is tasks.load(tasks.wanted(options))

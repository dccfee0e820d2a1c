"""Answers end with their first end token; prompts are whole; sampling is from the model's own probabilities."""

from __future__ import annotations

import itertools

import pytest
import torch
from mlflow_ft_ppo.engine import rollout

from mlflow_ft import ConfigError, DataError, Example

END = (3, 9)


@pytest.mark.parametrize(
    ("tokens", "kept", "finished"),
    [
        ([5, 6, 3, 1, 1], [5, 6, 3], True),
        ([9, 5, 3], [9], True),  # the first of several end tokens
        ([5, 3, 3, 3], [5, 3], True),  # padded with an end token
        ([5, 6, 7], [5, 6, 7], False),
    ],
)
def test_an_answer_ends_with_its_first_end_token(tokens, kept, finished):
    assert rollout.cut(tokens, END) == (kept, finished)


def test_the_mask_covers_the_end_token_and_nothing_after_it():
    sampled = [
        rollout.Sampled(prompt_ids=[4, 5], ids=[6, 3], answer=None),
        rollout.Sampled(prompt_ids=[7], ids=[8, 8, 8, 8], answer=None),
    ]
    batch = rollout.tensors(sampled, pad_token_id=0, device="cpu")
    assert batch.mask.tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert batch.input_ids.tolist() == [[4, 5, 6, 3, 0], [7, 8, 8, 8, 8]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert batch.prompt_lengths.tolist() == [2, 1]


def test_processes_share_the_prompts_of_a_step_and_answer_each_as_often_as_asked():
    taken = [
        rollout.take(iter("abcdefgh"), prompts=2, generations=2, process=process, processes=2) for process in (0, 1)
    ]
    assert taken == [["a", "a", "c", "c"], ["b", "b", "d", "d"]]


def test_every_prompt_comes_once_an_epoch_in_an_order_of_the_seed(bench):
    trial = bench()
    prompts = rollout.prompts(trial.job, trial.data, trial.prepare().module)
    orders = [
        [row.prompt[0]["content"] for row in itertools.islice(prompts.examples(7), 2 * len(prompts))] for _ in "ab"
    ]
    assert orders[0] == orders[1]
    first, second = orders[0][: len(prompts)], orders[0][len(prompts) :]
    assert first != second
    assert sorted(first) == sorted(second) == sorted(row.prompt[0]["content"] for row in trial.data.train.examples)


@pytest.mark.parametrize("kind", ["prompt", "conversation"])
def test_a_prompt_that_leaves_no_room_is_dropped_and_the_generation_prompt_is_kept(bench, capsys, kind):
    answer = ({"role": "assistant", "content": "yes"},) if kind == "conversation" else ()
    texts = ["red"] * 8 + ["red " * 40]
    rows = [Example(messages=({"role": "user", "content": text}, *answer)) for text in texts]
    trial = bench(rows=rows, **{"data.max_length": 32})
    assert trial.data.kind == kind
    prompts = rollout.prompts(trial.job, trial.data, trial.prepare().module)
    assert prompts.indices == [0, 1, 2, 3]
    text = trial.data.tokenizer.decode(prompts.ids(rows[0]))
    assert text == "<|im_start|>user\nred<|im_end|>\n<|im_start|>assistant\n"


def test_without_a_short_enough_prompt_training_is_refused(bench):
    trial = bench(max_completion_length=250)
    with pytest.raises(DataError, match="no prompt is short enough"):
        trial.train()


def test_sampling_is_from_the_models_own_probabilities(bench):
    """The model's defaults (top_k, a penalty) would sample from another distribution than the one that is trained."""
    trial = bench(max_completion_length=1)
    module = trial.prepare().module
    causal = module.get_base_model()
    causal.generation_config.top_k = 1
    causal.generation_config.repetition_penalty = 9.0
    kept = causal.generation_config
    prompts = rollout.prompts(trial.job, trial.data, module)
    rows = [trial.data.train.examples[0]] * 400
    torch.manual_seed(0)
    settings = trial.job.config.rollout
    sampled = rollout.sample(module, trial.data, prompts, rows, settings=settings, batch_size=400)
    assert len({row.ids[0] for row in sampled}) > 100
    assert causal.generation_config is kept


def test_the_temperature_of_sampling_is_that_of_the_log_probabilities(bench):
    """At a low temperature, the policy's own probabilities of the sampled tokens are high."""
    from mlflow_ft_ppo.engine.policy import PolicyWithValue

    trial = bench(max_completion_length=4, temperature=0.02)
    module = trial.prepare().module.eval()
    prompts = rollout.prompts(trial.job, trial.data, module)
    rows = list(trial.data.train.examples)[:16]
    torch.manual_seed(0)
    sampled = rollout.sample(module, trial.data, prompts, rows, settings=trial.job.config.rollout, batch_size=5)
    assert [row.answer.prompt for row in sampled] == [row.prompt for row in rows]
    policy = PolicyWithValue(module, temperature=0.02)
    answers = rollout.tensors(sampled, pad_token_id=1, device="cpu")
    with torch.no_grad():
        seen = answers.look(policy, torch.arange(16))
    surprise = -(seen.logprobs * answers.mask).sum() / answers.mask.sum()
    entropy = (seen.entropy * answers.mask).sum() / answers.mask.sum()
    assert surprise < 2
    assert surprise == pytest.approx(entropy, abs=0.5)  # the mean surprise of samples is the entropy


def test_padding_changes_no_answer(bench):
    """At a temperature near 0 an answer is the most likely one, in a batch with longer prompts or alone."""
    rows = [Example(messages=({"role": "user", "content": "red " * count},)) for count in (1, 9, 3, 20, 1, 2, 4, 8)]
    trial = bench(rows=rows, max_completion_length=6, temperature=1e-4)
    module = trial.prepare().module.eval()
    prompts = rollout.prompts(trial.job, trial.data, module)
    together, alone = (
        rollout.sample(module, trial.data, prompts, rows, settings=trial.job.config.rollout, batch_size=size)
        for size in (8, 1)
    )
    assert [row.ids for row in together] == [row.ids for row in alone]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("{gama: 0.9}", "no field 'gama'"),
        ("{gamma: 1.5}", "gamma must be between 0 and 1"),
        ("{kl_target: 0}", "kl_target must be above 0"),
        ("{kl_estimator: k2}", "kl_estimator must be k1 or k3"),
        ("{num_mini_batches: 1.5}", "whole number"),
        ("{lam: much}", "lam must be float"),
    ],
)
def test_an_option_that_means_nothing_is_refused(bench, options, message):
    from mlflow_ft_ppo.settings import read

    with pytest.raises(ConfigError, match=message):
        read(bench(**{"objective.options": options}).job.config)

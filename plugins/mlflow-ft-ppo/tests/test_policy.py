"""The policy's outputs are the model's, with the value of the state before each token."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from mlflow_ft_ppo.engine import experience, rollout
from mlflow_ft_ppo.engine import policy as policies
from mlflow_ft_ppo.engine.policy import PolicyWithValue, recomputing
from mlflow_ft_ppo.settings import PPOSettings
from transformers import AutoModelForCausalLM

from mlflow_ft import ModelError

PROMPTS, ANSWERS = [[5, 6, 7, 8], [9, 10]], [[20, 21, 22], [30, 31, 32, 33, 3]]


@pytest.fixture
def policy(tiny_model):
    torch.manual_seed(0)
    with_head = PolicyWithValue(AutoModelForCausalLM.from_pretrained(tiny_model).eval(), temperature=0.7)
    torch.nn.init.normal_(with_head.value_head.weight)
    return with_head


def batch():
    sampled = [
        rollout.Sampled(prompt_ids=prompt, ids=ids, answer=SimpleNamespace())
        for prompt, ids in zip(PROMPTS, ANSWERS, strict=True)
    ]
    return rollout.tensors(sampled, pad_token_id=1, device="cpu")


def test_logprobs_values_and_entropy_are_those_of_each_row_alone(policy):
    answers = batch()
    with torch.no_grad():
        seen = answers.look(policy, torch.arange(2))
        for row, (prompt, ids) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
            alone = policy.model(input_ids=torch.tensor([prompt + ids]), output_hidden_states=True)
            places = torch.arange(len(prompt) - 1, len(prompt) + len(ids) - 1)
            expected = (alone.logits[0, places] / 0.7).log_softmax(dim=-1)
            logprobs = expected[torch.arange(len(ids)), torch.tensor(ids)]
            values = policy.value_head(alone.hidden_states[-1][0, places])[:, 0]
            entropy = -(expected.exp() * expected).sum(dim=-1)
            for actual, wanted in zip(seen, (logprobs, values, entropy), strict=True):
                torch.testing.assert_close(actual[row, : len(ids)], wanted, rtol=1e-5, atol=1e-5)


def test_an_answer_without_a_reward_does_not_affect_the_loss(policy):
    judged = experience.Judged(scores=torch.tensor([2.0, 0.0]), known=torch.tensor([True, False]), means={})
    step = experience.collect(policy, None, batch(), judged, settings=PPOSettings(), beta=0.05, batch_size=2)
    assert step.mask.sum(dim=1).tolist() == [3, 0]
    assert step.advantages[0, :3].abs().min() > 0
    assert step.advantages[1].abs().max() == 0
    assert step.answers.mask.sum(dim=1).tolist() == [3, 5]


def test_the_value_head_begins_at_zero(policy):
    fresh = PolicyWithValue(policy.model, temperature=1.0)
    assert batch().look(fresh, torch.arange(2)).values.abs().max() == 0


def test_recomputing_changes_no_gradient_and_leaves_the_model_in_evaluation_mode(policy):
    gradients = []
    for enabled in (False, True):
        policy.zero_grad()
        with recomputing(policy.model, enabled=enabled):
            layer = policy.model.model.layers[0]
            assert layer.training == enabled
            assert not layer.self_attn.training, "dropout inside would be on"
            batch().look(policy, torch.arange(2)).logprobs.sum().backward()
        gradients.append([weight.grad.clone() for weight in policy.model.parameters()])
    assert not any(module.training for module in policy.model.modules())
    assert not policy.model.is_activation_checkpointing
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second)


def test_the_value_head_comes_back_from_its_file(policy, tmp_path):
    policy.save_head(tmp_path)
    fresh = PolicyWithValue(policy.model, temperature=1.0)
    fresh.load_head(tmp_path / policies.HEAD_FILE)
    assert torch.equal(fresh.value_head.weight, policy.value_head.weight)
    with pytest.raises(ModelError, match="cannot be read"):
        fresh.load_head(tmp_path / "nothing.safetensors")
    policy.value_head = torch.nn.Linear(7, 1)
    policy.save_head(tmp_path)
    with pytest.raises(ModelError, match="size mismatch"):
        fresh.load_head(tmp_path / policies.HEAD_FILE)

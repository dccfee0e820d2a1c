"""Log-probabilities by an output layer that is not trained are torch's, with their gradients."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from trl.kernels.chunked_logprob import ChunkedLogProbFunction

from mlflow_ft.engine import frozen_head
from mlflow_ft.engine.models.fused_head import Scoring

DRAW = torch.Generator().manual_seed(0)
WEIGHT, BIAS = torch.randn(50, 8, generator=DRAW), torch.randn(50, generator=DRAW)
TOKENS = torch.randint(0, 50, (23,), generator=DRAW)
OF_DPO = ("log_probs", "entropy", "mean_logits", "is_top1")


def states() -> Tensor:
    return torch.randn(23, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()


def by_torch(given: Tensor, bias: Tensor | None, scale: float) -> frozen_head.Scored:
    logits = scale * functional.linear(given, WEIGHT, bias)
    all_tokens = logits.log_softmax(dim=1)
    entropy = -(all_tokens.exp() * all_tokens).sum(dim=1)
    log_probs = all_tokens.gather(1, TOKENS[:, None])[:, 0]
    return frozen_head.Scored(log_probs, logits.argmax(dim=1) == TOKENS, entropy, logits.mean(dim=1))


@pytest.mark.parametrize("at_once", [1, 7, 23, 100])
@pytest.mark.parametrize("bias", [None, BIAS], ids=["", "bias"])
@pytest.mark.parametrize("scale", [1.0, 0.3])
@pytest.mark.parametrize("learns", [True, False], ids=["", "no gradient"])
def test_it_is_torchs(
    monkeypatch: pytest.MonkeyPatch, at_once: int, bias: Tensor | None, scale: float, *, learns: bool
) -> None:
    monkeypatch.setattr(frozen_head, "AT_ONCE_BYTES", at_once * 4 * 50)
    ours, theirs = states(), states()
    with torch.set_grad_enabled(learns):
        found = frozen_head.score(ours, WEIGHT, bias, TOKENS, scale=scale, details=True)
        wanted = by_torch(theirs, bias, scale)
    for one, other in zip(found, wanted, strict=True):
        assert one is not None
        assert other is not None
        torch.testing.assert_close(one.detach(), other.detach(), rtol=1e-5, atol=1e-5)
    if learns:
        upstream = torch.randn(23, generator=torch.Generator().manual_seed(2))
        for scored in (found, wanted):
            (scored.log_probs * upstream).sum().backward()
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-5)


def test_likeliest_is_the_first_of_equals() -> None:
    equal = frozen_head.score(torch.ones(2, 1), torch.ones(3, 1), None, torch.tensor([0, 2]))
    assert equal.is_top1.tolist() == [True, False]
    assert equal.entropy is equal.mean_logits is None


def test_no_token_has_no_score() -> None:
    nothing = torch.zeros(0, 8, requires_grad=True)
    frozen_head.score(nothing, WEIGHT, None, TOKENS[:0]).log_probs.sum().backward()
    assert nothing.grad is not None
    assert nothing.grad.shape == (0, 8)


def frozen(layer: Any) -> Any:
    return layer.requires_grad_(requires_grad=False)


def with_own_forward(layer: Any) -> Any:
    layer.forward = layer.forward
    return layer


def with_trained_bias(layer: Any) -> Any:
    layer.bias.requires_grad_(requires_grad=True)
    return layer


class Other(nn.Linear):
    """As an adapter, or a quantised layer."""


@pytest.mark.parametrize(
    ("layer", "fits"),
    [
        pytest.param(frozen(nn.Linear(8, 50)), True, id="frozen"),
        pytest.param(nn.Linear(8, 50), False, id="trained"),
        pytest.param(with_trained_bias(frozen(nn.Linear(8, 50))), False, id="trained bias"),
        pytest.param(frozen(Other(8, 50)), False, id="another kind"),
        pytest.param(frozen(nn.Linear(8, 50)).bfloat16(), False, id="bfloat16"),
        pytest.param(with_own_forward(frozen(nn.Linear(8, 50))), False, id="hooked by accelerate"),
    ],
)
def test_only_a_frozen_matrix_fits(layer: Any, *, fits: bool) -> None:
    assert frozen_head.fits(layer, states()) is fits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not frozen_head.fits(layer, states())


@pytest.mark.parametrize(
    ("outputs", "softcap", "ours"),
    [
        pytest.param(OF_DPO, None, True, id="dpo"),
        pytest.param(("log_probs", "entropy", "mean_logits"), None, True, id="kto"),
        pytest.param(("log_probs",), None, True, id="reference"),
        pytest.param(("log_probs", "entropy"), None, False, id="grpo, whose entropy may be learned"),
        pytest.param((*OF_DPO, "log_sum_sq_probs"), None, False, id="wpo"),
        pytest.param(OF_DPO, 5.0, False, id="soft-capping"),
    ],
)
def test_in_the_place_of_trls_function(
    monkeypatch: pytest.MonkeyPatch, outputs: tuple[str, ...], softcap: float | None, *, ours: bool
) -> None:
    score = Mock(wraps=frozen_head.score)
    monkeypatch.setattr(frozen_head, "score", score)
    arguments = WEIGHT, BIAS, TOKENS, 0.7, 16, softcap, 2.0, outputs
    first, second = states(), states()
    apply: Any = ChunkedLogProbFunction.apply
    found, wanted = Scoring.apply(first, *arguments), apply(second, *arguments)
    assert score.called is ours
    for one, other in zip(found, wanted, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    assert found[0] is not None
    found[0].sum().backward()
    wanted[0].sum().backward()
    torch.testing.assert_close(first.grad, second.grad, rtol=1e-4, atol=1e-5)

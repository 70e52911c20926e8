"""Divergences against hand-computed numbers and, for gradients, against autograd in fp64."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn

from lensmith.lens.divergence import BITS, LinearKL, cosine, entropy_bits, kl_bits, token_rank
from lensmith.source.head import Head, Transform
from lensmith.source.teacher import Teacher

D_VOCAB, D_MODEL, N = 50, 8, 7


def test_kl_is_in_bits_not_nats():
    """Reading a fair coin as (1/4, 3/4) costs log2(2)/2 + log2(2/3)/2 = 0.2075 bits."""
    fair = torch.tensor([[0.5, 0.5]]).log()
    biased = torch.tensor([[0.25, 0.75]]).log()

    assert kl_bits(fair, biased).item() == pytest.approx(0.2075, abs=1e-4)
    assert kl_bits(fair, fair).item() == 0


def test_a_token_that_the_model_excludes_costs_nothing():
    """0 * -inf is NaN, which must not enter the sum."""
    p = torch.tensor([[0.0, 0.0, -math.inf]])

    assert kl_bits(p, torch.zeros(1, 3)).item() == pytest.approx(math.log2(3 / 2))
    assert entropy_bits(p).item() == pytest.approx(1.0)


def test_kl_refuses_shapes_that_would_broadcast():
    """One row against many would give a plausible number."""
    with pytest.raises(ValueError, match="kl_bits"):
        kl_bits(torch.zeros(1, 3), torch.zeros(2, 3))


def test_rank_zero_is_the_top_and_ties_are_not_above():
    """Of logits 3, 1, 3, 0 the token with 1 has two above it; each 3 has none."""
    logits = torch.tensor([[3.0, 1.0, 3.0, 0.0]]).expand(4, 4)

    assert token_rank(logits, torch.arange(4)).tolist() == [0, 2, 0, 3]


def test_cosine_of_a_right_angle_is_zero():
    """The cosine of a vector and its double is one."""
    a = torch.tensor([1.0, 0.0])

    assert cosine(a, torch.tensor([0.0, 5.0])).item() == 0
    assert cosine(a, 2 * a).item() == pytest.approx(1)


def head_of(transform: Transform, *, has_bias: bool) -> Head:
    generator = torch.Generator().manual_seed(0)
    W_U = torch.randn(D_VOCAB, D_MODEL, generator=generator, dtype=torch.float64)
    bias = torch.randn(D_VOCAB, generator=generator, dtype=torch.float64) if has_bias else None
    return Head(W_U, bias, transform, nn.Identity(), (None,), "")


def reference(head: Head, y_final: Tensor, y: Tensor, log_tau: Tensor) -> Tensor:
    """KL in nats from the definition alone, sharing no code with the closed form."""

    def logits(x: Tensor, tau: Tensor | float) -> Tensor:
        z = x @ head.W_U.T + (0 if head.bias is None else head.bias)
        z = head.transform.scale * z / tau
        cap = head.transform.softcap
        return z if cap is None else cap * torch.tanh(z / cap)

    p, q = logits(y_final, 1.0).softmax(-1), logits(y, log_tau.exp()[:, None]).softmax(-1)
    return (p * (p / q).log()).sum(-1)


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("transform", [Transform(), Transform(scale=0.3), Transform(scale=2.0, softcap=5.0)])
def test_the_gradient_is_exact(transform, has_bias, monkeypatch):
    """Value and both gradients of two layers equal autograd's in fp64 to 1e-12, for linear, scaled, capped and biased
    heads, with rows in chunks of three.
    """
    monkeypatch.setattr("lensmith.source.head.MIN_POSITIONS", 3)
    head = head_of(transform, has_bias=has_bias)
    generator = torch.Generator().manual_seed(1)
    y_final = torch.randn(N, D_MODEL, generator=generator, dtype=torch.float64)
    y = torch.randn(2, N, D_MODEL, generator=generator, dtype=torch.float64)
    log_tau = torch.tensor([0.3, -0.2], dtype=torch.float64)
    linear_kl = LinearKL(head, budget=1)

    kl, d_y, d_log_tau = linear_kl(Teacher.from_head_input(head, y_final), y, log_tau)

    assert linear_kl.chunk == 3
    for layer in range(2):
        leaf, row_tau = y[layer].clone().requires_grad_(), log_tau[layer].expand(N).clone().requires_grad_()
        expected = reference(head, y_final, leaf, row_tau)
        expected_y, expected_tau = torch.autograd.grad(expected.sum(), (leaf, row_tau))
        torch.testing.assert_close(kl[layer], expected.detach(), rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(d_y[layer], expected_y, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(d_log_tau[layer], expected_tau, rtol=1e-12, atol=1e-13)
        decoded = kl_bits(head.logits(y_final), head.logits(y[layer], log_tau[layer]))
        torch.testing.assert_close(kl[layer] * BITS, decoded)
    torch.testing.assert_close(
        linear_kl.value(Teacher.from_head_input(head, y_final), y, log_tau), kl, rtol=1e-12, atol=1e-13
    )


def test_low_precision_products_change_the_kl_little():
    """bf16 has 8 bits: values within a few percent of the fp32 ones, gradients in nearly the same direction."""
    head = head_of(Transform(), has_bias=False)
    head = dataclasses.replace(head, W_U=head.W_U.float())
    generator = torch.Generator().manual_seed(2)
    y_final, y = torch.randn(N, D_MODEL, generator=generator), torch.randn(1, N, D_MODEL, generator=generator)
    teacher, tau = Teacher.from_head_input(head, y_final), torch.zeros(1)

    exact, rounded = LinearKL(head)(teacher, y, tau), LinearKL(head, torch.bfloat16)(teacher, y, tau)

    assert not torch.equal(rounded[0], exact[0])
    torch.testing.assert_close(rounded[0], exact[0], rtol=0.05, atol=0.05)
    assert cosine(rounded[1].flatten(), exact[1].flatten()) > 0.999

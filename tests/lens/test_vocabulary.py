"""The tokens of a sampled step: what they stand for, how they are drawn, and what the gradient then is."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from lensmith.lens import vocabulary
from lensmith.lens.divergence import LinearKL
from lensmith.lens.vocabulary import SampledVocabulary
from lensmith.process.errors import InputError
from lensmith.source.head import Head, Transform
from lensmith.source.teacher import LIKELY, Teacher
from tests.support.settings import fit_params

V, D, N = 3000, 12, 40
TOKENS = np.arange(64, dtype=np.uint32).repeat(np.arange(64, 0, -1)).reshape(1, -1)  # 0 most often, 63 once


def head(bias: bool = True, **transform: float) -> Head:
    draw = torch.Generator().manual_seed(0)
    b = torch.randn(V, generator=draw) if bias else None
    return Head(torch.randn(V, D, generator=draw), b, Transform(**transform), nn.Identity(), (None,), "")


def drawn(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sampled(monkeypatch: pytest.MonkeyPatch, frequent: int, n_drawn: int, **values: object) -> SampledVocabulary:
    monkeypatch.setattr(vocabulary, "FREQUENT", frequent)
    monkeypatch.setattr(vocabulary, "DRAWN", n_drawn)
    found = SampledVocabulary.of(fit_params(vocabulary="sampled", **values), head(), TOKENS)
    assert found is not None
    return found


@pytest.mark.parametrize("bias", [False, True])
def test_with_every_token_in_d_a_sampled_step_is_the_exact_one(bias, monkeypatch):
    """Value and gradients to rounding, for a head with a scale, with and without a bias."""
    model_head = head(bias, scale=0.7)
    y, log_tau = drawn((2, N, D), 1), torch.tensor([0.3, -0.2])
    teacher = Teacher.from_head_input(model_head, drawn((N, D), 2))
    tokens, log_weights = sampled(monkeypatch, V, 16).draw(teacher, step=0)

    assert len(tokens) == V and not log_weights.any()
    exact = LinearKL(model_head)
    found = exact.restricted_to(tokens, log_weights)(teacher, y, log_tau)
    for one, other in zip(found, exact(teacher, y, log_tau), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_the_draws_estimate_the_sum_of_exponentials_without_bias(monkeypatch):
    """The mean of exp(lse) over 400 steps is that of all tokens within four standard errors; one token a draw."""
    model_head, y = head(), 0.3 * drawn((1, N, D), 1)
    teacher = Teacher.from_head_input(model_head, drawn((N, D), 2))
    vocab, exact = sampled(monkeypatch, 32, 64), LinearKL(model_head)
    whole = exact.value(teacher, y, torch.zeros(1)).mean(0).double().exp()
    ratios = torch.stack(
        [(part.value(teacher, y, torch.zeros(1))[0].double().exp() / whole).mean()
         for part in (exact.restricted_to(*vocab.draw(teacher, step)) for step in range(400))]
    )  # fmt: skip

    error = ratios.std() / len(ratios) ** 0.5
    assert abs(ratios.mean() - 1) < 4 * error and ratios.std() > 0.01


def test_a_draw_holds_the_frequent_and_the_likely_and_weighs_the_rest(monkeypatch):
    """No token twice; those of D count once, those of S for all others; another step draws another S."""
    teacher = Teacher.from_head_input(head(), drawn((N, D), 2))
    vocab = sampled(monkeypatch, 8, 50)
    (tokens, log_weights), (others, _) = vocab.draw(teacher, step=3), vocab.draw(teacher, step=4)

    certain = {*range(8), *teacher.likely.flatten().tolist()}
    in_s = [token for token, weight in zip(tokens.tolist(), log_weights.tolist(), strict=True) if weight]
    assert len(set(tokens.tolist())) == len(tokens) == len(certain) + 50
    assert set(tokens.tolist()) - certain == set(in_s)
    assert log_weights.exp().sum().item() == pytest.approx(V, rel=1e-5)
    assert torch.equal(tokens, vocab.draw(teacher, step=3)[0]) and not torch.equal(tokens, others)


def test_the_teachers_likeliest_tokens_are_kept_by_position():
    """The tokens of the largest logits at each position, of which a part takes its part."""
    model_head, y = head(), drawn((N, D), 2)
    teacher = Teacher.from_head_input(model_head, y)

    top = model_head.logits(y).topk(LIKELY).indices
    assert torch.equal(teacher.likely.sort(-1).values, top.int().sort(-1).values)
    assert torch.equal(teacher.part(slice(3, 9)).likely, teacher.likely[3:9])


@pytest.mark.parametrize(
    ("asked", "d_vocab", "softcap", "taken"),
    [
        ("exact", 2**15, None, False), ("sampled", 100, None, True), ("auto", 2**14 - 1, None, False),
        ("auto", 2**14, None, True), ("auto", 2**15, 30.0, False),
    ],
)  # fmt: skip
def test_auto_samples_large_vocabularies_of_linear_heads(asked, d_vocab, softcap, taken):
    """A softcap is not linear in y, so its steps need every token."""
    model_head = replace(head(False), W_U=torch.zeros(d_vocab, 2), transform=Transform(softcap=softcap))
    assert (SampledVocabulary.of(fit_params(vocabulary=asked), model_head, TOKENS) is not None) == taken


def test_sampled_is_refused_for_a_softcap():
    """One line says what is allowed."""
    with pytest.raises(InputError, match=r"fit\.vocabulary is sampled, .* caps its logits.* must be exact or auto"):
        SampledVocabulary.of(fit_params(vocabulary="sampled"), head(softcap=30.0), TOKENS)

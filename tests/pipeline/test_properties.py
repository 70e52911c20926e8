"""What must hold of any fit, at the level of `training.fit` alone: the ladder, the gain, and KL itself."""

import itertools

import pytest
import torch
from torch import Tensor, nn

from lensmith.lens.divergence import kl_bits
from lensmith.lens.fitted import Fit
from lensmith.lens.lens import Lens
from lensmith.lens.training import fit
from lensmith.source.head import Head, Transform
from tests.support.held_rows import HeldRows
from tests.support.settings import fit_params

L, D, V, P = 4, 12, 23, 6


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def head() -> Head:
    return Head(drawn(V, D, seed=0), None, Transform(), nn.Identity(), (None,) * L, "")


def linear(n_seqs: int, seed: int) -> HeldRows:
    """Layers that are the last one through a fixed map each, shorter and shifted, with noise of their own."""
    maps, last = 0.3 * drawn(L - 1, D, D, seed=7) + torch.eye(D), drawn(n_seqs * P, D, seed=seed)
    layers = [0.6 * last @ m + 0.5 + 0.2 * drawn(n_seqs * P, D, seed=seed + 10 + i) for i, m in enumerate(maps)]
    return HeldRows(torch.stack([*layers, last], 1), P)


def gained(n_seqs: int, seed: int) -> HeldRows:
    """Layers that are the last one with each dimension multiplied by a gain, as another norm's would be."""
    gain, last = torch.linspace(0.4, 2.5, D), drawn(n_seqs * P, D, seed=seed)
    return HeldRows(torch.stack([last / gain] * (L - 1) + [last], 1), P)


def fitted(rows, **values) -> Fit:
    shipped = {"batch_seqs": 8, "validate_every": 60, "epochs": 15, "lr": 0.05, "patience": 99, "rank": 4}
    settings = fit_params(**shipped | values)
    return fit(head(), rows(96, seed=1), rows(32, seed=2), settings, Lens.start(settings, L, D))


def test_each_rung_of_the_ladder_is_better_on_held_out_rows():
    """identity, temperature, bias, low_rank, full: each has the one before as a special case."""
    scores = [fitted(linear, kind=k).best.score for k in ("identity", "temperature", "bias", "low_rank", "full")]

    assert all(better < 0.98 * worse for worse, better in itertools.pairwise(scores)), scores


def test_a_gain_by_dimension_is_absorbed_by_scale_and_not_by_rank():
    """A factor per dimension needs no rank; without it, rank 1 cannot stand in for twelve of them."""
    with_scale, without = (fitted(gained, kind="low_rank", rank=1, scale=scale) for scale in (True, False))

    assert with_scale.best.score < 0.1 * without.best.score
    for block in range(L - 1):
        lens = with_scale.lens
        update = lens.U[block] @ lens.V[block].T
        whole = (lens.scale[block].diag() + update) / lens.log_tau[block].exp()
        assert update.norm() < 0.35 * (lens.scale[block] - 1).norm()
        torch.testing.assert_close(whole, torch.linspace(0.4, 2.5, D).diag(), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("size", [0.1, 1.0, 30.0])
def test_kl_is_never_negative_and_zero_for_itself(size):
    """Within float32 rounding, for flat and for sharp distributions."""
    p, q = size * drawn(50, V, seed=3), size * drawn(50, V, seed=4)

    assert (kl_bits(p, q) > 0).all()
    assert kl_bits(p, p).abs().max() == 0
    assert kl_bits(p, p + 3).abs().max() < 1e-5  # a constant changes no distribution

"""The closed form: exact where a linear map is, optimal in its metric, and the start of a better fit."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from lensmith.lens import closed_form, moments, objective, rank_curve, training
from lensmith.lens.coordinates import Coordinates
from lensmith.lens.divergence import LinearKL
from lensmith.lens.lens import Lens
from lensmith.lens.moments import FISHER_EVERY, Moments
from lensmith.lens.spectrum import top_singular
from lensmith.process.errors import NumericError
from lensmith.source.head import Head, Transform
from tests.support.held_rows import HeldRows
from tests.support.settings import fit_params

L, D, V, P = 4, 12, 23, 6


def head(**changes) -> Head:
    W_U = torch.randn(V, D, generator=torch.Generator().manual_seed(0))
    return replace(Head(W_U, None, Transform(), nn.Identity(), (None,) * L, ""), **changes)


def rows(n_seqs: int, seed: int, noise: float = 0.0) -> HeldRows:
    """Layer l is an affine map of the last one, with noise of its own."""
    fixed, draw = torch.Generator().manual_seed(7), torch.Generator().manual_seed(seed)
    maps = torch.randn(L, D, D, generator=fixed) * 0.15 + torch.eye(D)
    shift = torch.randn(L, D, generator=fixed)
    last = torch.randn(n_seqs * P, D, generator=draw)
    layers = [last @ maps[i] + shift[i] + noise * torch.randn(len(last), D, generator=draw) for i in range(L - 1)]
    return HeldRows(torch.stack([*layers, last], 1), P)


def solved(kind: str = "low_rank", rank: int = 4, **changes) -> tuple[LinearKL, Lens, closed_form.Solution]:
    linear_kl, settings = LinearKL(head(**changes)), fit_params(kind=kind, rank=rank)
    start = Lens.start(settings, L, D)
    solution = closed_form.solve(linear_kl, rows(200, 1), rows(16, 2), start)
    return linear_kl, solution.lens(start), solution


def test_a_center_is_the_mean_direction_at_the_harmonic_mean_length():
    """In numpy, of the first sequences alone; a residual a thousand times as long hardly moves it, and zero is none."""
    data = rows(moments.CENTER_SEQS + 8, 1, noise=0.3)
    data.resid[moments.CENTER_SEQS * P :] = 99.0
    data.resid[0] *= 1000
    data.resid[1, 2] = 0
    found = moments.centers(head(), data)

    x = data.resid[: moments.CENTER_SEQS * P].double().numpy()
    length = np.linalg.norm(x, axis=-1)
    mean = np.stack([(x[:, i] / np.maximum(length[:, i : i + 1], 1e-300)).mean(0) for i in range(L)])
    direction = mean / np.linalg.norm(mean, axis=-1, keepdims=True)
    for i in (0, 1, 3):  # at layer 3 a residual is zero
        np.testing.assert_allclose(found[i], direction[i] / (1 / length[:, i]).mean(), rtol=1e-5)
    assert found.isfinite().all()
    data.resid[0] /= 1000
    np.testing.assert_allclose(found[0], moments.centers(head(), data)[0], rtol=0.02)


def test_moments_are_numpys():
    """Means, covariances and Fisher information from chunks and a shift equal those from all rows at once in fp64."""
    data, model_head = rows(40, 1, noise=0.3), head(transform=Transform(scale=2.0, softcap=5.0))
    found = Moments.of(model_head, data, Lens.start(fit_params(rank=4), L, D), [0, 2], with_fisher=True)

    x, f = data.resid.double().numpy(), data.resid[:, -1].double().numpy()
    W = model_head.W_U.double().numpy()
    capped = 5 * np.tanh(2 * f @ W.T / 5)
    capped = capped[::FISHER_EVERY]
    p = np.exp(capped) / np.exp(capped).sum(1, keepdims=True)
    j = 1 - (capped / 5) ** 2
    fisher = sum(W.T @ (np.diag(a * b) - np.outer(a, a)) @ W for a, b in zip(p * j, j, strict=True))
    for i, block in enumerate((0, 2)):
        both = np.cov(np.hstack([x[:, block], f]).T, bias=True)
        np.testing.assert_allclose(found.mean[i], x[:, block].mean(0), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found.cov[i], both[:D, :D], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.cross[i], both[:D, D:] - both[:D, :D], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.fisher, fisher / len(p), rtol=1e-4, atol=1e-5)


def test_a_full_rank_closed_form_recovers_the_known_map():
    """Without noise the inverse map exists; the smallest ridge reaches a thousandth of the norm lens's KL."""
    linear_kl, lens, solution = solved("full")
    held_out = rows(16, 2)

    norm_lens = objective.validate(linear_kl, Lens.start(fit_params(kind="bias"), L, D), held_out)
    assert objective.validate(linear_kl, lens, held_out).score < 1e-3 * norm_lens.score
    assert solution.ridge == (min(closed_form.RIDGES),) * (L - 1)


def test_every_rank_is_a_truncation_of_one_solution(monkeypatch):
    """Rank 2 of the solution for rank 6 is the solution for rank 2, at the same ridge."""
    monkeypatch.setattr(closed_form, "RIDGES", (1e-2,))
    wide, narrow = solved(rank=6)[2], solved(rank=2)[2]
    start = Lens.start(fit_params(rank=2), L, D)

    one, other = wide.lens(start), narrow.lens(start)
    torch.testing.assert_close(one.U @ one.V.mT, other.U @ other.V.mT, rtol=1e-3, atol=1e-4)


def test_a_residual_that_is_not_finite_is_named_by_its_layer():
    """The check comes before LAPACK, whose message would be about convergence."""
    data = rows(20, 1)
    data.resid[5, 1] = torch.inf

    with pytest.raises(NumericError, match="layer 2 is not finite"):
        closed_form.solve(LinearKL(head()), data, data, Lens.start(fit_params(rank=4), L, D))


def test_a_large_matrix_is_decomposed_as_a_small_one():
    """Subspace iteration gives the singular values and vectors that LAPACK gives."""
    draw = torch.Generator().manual_seed(1)
    matrix = torch.randn(90, 4, generator=draw).double() @ torch.randn(4, 80, generator=draw).double()
    matrix += 1e-3 * torch.randn(90, 80, generator=draw).double()

    left, size, right = top_singular(matrix, 3)
    u, s, vt = torch.linalg.svd(matrix)
    torch.testing.assert_close(size, s[:3], rtol=1e-6, atol=0)
    torch.testing.assert_close(left * size @ right.T, u[:, :3] * s[:3] @ vt[:3], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("transform", [Transform(), Transform(softcap=3.0)])
def test_temperatures_undo_a_known_one(transform):
    """For a layer that is the last one times exp(a) the temperature is exp(a)."""
    logs = torch.tensor([0.5, -0.4, 0.1])
    last = torch.randn(60, D, generator=torch.Generator().manual_seed(3))
    data = HeldRows(torch.stack([*(last * a.exp() for a in logs), last], 1), P)
    lens = Lens.start(fit_params(kind="temperature"), L, D)

    found = closed_form.temperatures(head(transform=transform), lens, data)
    torch.testing.assert_close(found[:-1], logs, rtol=1e-2, atol=2e-3)
    assert found[-1] == 0


def test_groups_of_layers_change_nothing(monkeypatch):
    """With memory for the moments of one layer the rows are read once a layer, and the lens is the same."""
    whole = solved()[1]
    monkeypatch.setattr(closed_form, "MOMENT_BYTES", 1)

    parts = solved()[1]
    for name, tensor in whole.tensors().items():
        torch.testing.assert_close(parts.tensors()[name], tensor)


def test_whitened_coordinates_are_undone_and_white():
    """`enter` then `leave` gives the same lens; in between inputs and Fisher information are the identity."""
    _, lens, solution = solved()
    lens = lens.with_tensors({"scale": torch.cat([torch.full((L - 1, D), 1.3), torch.ones(1, D)])})
    coordinates = Coordinates(
        solution.mean[:-1], solution.whitening, R=solution.head_whitening, B=solution.head_whitening
    )
    back = coordinates.leave(coordinates.enter(lens), lens)

    for name, tensor in lens.tensors().items():
        torch.testing.assert_close(back.tensors()[name], tensor, rtol=1e-4, atol=1e-4)
    x = rows(200, 1).resid[:, 0] - solution.mean[0]
    torch.testing.assert_close((x @ solution.whitening[0]).T.cov(), torch.eye(D), rtol=0.02, atol=0.02)
    start = Lens.start(fit_params(rank=4), L, D)
    fisher = Moments.of(head(), rows(200, 1), start, [0], with_fisher=True).fisher
    fisher += closed_form.FISHER_STEP_RIDGE * fisher.diagonal().mean() * torch.eye(D)
    R = solution.head_whitening.double()
    torch.testing.assert_close(R @ fisher @ R, torch.eye(D, dtype=torch.float64), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("coordinates", ["plain", "whitened"])
def test_gradients_in_coordinates_are_autograds(coordinates):
    """`pull` is the chain rule through U = P U', V = R V', b = B b'."""
    _, lens, solution = solved()
    R = torch.randn(D, D, generator=torch.Generator().manual_seed(5))
    whitened = Coordinates(solution.mean[:-1], solution.whitening, R=R, B=R + torch.eye(D))
    held = {"plain": Coordinates.plain(lens), "whitened": whitened}[coordinates]
    names = ("U", "V", "c")
    trained = {name: held.enter(lens)[name].requires_grad_() for name in names}
    U, V, b = held.factors(trained)
    loss = (U @ V.mT).square().sum() + b.square().sum()
    outer = torch.autograd.grad(loss, (U, V, b), retain_graph=True)
    wanted = torch.autograd.grad(loss, list(trained.values()))

    found = held.pull({name: gradient[[0, 2]] for name, gradient in zip(names, outer, strict=True)}, [0, 2])
    for name, gradient in zip(names, wanted, strict=True):
        torch.testing.assert_close(found[name], gradient[[0, 2]], rtol=1e-4, atol=1e-4)


def test_a_fit_from_the_closed_form_is_better_than_either_alone():
    """Its KL is below that of the closed form, and below that of the same steps from the norm lens."""
    settings = {"rank": 4, "batch_seqs": 8, "epochs": 2, "lr": 0.01, "validate_every": 8}

    def score(**values) -> float:
        chosen = fit_params(**(settings | values))
        start = Lens.start(chosen, L, D)
        return training.fit(head(), rows(64, 1, 0.5), rows(16, 2, 0.5), chosen, start).best.score

    started = score()
    assert started < score(start="norm_lens", coordinates="plain")
    assert started < 0.98 * score(epochs=1e-9, lr=1e-12)


def test_the_curve_of_a_lens_is_its_kl_at_every_rank():
    """At its own rank the KL of the lens, never worse by rank, and near the closed form that it is."""
    linear_kl, train, held_out = LinearKL(head()), rows(200, 1, 0.3), rows(8, 2, 0.3)
    start = Lens.start(fit_params(kind="full"), L, D)
    solution = closed_form.solve(linear_kl, train, held_out, start)
    lens = solution.lens(start)
    closed = rank_curve.of_closed_form(linear_kl, solution, held_out, start)
    curve = rank_curve.of_lens(linear_kl, solution, lens, train, held_out)

    assert list(curve) == list(closed) == [1, 2, 3, 4, 6, 8, 12]
    assert closed[12] == pytest.approx(objective.validate(linear_kl, lens, held_out).score, rel=1e-4)
    warmed = lens.with_tensors({"log_tau": closed_form.temperatures(linear_kl.head, lens, train)})
    assert curve[12] == pytest.approx(objective.validate(linear_kl, warmed, held_out).score, rel=1e-3)
    assert all(wider < 1.001 * narrower for narrower, wider in itertools.pairwise(curve.values()))
    assert all(curve[rank] == pytest.approx(closed[rank], rel=0.2) for rank in curve)


def test_auto_takes_the_smallest_rank_near_the_best():
    """At most half a per cent above the lowest KL, wherever that is."""
    assert rank_curve.smallest_rank({1: 5.0, 2: 3.01, 4: 3.0, 8: 3.01}) == 2
    assert rank_curve.smallest_rank({1: 5.0, 2: 3.02, 4: 3.0, 8: 3.01}) == 4

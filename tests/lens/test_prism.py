"""Prism: whitening, rotation and decoding against the same computed in numpy and fp64."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lensmith.lens.prism import Prism, procrustes
from lensmith.process.errors import IntegrityError, NumericError
from lensmith.source.head import Head, Transform
from tests.support.held_rows import HeldRows

L, D, V, POSITIONS = 3, 8, 21, 5


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def toy_head() -> Head:
    norm = nn.LayerNorm(D).requires_grad_(False)
    norm.weight.data = drawn(D, seed=1).abs() + 0.5
    W_U = drawn(V, D, seed=2) @ torch.diag(torch.arange(1.0, D + 1))
    return Head(W_U, drawn(V, seed=3), Transform(softcap=5.0), norm, (None,) * L, "")


def toy_rows() -> HeldRows:
    """Residuals of unequal mean and spread by dimension: (20 * POSITIONS, L, D)."""
    return HeldRows(drawn(20 * POSITIONS, L, D, seed=4) * torch.arange(1.0, D + 1) + 2, POSITIONS)


def normed() -> np.ndarray:
    x: np.ndarray = toy_head().final_norm(toy_rows().resid).flatten(0, 1).double().numpy()
    return x


@pytest.fixture(scope="module")
def prism() -> Prism:
    return Prism.fit(toy_head(), toy_rows())


def test_whitening_is_that_of_all_blocks_normed_residuals(prism):
    """Mean and deviation equal numpy's over all blocks and positions."""
    x = normed()

    assert prism.residuals == len(x) == 20 * POSITIONS * L
    np.testing.assert_allclose(prism.mean, x.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(1 / prism.inv_scale, x.std(0), rtol=1e-5)


@pytest.mark.parametrize("k", [D, 3])
def test_the_rotation_turns_principal_directions_into_those_of_the_unembedding(k):
    """The i-th direction of the whitened residuals goes to the i-th of W_U, up to its sign; Q is orthogonal."""
    found, x = Prism.fit(toy_head(), toy_rows(), directions=k), normed()
    whitened = (x - x.mean(0)) / x.std(0)
    _, _, seen = np.linalg.svd(whitened, full_matrices=False)
    _, _, read = np.linalg.svd(toy_head().W_U.double().numpy(), full_matrices=False)
    Q = found.rotation.double().numpy()

    assert found.directions == k
    np.testing.assert_allclose(Q.T @ Q, np.eye(D), atol=1e-6)
    np.testing.assert_allclose(np.abs((seen[:k] @ Q * read[:k]).sum(1)), 1, atol=1e-4)
    assert (np.diagonal(seen[:k] @ Q @ seen[:k].T) >= -1e-6).all()  # each pair points one way


def test_what_k_leaves_free_is_nearest_to_the_identity():
    """The nearest map between the complements is the one whose product with the projection is symmetric, >= 0."""
    frames = [np.linalg.qr(drawn(D, D, seed=seed).double().numpy())[0] for seed in (9, 10)]
    (seen, seen_free), (read, read_free) = ((frame[:, :2], frame[:, 2:]) for frame in frames)
    Q = procrustes(torch.from_numpy(seen), torch.from_numpy(read)).numpy()

    np.testing.assert_allclose(Q.T @ Q, np.eye(D), atol=1e-12)
    product = (seen_free.T @ read_free).T @ (seen_free.T @ Q @ read_free)
    np.testing.assert_allclose(product, product.T, atol=1e-12)
    assert (np.linalg.eigvalsh(product) > 0).all()


def test_logits_are_the_written_formula(prism):
    """In fp64 and by hand: LayerNorm, whitening, rotation, W_U with its bias, softcap; the same at every layer."""
    head, resid = toy_head(), 3 * drawn(4, D, seed=5)
    h = resid.double()
    x = (h - h.mean(-1, keepdim=True)) / (h.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    x = x * head.final_norm.weight.double()
    w = (x - prism.mean.double()) * prism.inv_scale.double() @ prism.rotation.double()
    assert head.bias is not None
    expected = 5 * torch.tanh((w @ head.W_U.double().T + head.bias.double()) / 5)

    for layer in (0, 1, L):
        logits = head.logits(*prism.head_reads(head, resid, layer))
        torch.testing.assert_close(logits.double(), expected, rtol=1e-5, atol=1e-5)


def test_an_update_in_the_basis_is_one_in_whitened_and_turned_coordinates(prism):
    """Applying U' and V' to w and going back is the map of U = P U' and V = R V', up to a constant."""
    P, R = (side.double() for side in prism.basis())
    U, V, x = drawn(D, 2, seed=6).double(), drawn(D, 2, seed=7).double(), drawn(4, D, seed=8).double()
    sigma, Q = 1 / prism.inv_scale.double(), prism.rotation.double()

    def update(x: Tensor) -> Tensor:
        w = (x - prism.mean.double()) / sigma @ Q
        changed = w + w @ U @ V.T
        return changed @ Q.T * sigma + prism.mean.double() - x

    folded = x @ (P @ U) @ (R @ V).T
    constant = update(torch.zeros(1, D).double())
    torch.testing.assert_close(update(x) - constant, folded, rtol=1e-4, atol=1e-4)


def test_a_saved_prism_is_the_same_prism_and_the_same_bytes(tmp_path, prism):
    """Two writes agree byte for byte; reading gives every number back."""
    prism.save(tmp_path / "a")
    prism.save(tmp_path / "b")
    back = Prism.load(tmp_path / "a")

    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (back.directions, back.residuals) == (prism.directions, prism.residuals)
    assert torch.equal(back.rotation, prism.rotation) and torch.equal(back.mean, prism.mean)
    assert torch.equal(back.inv_scale, prism.inv_scale)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t["rotation"].mul_(1.1), "not orthogonal"),
        (lambda t: t["rotation"].fill_(torch.nan), "not orthogonal"),
        (lambda t: t["mean"].fill_(torch.inf), "not finite"),
        (lambda t: t.update(mean=torch.zeros(D + 1)), "must be"),
        (lambda t: t.pop("mean"), "not a whole Prism file"),
    ],
)
def test_a_prism_file_that_is_wrong_is_refused(tmp_path, prism, change, message):
    """Each way of being wrong is named."""
    path = tmp_path / "prism.safetensors"
    prism.save(path)
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"lensmith": '{"directions":8,"residuals":1}'})

    with pytest.raises(IntegrityError, match=message):
        Prism.load(path)


def test_a_dimension_that_never_varies_keeps_all_numbers_finite():
    """A gain of zero makes a dimension constant; its scale and all logits stay finite."""
    head = toy_head()
    head.final_norm.weight.data[0] = 0
    found = Prism.fit(head, toy_rows())

    assert found.inv_scale.isfinite().all()
    assert head.logits(*found.head_reads(head, drawn(4, D, seed=5), 1)).isfinite().all()


def test_residuals_that_are_not_finite_are_refused():
    """One NaN would spread to every number."""
    rows = toy_rows()
    rows = replace(rows, resid=rows.resid.clone())
    rows.resid[3, 1, 2] = torch.nan

    with pytest.raises(NumericError, match="not finite"):
        Prism.fit(toy_head(), rows)

"""Translators: what an unfitted lens is, and that a lens on disk is the lens in memory."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from settings import fit_params
from torch import nn

from lensmith.errors import InputError, IntegrityError
from lensmith.lens.translators import Lens, rank_of
from lensmith.source.head import Head, Transform

L, D, V = 3, 16, 11


def toy_head() -> Head:
    W_U = torch.randn(V, D, generator=torch.Generator().manual_seed(0))
    return Head(W_U, None, Transform(), nn.LayerNorm(D), (None,) * L, "")


@pytest.mark.parametrize("kind", ["identity", "temperature", "bias", "low_rank", "full"])
def test_an_unfitted_lens_is_the_norm_lens(kind):
    """Whatever the kind and rank, before the first step it reads what the norm lens reads, bit for bit."""
    head, lens = toy_head(), Lens.start(fit_params(kind=kind, rank=5), L, D)
    resid = torch.randn(4, D, generator=torch.Generator().manual_seed(1))

    for row in range(1, L + 1):
        assert torch.equal(lens.logits(head, resid, row), head.logits(head.norm(resid, row)))


def test_the_start_is_no_saddle():
    """U is drawn and V is zero, so V has a gradient at once and U from the second step on."""
    lens = Lens.start(fit_params(kind="low_rank", rank=5), L, D)

    assert (lens.U[:-1].abs().sum((1, 2)) > 0).all() and not lens.V.any()
    assert lens.U[0].var().item() == pytest.approx(1 / D, rel=0.5)


@pytest.mark.parametrize(
    ("kind", "rank", "d_model", "expected"),
    [("low_rank", "auto", 4096, 128), ("low_rank", "auto", 192, 64), ("low_rank", "auto", 32, 32),
     ("low_rank", "auto", 16384, 256), ("low_rank", 8, 4096, 8), ("full", "auto", 192, 192), ("bias", 8, 192, 0)],
)  # fmt: skip
def test_rank_follows_the_plans_rule(kind, rank, d_model, expected):
    """clip(d_model // 32, 64, 256), and never more than d_model."""
    assert rank_of(fit_params(kind=kind, rank=rank), d_model) == expected


def test_a_rank_above_d_model_is_refused():
    """A wider product could not have a higher rank; the user meant something else."""
    with pytest.raises(InputError, match=r"fit\.rank is 17, must be an integer 1\.\.16"):
        Lens.start(fit_params(kind="low_rank", rank=17), L, D)


def test_a_saved_lens_is_the_same_lens_and_the_same_bytes(tmp_path):
    """Two writes of one lens agree byte for byte, and reading gives every number back."""
    lens = Lens.start(fit_params(kind="low_rank", rank=5, norm="next_input"), L, D)
    lens.save(tmp_path / "a")
    lens.save(tmp_path / "b")

    back = Lens.load(tmp_path / "a")
    assert (tmp_path / "a/weights.safetensors").read_bytes() == (tmp_path / "b/weights.safetensors").read_bytes()
    assert (back.kind, back.norm) == ("low_rank", "next_input")
    assert all(torch.equal(tensor, back.tensors()[name]) for name, tensor in lens.tensors().items())


def damaged(tmp_path, change) -> None:
    Lens.start(fit_params(kind="low_rank", rank=5), L, D).save(tmp_path)
    path = tmp_path / "weights.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"lensmith": '{"kind":"low_rank","norm":"final"}'})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t["c"][-1].fill_(1), "last block's translator is not the identity"),
        (lambda t: t["scale"][-1].fill_(2), "last block's translator is not the identity"),
        (lambda t: t["V"][0].fill_(float("nan")), "V holds a number that is not finite"),
        (lambda t: t.pop("U"), "a lens holds"),
        (lambda t: t.update(c=torch.zeros(L, D + 1)), "c is"),
    ],
)
def test_a_lens_file_that_is_wrong_is_refused(tmp_path, change, message):
    """Each way of being wrong is named: identity, finiteness, names, shapes."""
    damaged(tmp_path, change)

    with pytest.raises(IntegrityError, match=message):
        Lens.load(tmp_path)


def test_a_truncated_lens_file_is_refused(tmp_path):
    """And so is one that is not there."""
    Lens.start(fit_params(kind="bias"), L, D).save(tmp_path)
    path = tmp_path / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-3])

    with pytest.raises(IntegrityError, match="not a whole lens file"):
        Lens.load(tmp_path)
    with pytest.raises(IntegrityError):
        Lens.load(tmp_path / "nowhere")

"""Translators before and after a fit, and lenses on disk."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lensmith.lens.lens import Lens, rank_of
from lensmith.process.errors import InputError, IntegrityError
from lensmith.source.head import Head, Transform
from tests.support.settings import fit_params

L, D, V = 3, 16, 11


def toy_head() -> Head:
    W_U = torch.randn(V, D, generator=torch.Generator().manual_seed(0))
    return Head(W_U, None, Transform(), nn.LayerNorm(D), (None,) * L, "")


@pytest.mark.parametrize("placement", ["normed", "residual"])
@pytest.mark.parametrize("kind", ["identity", "temperature", "bias", "low_rank", "full"])
def test_an_unfitted_lens_is_the_norm_lens(kind, placement):
    """Before the first step, every kind and placement gives the norm lens's logits bit for bit."""
    head, lens = toy_head(), replace(Lens.start(fit_params(kind=kind, rank=5), L, D), placement=placement)
    resid = torch.randn(4, D, generator=torch.Generator().manual_seed(1))

    for layer in range(1, L + 1):
        assert torch.equal(lens.logits(head, resid, layer), head.logits(head.norm(resid, layer)))


def random_lens(placement: str) -> Lens:
    """A lens whose every number but the last block's differs from the start."""
    lens, generator = Lens.start(fit_params(kind="low_rank", rank=5), L, D), torch.Generator().manual_seed(2)
    for tensor in lens.tensors().values():
        tensor[:-1] += 0.5 * torch.randn(tensor[:-1].shape, generator=generator)
    return replace(lens, placement=placement)


@pytest.mark.parametrize("placement", ["normed", "residual"])
def test_logits_are_the_written_formula(placement):
    """In fp64 and by hand: the translator on either side of a LayerNorm, then W_U, then the temperature."""
    head, lens, layer = toy_head(), random_lens(placement), 2
    resid = 3 * torch.randn(4, D, generator=torch.Generator().manual_seed(1))

    def norm(x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()

    def translate(x: Tensor) -> Tensor:
        U, V, c, scale = (getattr(lens, name)[layer - 1].double() for name in ("U", "V", "c", "scale"))
        return x @ (scale.diag() + U @ V.T) + c

    h = resid.double()
    y = translate(norm(h)) if placement == "normed" else norm(translate(h))
    expected = y @ head.W_U.double().T / lens.log_tau[layer - 1].double().exp()
    torch.testing.assert_close(lens.logits(head, resid, layer).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("placement", ["normed", "residual"])
def test_the_last_block_is_the_norm_lens_bit_for_bit_also_from_disk(tmp_path, placement):
    """The other blocks differ from it; the residuals are in half precision."""
    head, lens = toy_head(), random_lens(placement)
    lens.save(tmp_path)
    resid = torch.randn(4, D, generator=torch.Generator().manual_seed(1)).bfloat16()

    for same in (lens, Lens.load(tmp_path)):
        assert same.placement == placement
        assert torch.equal(same.logits(head, resid, L), head.logits(head.norm(resid, L)))
        assert not torch.equal(same.logits(head, resid, 1), head.logits(head.norm(resid, 1)))


def test_permuting_layers_permutes_what_they_read():
    """A layer's logits depend on its own translator alone."""
    head, lens, order = toy_head(), random_lens("normed"), torch.tensor([1, 0, 2])
    resid = torch.randn(4, D, generator=torch.Generator().manual_seed(1))
    permuted = lens.map_tensors(lambda tensor: tensor[order])

    for layer, source in enumerate((order + 1).tolist(), 1):
        assert torch.equal(permuted.logits(head, resid, layer), lens.logits(head, resid, source))


def test_the_start_is_no_saddle():
    """U is drawn and V is zero, so V has a gradient at once and U from the second step on."""
    lens = Lens.start(fit_params(kind="low_rank", rank=5), L, D)

    assert (lens.U[:-1].abs().sum((1, 2)) > 0).all() and not lens.V.any()
    assert lens.U[0].var().item() == pytest.approx(1 / D, rel=0.5)


@pytest.mark.parametrize(
    ("kind", "rank", "start", "d_model", "expected"),
    [("low_rank", "auto", "norm_lens", 4096, 128), ("low_rank", "auto", "norm_lens", 192, 64),
     ("low_rank", "auto", "norm_lens", 32, 32), ("low_rank", "auto", "norm_lens", 16384, 256),
     ("low_rank", "auto", "closed_form", 192, 192), ("low_rank", "auto", "closed_form", 4096, 1024),
     ("low_rank", 8, "closed_form", 4096, 8), ("full", "auto", "closed_form", 192, 192),
     ("bias", 8, "closed_form", 192, 0)],
)  # fmt: skip
def test_rank_follows_its_rule(kind, rank, start, d_model, expected):
    """auto: the widest that a closed form is tried at; without one clip(d_model // 32, 64, 256), at most d_model."""
    assert rank_of(fit_params(kind=kind, rank=rank, start=start), d_model) == expected


def test_a_rank_above_d_model_is_refused():
    """The product U V^T cannot have a higher rank."""
    with pytest.raises(InputError, match=r"fit\.rank is 17, must be an integer 1\.\.16"):
        Lens.start(fit_params(kind="low_rank", rank=17), L, D)


def test_a_saved_lens_is_the_same_lens_and_the_same_bytes(tmp_path):
    """Two writes of one lens agree byte for byte; reading gives every number back."""
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
        (lambda t: t.pop("U"), "must hold"),
        (lambda t: t.update(c=torch.zeros(L, D + 1)), "c is"),
    ],
)
def test_a_lens_file_that_is_wrong_is_refused(tmp_path, change, message):
    """Each way of being wrong is named: identity, finiteness, names, shapes."""
    damaged(tmp_path, change)

    with pytest.raises(IntegrityError, match=message):
        Lens.load(tmp_path)


def test_an_unknown_placement_is_refused(tmp_path):
    """A file of a later form is not read as one of today's."""
    replace(Lens.start(fit_params(kind="bias"), L, D), placement="elsewhere").save(tmp_path)

    with pytest.raises(IntegrityError, match="placement is 'elsewhere', must be one of normed, residual"):
        Lens.load(tmp_path)


def test_a_truncated_lens_file_is_refused(tmp_path):
    """A missing file is refused too."""
    Lens.start(fit_params(kind="bias"), L, D).save(tmp_path)
    path = tmp_path / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-3])

    with pytest.raises(IntegrityError, match="not a whole safetensors file"):
        Lens.load(tmp_path)
    with pytest.raises(IntegrityError):
        Lens.load(tmp_path / "nowhere")


@pytest.mark.parametrize("layer", [-1, 0, 5])
def test_a_layer_without_a_translator_is_refused(layer):
    """Layer 0 is the embedding; as an index -1 it would take the last layer's translator without an error."""
    lens = Lens.start(fit_params(rank=2), n_layers=4, d_model=8)

    with pytest.raises(InputError, match=rf"layer is {layer}, must be in 1\.\.4"):
        lens.translate(torch.zeros(3, 8), layer)

"""A bound lens: vectors against the written-out formulas in fp64, and one clear line for what cannot be read."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import lensmith
from lensmith.process.errors import InputError
from lensmith.read import reader as reader_module
from lensmith.source.borrowed import unwrapped
from lensmith.source.head import Head, Transform
from tests.support.tiny import tiny_model

LAYER = 2


@pytest.fixture(scope="module")
def reader(parts) -> lensmith.Reader:
    model, tokenizer, lens = parts
    return lensmith.bind(lens, model, tokenizer)


@pytest.fixture(scope="module")
def resid(parts) -> torch.Tensor:
    """(1, n, d_model), captured by a hook as a user does."""
    model, tokenizer, _ = parts
    captured = []
    hook = model.model.layers[LAYER - 1].register_forward_hook(lambda _m, _i, output: captured.append(output))
    with torch.no_grad():
        model(**tokenizer("The capital of Ostra is Lume.", return_tensors="pt"))
    hook.remove()
    return captured[0]


def head_input(parts, resid: torch.Tensor) -> torch.Tensor:
    """y of residuals in fp64: RMS norm and lens written out."""
    model, _, lens = parts
    norm = model.model.norm
    x = resid * (resid.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon).rsqrt() * norm.weight.detach().double()
    U, V, c, s = (getattr(lens, name)[LAYER - 1].double() for name in ("U", "V", "c", "scale"))
    return s * x + x @ U @ V.T + c


def products(parts, y: torch.Tensor) -> torch.Tensor:
    model, _, lens = parts
    return y @ model.lm_head.weight.detach().double().T / lens.log_tau[LAYER - 1].double().exp()


def test_states_read_as_written_out_in_fp64(parts, reader, resid):
    """Top tokens, entropy, ranks and probabilities of targets, of a batch of any shape."""
    read = reader.read(resid, layer=LAYER, top_k=4, targets=[3, 5], logits=True)
    logits = products(parts, head_input(parts, resid.double()))
    q = logits.softmax(-1)

    np.testing.assert_allclose(read.logits, logits, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(read.top_scores, q.topk(4).values, rtol=1e-4)
    assert torch.equal(read.top_ids[..., 0], q.argmax(-1))
    np.testing.assert_allclose(read.entropy_bits, -(q * q.log2()).sum(-1), rtol=1e-5)
    for k, token in enumerate((3, 5)):
        np.testing.assert_allclose(read.target_scores[..., k], q[..., token], rtol=1e-4)
        assert torch.equal(read.target_ranks[..., k], (q > q[..., token, None]).sum(-1))


@pytest.mark.parametrize("placement", ["normed", "residual"])
def test_vectors_are_carried_to_the_last_layer(parts, resid, placement):
    """In fp64: y of a tuned lens; of a Jacobian lens J h, without norm and bias. Layer and shape stay; grads pass."""
    model, tokenizer, lens = parts
    maps = torch.randn(lens.n_layers - 1, 32, 32, generator=torch.Generator().manual_seed(4))
    jacobian = lensmith.Lens.of_maps("jacobian", maps, scale=0.0)
    reader = lensmith.bind(lens if placement == "normed" else jacobian, model, tokenizer)
    leaf = resid.clone().requires_grad_()
    carried = reader.transport(leaf, LAYER)
    h = resid.double()
    expected = head_input(parts, h) if placement == "normed" else h @ maps[LAYER - 1].double()

    torch.testing.assert_close(carried.detach().double(), expected, rtol=1e-4, atol=1e-4)
    assert torch.autograd.grad(carried.sum(), leaf)[0].any()
    with pytest.raises(InputError, match=r"read: layer is 0, must be in 1\.\."):
        reader.transport(resid, 0)


@pytest.mark.parametrize("n_states", [1, 3])
def test_a_direction_is_the_jacobian_at_given_states(parts, reader, resid, n_states):
    """By torch.autograd.functional.jvp in fp64, the mean over the states."""
    v = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    states = resid[0, 1 : 1 + n_states]
    read = reader.read(v, layer=LAYER, as_="direction", at=states, targets=[3], logits=True)

    def of(direction: torch.Tensor) -> torch.Tensor:
        jvps = (
            torch.autograd.functional.jvp(lambda h: head_input(parts, h), state.double(), direction.double())[1]
            for state in states
        )
        return products(parts, sum(jvps) / n_states)

    wanted = torch.stack([of(row) for row in v])
    np.testing.assert_allclose(read.logits, wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(read.top_scores[:, 0], wanted.amax(-1), rtol=1e-4)
    assert torch.equal(read.target_ranks[:, 0], (wanted > wanted[:, 3, None]).sum(-1)) and read.entropy_bits is None


def test_a_direction_without_states_is_read_at_the_center_of_the_lens(reader, resid):
    """That of its layer."""
    v, center = torch.ones(2, 32), torch.randn(3, 32, generator=torch.Generator().manual_seed(5))
    centered = replace(reader, lens=replace(reader.lens, center=center))
    at_center = reader.read(v, layer=LAYER, as_="direction", at=center[LAYER - 1], logits=True).logits

    assert torch.equal(centered.read(v, layer=LAYER, as_="direction", logits=True).logits, at_center)
    at_state = centered.read(v, layer=LAYER, as_="direction", at=resid, logits=True).logits
    assert torch.equal(at_state, reader.read(v, layer=LAYER, as_="direction", at=resid, logits=True).logits)


@pytest.mark.parametrize("placement", ["normed", "residual"])
def test_a_direction_is_what_a_small_step_changes(reader, resid, placement):
    """The two meanings agree: the state moved by a little v, less the state; of Jacobian and imported lenses too."""
    reader = replace(reader, lens=replace(reader.lens, placement=placement))
    v, state = torch.randn(32, generator=torch.Generator().manual_seed(1)), resid[0, 2]
    moved, still = (reader.read(state + step * v, layer=LAYER, logits=True).logits for step in (1e-2, -1e-2))
    change = reader.read(v, layer=LAYER, as_="direction", at=state, logits=True).logits

    np.testing.assert_allclose((moved - still) / 2e-2, change, rtol=0.02, atol=0.02)


def test_the_scale_of_a_head_counts_for_directions(reader, resid):
    """As Cohere's and Granite's heads have one."""
    scaled = replace(reader.backbone, head=replace(reader.backbone.head, transform=Transform(scale=0.25)))
    v = torch.ones(32)
    plain, quarter = (
        replace(reader, backbone=backbone).read(v, layer=LAYER, as_="direction", at=resid, logits=True).logits
        for backbone in (reader.backbone, scaled)
    )

    np.testing.assert_allclose(quarter, plain / 4, rtol=1e-5, atol=1e-6)


def test_vectors_are_read_in_chunks_that_change_nothing(reader, resid, monkeypatch):
    """An SAE has thousands of rows; their logits must not be held at once."""
    whole = reader.read(resid, layer=LAYER)
    sizes = []
    monkeypatch.setattr(Head, "positions_at_once", lambda _: 3)
    summary = reader_module._summary
    monkeypatch.setattr(reader_module, "_summary", lambda z, *rest: sizes.append(len(z)) or summary(z, *rest))
    parts = reader.read(resid, layer=LAYER)

    assert max(sizes) == 3 and sum(sizes) == resid.shape[1]
    assert parts.logits is None and torch.equal(parts.top_ids, whole.top_ids)


def test_gradients_pass_through_logits(reader, resid):
    """To optimise a vector towards a token."""
    one = resid[0, 3].clone().requires_grad_()
    reader.read(one, layer=LAYER, logits=True).logits.max().backward()

    assert one.grad.abs().max() > 0
    assert not reader.read(one, layer=LAYER).top_scores.requires_grad


def test_the_frame_has_a_row_for_each_vector(parts, reader, resid):
    """Places in the leading dimensions, text of tokens; without a tokenizer numbers."""
    model, _, lens = parts
    frame = reader.read(resid, layer=LAYER, top_k=2, targets="a").frame()
    wanted = ["dim0", "dim1", "entropy_bits", "top1", "prob1", "top2", "prob2"]

    assert list(frame) == [*wanted, "target1", "target_rank1", "target_prob1"] and len(frame) == resid.shape[1]
    assert set(frame.target1) == {"a"} and frame.dim1.tolist() == list(range(resid.shape[1]))
    one = lensmith.bind(lens, model).read(resid[0, 0].bfloat16(), layer=LAYER, as_="direction", at=resid).frame()
    assert list(one)[:2] == ["top1", "change1"] and one.top1[0].startswith("#")


@pytest.mark.parametrize(
    ("vectors", "options", "says"),
    [
        ((torch.zeros(1, 3, 32),), {}, "vectors is a tuple, must be a tensor"),
        (np.zeros((3, 32)), {}, "vectors is a ndarray, must be a tensor"),
        (torch.zeros(3, 31), {}, r"vectors is torch.float32 of shape \(3, 31\) on cpu, must be \(\.\.\., 32\)"),
        (torch.zeros(0, 32), {}, r"of shape \(0, 32\)"),
        (torch.zeros(3, 32, dtype=torch.long), {}, "vectors is torch.int64"),
        (torch.zeros(3, 32, device="meta"), {}, "on meta"),
        (torch.full((3, 32), torch.nan), {}, "not finite in row 0"),
        (torch.zeros(3, 32), {"layer": 0}, r"layer is 0, must be in 1\.\.3"),
        (torch.zeros(3, 32), {"layer": 4}, r"layer is 4, must be in 1\.\.3"),
        (torch.zeros(3, 32), {"layer": 1.0}, r"layer is 1\.0, must"),
        (torch.zeros(3, 32), {"top_k": 0}, r"top_k is 0, must be in 1\.\.97"),
        (torch.zeros(3, 32), {"as_": "vector"}, "must be 'state' or 'direction'"),
        (torch.zeros(3, 32), {"as_": "direction"}, "at is None, and the lens keeps no center"),
        (torch.zeros(3, 32), {"at": torch.zeros(32)}, "at is given, so as_ must be"),
        (torch.zeros(3, 32), {"as_": "direction", "at": torch.zeros(31)}, r"at is torch.float32 of shape \(31,\)"),
        (torch.zeros(3, 32), {"targets": 97}, r"id 97, must be in 0\.\.96"),
        (torch.zeros(3, 32), {"targets": "capital of"}, r"'capital of' is \d+ tokens \(.*\), must be one"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(reader, vectors, options, says):
    with pytest.raises(InputError, match=rf"^(?:read|target).*{says}.*Nothing was read\.$"):
        reader.read(vectors, **{"layer": LAYER} | options)


class Wrapper(nn.Module):
    """A model behind an attribute, as other libraries keep it."""

    def __init__(self, name: str, model: nn.Module) -> None:
        super().__init__()
        setattr(self, name, model)


@pytest.mark.parametrize("name", ["_orig_mod", "module", "original_model", "_module"])
def test_a_wrapped_model_is_unwrapped(parts, name):
    """Of torch.compile, DataParallel, TransformerBridge, nnsight; also twice."""
    assert unwrapped(Wrapper(name, Wrapper("module", parts[0]))) is parts[0]


def test_a_model_without_weights_is_refused(parts):
    """nnsight makes one to trace shapes; every number would be missing."""
    empty = tiny_model("llama").to("meta")

    with pytest.raises(InputError, match=r"weights of this Wrapper are not loaded .*dispatch=True"):
        lensmith.bind(parts[2], Wrapper("_module", empty))


def test_a_model_whose_norms_were_wrapped_is_dissected_anew(parts):
    """TransformerBridge does so in place, and a lens of `next_input` must find them."""
    model, lens = tiny_model("llama"), parts[2]
    x = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    before = lensmith.bind(lens, model).read(x, layer=LAYER).top_scores
    for block in model.model.layers:
        block.input_layernorm = nn.Sequential(block.input_layernorm)
    reader = lensmith.bind(lens, model)

    assert torch.equal(reader.read(x, layer=LAYER).top_scores, before)
    assert all(type(norm) is nn.Sequential for norm in reader.backbone.head.input_norms)


@pytest.mark.parametrize("model", [None, "org/name", nn.Linear(2, 2)])
def test_what_is_no_model_is_refused(parts, model):
    with pytest.raises(InputError, match=f"^the model is a {type(model).__name__}, must be a transformers model"):
        lensmith.bind(parts[2], model)

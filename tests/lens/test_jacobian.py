"""Jacobian lenses: the estimate against one-hot gradients in fp64, its resumption, its way through the stages."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lensmith.files import artifacts
from lensmith.judge.bench import Bench
from lensmith.lens import audit, jacobian, stage
from lensmith.process import stopping
from lensmith.process.errors import InputError, NumericError, ResourceError
from lensmith.process.stopping import Interrupted
from lensmith.source import prefetch, tensor_file
from lensmith.source.backbone import Backbone
from tests.support.settings import atlas, fit_params
from tests.support.tiny import save_tiny, tiny_model

L, D, T = 3, 32, 24
SEQS = np.random.default_rng(0).integers(3, 60, (6, T)).astype(np.uint32)
FIT = fit_params(kind="jacobian", jacobian_seqs=6, jacobian_agreement=1.0)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return Backbone.from_model(tiny_model("gpt_neox"), dtype=torch.float64)


def derivatives(backbone: Backbone, tokens: np.ndarray) -> Tensor:
    """dh_final[q] / dh_l[p] of one sequence: (L - 1, q, d_final, p, d), by one-hot gradients."""
    hidden = []
    hooks = [block.register_forward_hook(lambda _m, _a, out: hidden.append(out)) for block in backbone.anatomy.blocks]
    with torch.enable_grad():
        backbone.anatomy.body.requires_grad_(True)(torch.from_numpy(tokens.astype(np.int64))[None])
    for hook in hooks:
        hook.remove()
    one_hot = torch.eye(T * D, dtype=torch.float64).view(T * D, 1, T, D)
    by_layer = torch.autograd.grad(hidden[-1], hidden[:-1], one_hot, is_grads_batched=True)
    return torch.stack([rows[:, 0] for rows in by_layer]).unflatten(1, (T, D))


@pytest.fixture(scope="module")
def exact(backbone) -> list[Tensor]:
    return [derivatives(backbone, tokens) for tokens in SEQS]


def expected(exact: list[Tensor], derivative: str) -> Tensor:
    """The mean over positions that the definition asks for: (L - 1, d_final, d)."""
    read = slice(jacobian.LEFT_OUT, None)
    if derivative == "future_sum":
        return torch.stack([each[:, read, :, read].sum(1).mean(2) for each in exact]).mean(0)
    same = [each.diagonal(dim1=1, dim2=3)[..., read].mean(-1) for each in exact]
    return torch.stack(same).mean(0)


def test_attention_to_other_positions_is_constant_and_that_to_its_own_is_not(backbone, exact):
    """One-hot at every position at once gives each position's own derivative; without the mode, that of all later."""
    tokens = torch.from_numpy(SEQS[:1].astype(np.int64))
    for own, of_definition in (
        (True, lambda each, p: each[:, p, :, p]),
        (False, lambda each, p: each[..., p, :].sum(1)),
    ):
        resid = jacobian.residuals(backbone, tokens, own_position=own)
        for i in (0, D - 1):
            cotangent = torch.zeros_like(resid[-1])
            cotangent[..., i] = 1
            gradients = torch.autograd.grad(resid[-1], resid[:-1], cotangent, retain_graph=True)
            for p in (0, T // 2, T - 1):
                one = torch.stack([gradient[0, p] for gradient in gradients])
                torch.testing.assert_close(one, of_definition(exact[0], p)[:, i], rtol=1e-9, atol=1e-12)


# Other positions add noise to the sum over them, so it needs more draws to come as near.
@pytest.mark.parametrize(("derivative", "few"), [("same_position", 4), ("future_sum", 16)])
def test_the_estimate_converges_to_the_definition(backbone, exact, monkeypatch, derivative, few):
    """Its error is that of N samples of signs: sixteen times as many leave a quarter. No gradient is shortened."""
    monkeypatch.setattr(jacobian, "shortened", lambda gradients: gradients)
    errors = []
    for draws in (few, 16 * few):
        monkeypatch.setattr(jacobian, "DRAWS", draws)
        settings = FIT.model_copy(update={"jacobian": derivative})
        maps = jacobian.estimate(backbone, SEQS, settings).lens().U[:-1].mT.double()
        wanted = expected(exact, derivative)
        errors.append(float((maps - wanted).norm() / wanted.norm()))

    assert errors[1] < 0.2 and 2.5 < errors[0] / errors[1] < 6


def test_no_gradient_is_longer_than_the_median_of_its_sequence():
    """Lengths 0, 5, 10 become 0, 5, 5; directions stay; without any gradient nothing is not a number."""
    gradients = torch.tensor([[0.0, 0.0], [3.0, 4.0], [-6.0, 8.0]])

    torch.testing.assert_close(jacobian.shortened(gradients), torch.tensor([[0.0, 0.0], [3.0, 4.0], [-3.0, 4.0]]))
    assert not jacobian.shortened(torch.zeros(3, 2)).any()


def test_the_estimate_stops_where_its_halves_agree(backbone, monkeypatch):
    """Agreement is the cosine between the sums of even and odd sequences; it is looked at every few sequences."""
    monkeypatch.setattr(jacobian, "CHECK_SEQS", 2)
    loose = jacobian.estimate(backbone, SEQS, FIT.model_copy(update={"jacobian_agreement": 0.01}))
    strict = jacobian.estimate(backbone, SEQS, FIT)

    assert (loose.seqs, strict.seqs) == (2, 6)
    even, odd = strict.halves.double().flatten(2)
    assert strict.agreement() == pytest.approx(((even * odd).sum(-1) / even.norm(dim=-1) / odd.norm(dim=-1)).tolist())


def test_an_estimate_that_is_stopped_goes_on_to_the_same_bits(backbone, monkeypatch, tmp_path):
    """TERM after the third sequence leaves a checkpoint; the rest is read after it. A damaged one is not used."""
    whole = jacobian.estimate(backbone, SEQS, FIT)
    add = jacobian.add

    def stopped(so_far, *args):
        add(so_far, *args)
        if so_far.seqs == 3:
            stopping._deferring[-1].signal = 15

    with monkeypatch.context() as context:
        context.setattr(jacobian, "add", stopped)
        with pytest.raises(Interrupted, match="after sequence 3 of 6"):
            jacobian.estimate(backbone, SEQS, FIT, tmp_path)
    assert tensor_file.read(tmp_path / jacobian.SUMS)[1] == {"seqs": 3}
    assert torch.equal(jacobian.estimate(backbone, SEQS, FIT, tmp_path).halves, whole.halves)
    (tmp_path / jacobian.SUMS).write_bytes(b"no tensors")
    assert torch.equal(jacobian.estimate(backbone, SEQS, FIT, tmp_path).halves, whole.halves)


def test_the_lens_reads_the_head_at_the_mapped_residual(backbone):
    """U(J h) in fp64 to 1e-5: the map comes before the final norm, and no residual is added."""
    lens = jacobian.estimate(backbone, SEQS, FIT).lens()
    resid, norm = torch.randn(5, D, dtype=torch.float64), backbone.model.gpt_neox.final_layer_norm
    W_U = backbone.model.get_output_embeddings().weight

    for layer in range(1, L + 1):
        mapped = resid @ lens.U[layer - 1].double() if layer < L else resid
        expected = nn.functional.layer_norm(mapped, (D,), norm.weight, norm.bias, norm.eps) @ W_U.T
        logits = lens.logits(backbone.head, resid.float(), layer).double()
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


def test_models_and_texts_that_give_no_lens_are_refused(backbone, monkeypatch):
    """No backward pass or no memory for it, a gradient that overflows, sequences left out as a whole: one line each."""
    with pytest.raises(InputError, match=r"leaves out the first 16 positions; corpus\.seq_len is 16"):
        jacobian.estimate(backbone, SEQS[:, :16], FIT)
    huge = jacobian.Estimate(torch.full((2, L - 1, D, D), 1e9), 1, T)
    with pytest.raises(NumericError, match="the map of layer 1 is not finite in float16"):
        huge.lens()
    cut = backbone.anatomy.blocks[1].register_forward_hook(lambda _m, _a, out: out.detach())
    try:
        with pytest.raises(
            InputError, match=r"GPTNeoXForCausalLM: its backward pass fails \(.*\)\. No lens was made\."
        ):
            jacobian.estimate(backbone, SEQS, FIT)
    finally:
        cut.remove()
    too_large = backbone.anatomy.blocks[1].register_forward_hook(lambda _m, _a, out: out + torch.empty(1 << 50))
    try:
        with pytest.raises(ResourceError, match="memory: there is not enough"):
            jacobian.estimate(backbone, SEQS, FIT)
    finally:
        too_large.remove()
    with pytest.raises(ValueError, match="must be final for kind jacobian"):
        fit_params(kind="jacobian", norm="next_input")


def test_a_model_of_one_layer_has_no_map(monkeypatch):
    """Its last layer is the identity, so nothing is estimated."""
    single = Backbone.from_model(tiny_model("gpt_neox", n_layers=1))
    monkeypatch.setattr(jacobian, "add", None)
    estimate = jacobian.estimate(single, SEQS, FIT)

    assert (estimate.seqs, estimate.agreement(), estimate.lens().U.shape) == (0, (), (1, D, D))


@pytest.fixture(scope="module")
def stages(tmp_path_factory) -> tuple:
    """A Jacobian lens and its ladder through prefetch and fit, in folders as the stages leave them."""
    folder = tmp_path_factory.mktemp("stages")
    (folder / "text.txt").write_text("\n\n".join(f"The king went to the market on day {i}." for i in range(200)))
    settings = atlas(
        source={"path": str(save_tiny(folder / "model", "gpt_neox"))},
        corpus={"kind": "files", "files": [str(folder / "text.txt")], "seq_len": T, "train_tokens": 8 * T,
                "heldout_tokens": 8 * T},
        fit={"kind": "jacobian", "jacobian_seqs": 4, "positions_per_seq": 4, "validation_seqs": 2},
        sweep={"heldout_seqs": 4, "positions_per_seq": 4},
    )  # fmt: skip
    prefetch.build(settings, folder / "corpus")
    artifacts.write_json(folder / "code.json", {"stages/fit.py": "0" * 64})
    stage.run(settings, folder / "code.json", folder / "corpus", folder / "lens")
    return settings, folder


def test_a_jacobian_lens_goes_through_the_stages_as_others_do(stages):
    """It stands beside its ladder, its maps once and in half, and the record says of what it is the mean."""
    settings, folder = stages
    bench = Bench.load(settings, folder / "corpus", folder / "lens")
    record = artifacts.read_json(folder / "lens/provenance.json")
    faults = audit.audit(settings, folder / "code.json", folder / "corpus", folder / "lens")

    assert (bench.lens.kind, bench.lens.placement, bench.lens.V) == ("jacobian", "residual", None)
    assert bench.lens.U.dtype == torch.float16
    assert set(bench.others) == {"temperature", "bias"}
    assert record["jacobian"]["positions"] == 4 * (T - jacobian.LEFT_OUT) == record["measured"]["positions_trained"]
    assert record["measured"]["tokens_forwarded"] == record["jacobian"]["tokens"] == 4 * T
    assert [line for line in faults.wrong if "stages/fit.py" not in line] == []

"""Inputs that never vary, are not finite, or are far too large."""

from pathlib import Path

import pytest
import torch

from lensmith.judge import gates
from lensmith.judge.judgement import Estimate
from lensmith.lens.divergence import BITS, LinearKL, kl_bits
from lensmith.lens.fitted import Fit
from lensmith.lens.lens import Lens
from lensmith.lens.training import fit
from lensmith.process.errors import NumericError
from lensmith.source.head import Head, Transform
from lensmith.source.teacher import Teacher
from tests.support.judged import World
from tests.support.settings import fit_params
from tests.support.toy_fit import D, L, V, toy, toy_head


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def run(change, **values) -> Fit:
    """A small fit on rows that `change` has changed, in training and held-out text alike."""
    train, held_out = toy(64, seed=1), toy(16, seed=2)
    for rows in (train, held_out):
        change(rows.resid)
    asked = fit_params(**{"batch_seqs": 8, "rank": 4, "validate_every": 10, "epochs": 2, "lr": 0.02, **values})
    return fit(toy_head(), train, held_out, asked, Lens.start(asked, L, D))


@pytest.mark.usefixtures("hardware")
@pytest.mark.parametrize("value", [0.0, 1.5, 0.1, 1e-30, 30.0], ids=str)
@pytest.mark.parametrize("coordinates", ["whitened", "plain"])
def test_a_layer_that_never_varies_gets_the_best_bias(coordinates, value):
    """Nothing can be whitened or regressed on: U V^T stays small, and c alone predicts."""

    def change(resid: torch.Tensor) -> None:
        resid[:, 1] = value

    found = run(change, coordinates=coordinates)

    other = run(lambda _: None, coordinates=coordinates)
    assert all(tensor.isfinite().all() for tensor in found.lens.tensors().values())
    assert found.best.kl_bits[1] < 3 and found.best.kl_bits[0] == pytest.approx(other.best.kl_bits[0], abs=0.05)
    update = found.lens.U[1] @ found.lens.V[1].T
    assert update.norm() < 10


@pytest.mark.usefixtures("hardware")
def test_a_model_whose_every_position_is_the_same_can_be_fit():
    """The fit ends without an error and predicts the constant."""
    found = run(lambda resid: resid.fill_(0.7))

    assert max(found.best.kl_bits) < 1e-3


@pytest.mark.usefixtures("hardware")
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_rate_that_is_far_too_large_ends_in_one_line_with_a_hint(optimizer):
    """Validation notices that the fit diverges, and no lens is written."""
    with pytest.raises(
        NumericError, match=r"the fit diverges\. A smaller fit\.lr than 10 or more fit\.warmup may help"
    ):
        run(lambda _: None, lr=10.0, optimizer=optimizer, epochs=8, patience=2)


@pytest.mark.usefixtures("hardware")
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_the_optimizer_never_steps_on_a_number_that_is_not_finite(monkeypatch, bad):
    """A NaN in one sequence stops the fit at the step that reads it: all steps before are taken, none after."""
    train, held_out = toy(64, seed=1), toy(16, seed=2)
    train.resid.unflatten(0, (64, -1))[37, 0, 2] = bad
    steps: list[int] = []
    step = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, *args: (steps.append(1), step(self, *args)))
    asked = fit_params(batch_seqs=8, rank=4, epochs=1, start="norm_lens", coordinates="plain")

    with pytest.raises(NumericError, match=r"KL of layer 3 is not finite at step (\d+) \(sequences") as caught:
        fit(toy_head(), train, held_out, asked, Lens.start(asked, L, D))

    assert f"at step {len(steps)} " in str(caught.value)


def test_a_token_that_is_masked_costs_nothing():
    """KL stays finite with a bias of -1e30, by which some models mask unused tokens."""
    draw = torch.Generator().manual_seed(0)
    W_U = torch.randn(V, D, generator=draw)
    bias = torch.zeros(V)
    bias[[3, 11]] = -1e30
    head = Head(W_U, bias, Transform(), torch.nn.Identity(), (None,) * L, "")
    final, y = (torch.randn(9, D, generator=draw) for _ in range(2))

    kl, d_y, _ = LinearKL(head)(Teacher.from_head_input(head, final), y[None], torch.zeros(1))

    exact = kl_bits(final.double() @ W_U.double().T + bias.double(), y.double() @ W_U.double().T + bias.double())
    assert torch.allclose(kl[0].double() * BITS, exact, atol=1e-4) and d_y.isfinite().all()


@pytest.mark.parametrize("letter", gates.LETTERS)
def test_no_gate_passes_on_nan(world, letter, record_property):
    """Each of a check's numbers in turn: the value and both ends of its interval."""
    checks = world.judge().gate(letter).checks
    assert checks

    n_broken = 0  # numbers
    for place, check in enumerate(checks):
        for name in ("value", "lo", "hi"):
            measured = Estimate(**{**check.measured.model_dump(), name: float("nan")})
            broken = gates.check(check, measured)
            verdicts = [broken.verdict if i == place else other.verdict for i, other in enumerate(checks)]
            points = [broken.point if i == place else other.point for i, other in enumerate(checks)]
            assert gates.verdict_of(verdicts) == gates.verdict_of(points) == "invalid"
            n_broken += 1
    record_property(f"numbers of gate {letter} made NaN one by one, each verdict invalid", n_broken)

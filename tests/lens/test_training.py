"""The fit: its gradients against autograd, its schedule, and the parameters that it moves."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lensmith.lens import closed_form, objective, recipe
from lensmith.lens.divergence import BITS, LinearKL, kl_bits
from lensmith.lens.lens import Lens
from lensmith.lens.optimizers import Optimizers
from lensmith.lens.prism import Prism
from lensmith.lens.rungs import BIAS_STEPS, rung
from lensmith.lens.schedule import Schedule
from lensmith.lens.training import fit
from lensmith.process import progress
from lensmith.process.errors import NumericError
from lensmith.source.head import Head
from lensmith.source.residuals import Batch
from tests.support import hardware as machines
from tests.support.held_rows import HeldRows
from tests.support.settings import fit_params
from tests.support.toy_fit import D, L, P, toy, toy_head

pytestmark = pytest.mark.usefixtures("hardware")


def plain(**values):
    """The settings of a fit that begins at the norm lens and trains U as it is."""
    return fit_params(**{"start": "norm_lens", "coordinates": "plain"} | values)


def run(**values):
    settings = plain(**{"batch_seqs": 8, "rank": 4, "validate_every": 10, "epochs": 4, "lr": 0.02} | values)
    return fit(toy_head(), toy(64, seed=1), toy(16, seed=2), settings, Lens.start(settings, L, D))


def random_lens(dtype=torch.float64) -> Lens:
    generator = torch.Generator().manual_seed(3)
    start = Lens.start(fit_params(rank=4), L, D)
    drawn = {n: torch.randn(t.shape, generator=generator, dtype=dtype) * 0.3 for n, t in start.tensors().items()}
    return replace(start, **drawn)


class _Norm64(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.double()


@pytest.mark.parametrize("values", [{}, {"validate_every": 7}, {"kind": "bias"}, {"start": "closed_form"}])
def test_a_fit_announces_its_steps_and_validations(bars, values):
    """No time is left at its end: a validation that is not counted leaves less than none, one counted twice some."""
    run(**values)

    assert {bar.seconds_left() for bar in bars} == {0}


def test_layer_gradients_are_autograds():
    """Gradients of all parameters of two blocks equal autograd's through the definition, in fp64."""
    head, lens, resid = replace(toy_head(torch.float64), final_norm=_Norm64()), random_lens(), toy(4, 5).resid
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in lens.tensors().items()}
    live, blocks = lens.with_tensors(leaves), [0, 2]

    teacher = objective.teacher_of(head, Batch(resid, None))
    x = objective.normed(head, resid, blocks, lens.norm)
    translator = {name: tensor[blocks] for name, tensor in lens.tensors().items()}
    kl, gradients = objective.layer_gradients(LinearKL(head), teacher, x, translator)

    for i, block in enumerate(blocks):
        final = head.logits(head.norm(resid[:, -1], L))
        expected = kl_bits(final, live.logits(head, resid[:, block], block + 1)).mean() / BITS
        wanted = torch.autograd.grad(expected, list(leaves.values()))
        assert kl[i].item() == pytest.approx(expected.item(), rel=1e-12)
        for name, gradient in zip(leaves, wanted, strict=True):
            torch.testing.assert_close(gradients[name][i], gradient[block], rtol=1e-10, atol=1e-12)


def test_penalty_gradients_are_autograds():
    """Both penalties as the docstring of `objective` has them; the last block takes no part."""
    lens = random_lens()
    leaves = {name: getattr(lens, name)[:-1].clone().requires_grad_() for name in ("U", "V", "c")}
    maps = leaves["U"] @ leaves["V"].mT
    penalty = 0.1 * sum((leaf**2).sum() for leaf in leaves.values()) + 0.2 * ((maps[1:] - maps[:-1]) ** 2).sum()
    wanted = dict(zip(leaves, torch.autograd.grad(penalty, list(leaves.values())), strict=True))

    inner = {name: leaf.detach() for name, leaf in leaves.items()}
    found = objective.penalty_gradients(**inner, blocks=[0, 2], l2_smallness=0.1, smooth_depth=0.2)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, wanted[name][[0, 2]])


def test_the_depth_penalty_does_not_see_the_gauge():
    """U G and V G^-T are the same map, so the gradient that acts on the map is the same."""
    lens, G = random_lens(), torch.eye(4, dtype=torch.float64) + torch.ones(4, 4, dtype=torch.float64).triu(1)
    U, V, c = lens.U[:-1], lens.V[:-1], lens.c[:-1]
    weights = {"blocks": [0], "l2_smallness": 0.0, "smooth_depth": 1.0}
    here = objective.penalty_gradients(U, V, c, **weights)["U"][0]

    there = objective.penalty_gradients(U @ G, V @ torch.linalg.inv(G).T, c, **weights)["U"][0]
    torch.testing.assert_close(there, here @ torch.linalg.inv(G).T)


def test_warm_up_is_applied_and_the_cosine_ends_at_zero():
    """The reference recipe's 975 steps warm up over 98, peak at 1e-3 and end at zero."""
    schedule = Schedule(fit_params(lr=1e-3, warmup=0.1, epochs=975, batch_seqs=8), n_seqs=8, n_blocks=4)
    rates = [schedule.learning_rate(step) for step in range(976)]

    assert (schedule.total_steps, schedule.warmup_steps) == (975, 98)
    assert rates[0] == pytest.approx(1e-3 / 98) and rates[97] == pytest.approx(1e-3) and max(rates) == rates[97]
    assert rates[98 + 877 // 2] == pytest.approx(5e-4, rel=1e-2) and rates[975] == 0


def test_a_full_rank_lens_recovers_a_linear_map():
    """The toy's layers are linear in its last one, so an exact lens exists; the fit comes near it."""
    settings = {"kind": "full", "epochs": 60, "validate_every": 60, "patience": 99}
    fitted, start = (
        run(**settings),
        objective.validate(LinearKL(toy_head()), Lens.start(fit_params(), L, D), toy(16, seed=2)),
    )

    assert fitted.best.score < 0.02 * start.score


def test_the_low_rank_part_trains():
    """From the second step on U and V both move, and the lens is better than bias and temperature alone."""
    low_rank, bias = run(epochs=12), run(kind="bias", epochs=12)

    assert low_rank.best.score < 0.9 * bias.best.score
    start = Lens.start(fit_params(rank=4), L, D)
    assert all((low_rank.lens.U[b] != start.U[b]).any() and low_rank.lens.V[b].any() for b in range(L - 1))


@pytest.mark.parametrize("kind", ["identity", "temperature", "bias", "low_rank", "full"])
def test_only_what_a_kind_may_change_changes(kind):
    """Each kind moves its own parameters, no others, and never the last block."""
    settings = fit_params(kind=kind)
    fitted, start = run(kind=kind).lens.tensors(), Lens.start(fit_params(kind=kind, rank=4), L, D).tensors()

    moved = {name for name in fitted if not torch.equal(fitted[name], start[name])}
    assert moved == ({"log_tau"} if kind == "temperature" else set(recipe.trainable(settings)))
    assert all(torch.equal(fitted[name][-1], start[name][-1]) for name in fitted)


def test_a_layer_that_is_not_sampled_does_not_move():
    """One layer a step: after one step exactly one block differs from its start, momentum and decay included."""
    settings = {"layers_per_step": 1, "weight_decay": 0.1, "epochs": 1, "batch_seqs": 64}
    lens, start = run(**settings).lens, Lens.start(fit_params(rank=4), L, D)

    assert sum(bool((lens.V[block] != start.V[block]).any()) for block in range(L)) == 1
    assert sum(bool((lens.U[block] != start.U[block]).any()) for block in range(L)) <= 1


def test_a_prism_preconditions_the_fit():
    """AdamW's first step is lr in every coordinate that it works in: in Prism's for V', folded back by its basis."""
    settings = plain(rank=4, batch_seqs=64, epochs=1, lr=1e-3, prism="precondition")
    prism, start = Prism.fit(toy_head(), toy(64, seed=1)), Lens.start(settings, L, D)
    result = fit(toy_head(), toy(64, seed=1), toy(16, seed=2), settings, start, prism=prism)

    _, R = prism.basis()
    step = torch.linalg.solve(R, result.lens.V[:-1])
    assert result.best_step == result.steps == 1
    torch.testing.assert_close(step.abs(), torch.full_like(step, 1e-3), rtol=1e-2, atol=0)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_weight_decay_leaves_scale_at_one(optimizer):
    """Without a gradient, decay shrinks U and leaves `scale` at one."""
    trained = {name: torch.ones(2, 3, 3) for name in ("U", "V", "c", "scale")}
    nothing = {name: torch.zeros_like(tensor) for name, tensor in trained.items()}
    Optimizers(plain(optimizer=optimizer, weight_decay=10.0), trained).take_step(nothing, [0, 1], lr=1e-2)

    assert all((trained[name] < 0.95).all() for name in ("U", "V", "c"))
    assert (trained["scale"] == 1).all()


def test_the_same_settings_give_the_same_bits():
    """Batches, draws and rates are functions of the step alone."""
    a, b = run(), run()

    assert all(torch.equal(a.lens.tensors()[name], b.lens.tensors()[name]) for name in a.lens.tensors())
    assert a.log == b.log


def test_each_layer_of_its_best_validation_is_kept_and_patience_ends_the_fit():
    """Held-out layers lie half as far from the last one as training layers: the fit passes their best map."""
    settings = plain(kind="full", batch_seqs=8, epochs=20, lr=0.02, validate_every=5, patience=3)
    held_out = toy(16, seed=2)
    held_out.resid.lerp_(held_out.resid[:, -1:], 0.5)
    result = fit(toy_head(), toy(64, seed=1), held_out, settings, Lens.start(settings, L, D))

    by_depth = np.array([(row.val_kl_bits_25, row.val_kl_bits_50, row.val_kl_bits_75) for row in result.log])
    best = int(by_depth.argmin(0).max())  # the last validation that improved a layer
    assert 0 < best == len(by_depth) - 4 and (by_depth[-1] > 1.1 * by_depth.min(0)).all()
    assert result.stopped_early and (result.best_step, result.steps) == (5 * best, 5 * (best + 3))
    found = objective.validate(LinearKL(toy_head()), result.lens, held_out)
    assert found.at_depths == tuple(by_depth.min(0)) == result.best.at_depths
    assert found.mean == result.log[-1].kept_kl_bits_mean
    assert [row.best for row in result.log] == [*[1] * (best + 1), 0, 0, 0]


def test_a_rung_is_at_no_layer_worse_than_its_closed_form_or_the_rung_below(monkeypatch):
    """The rung below is good at layer 1 alone: that layer is kept, the others begin at a closed form of large ridge."""
    monkeypatch.setattr(closed_form, "RIDGES", (3.0,))
    settings = fit_params(kind="full", epochs=1, batch_seqs=64, validate_every=99, lr=1e-12, warmup=0.0)
    train, held_out, start = toy(64, seed=1), toy(16, seed=2), Lens.start(settings, L, D)
    settings, norm_lens = settings.model_copy(update={"scale": False}), Lens.start(settings, L, D)
    below, alone = run(kind="full", epochs=12), fit(toy_head(), train, held_out, settings, start)
    lens = norm_lens.with_layers(below.lens, [True, False, False, False])
    below = replace(below, lens=lens, best=objective.validate(LinearKL(toy_head()), lens, held_out))
    found = fit(toy_head(), train, held_out, settings, start, below=below)

    starts = list(zip(below.best.kl_bits, alone.best.kl_bits, strict=True))
    assert [first < other for first, other in starts] == [True, False, False, False]
    assert [round(kl, 6) for kl in found.best.kl_bits] == [round(min(pair), 6) for pair in starts]


def best_bias(head: Head, train: HeldRows, start: Lens) -> Lens:
    """The bias and temperature of each layer with the lowest KL on the training rows, by L-BFGS and autograd."""
    layers = torch.stack([head.norm(train.resid[:, block], block + 1) for block in range(L - 1)])
    final = head.logits(head.norm(train.resid[:, -1], L)).expand(L - 1, -1, -1)
    c, log_tau = torch.zeros(L, D, requires_grad=True), torch.zeros(L, requires_grad=True)
    optimizer = torch.optim.LBFGS([c, log_tau], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        z = head.logits(layers + c[:-1, None], log_tau[:-1, None].expand(layers.shape[:2]))
        total = kl_bits(final, z).mean(1).sum()
        total.backward()
        return total

    optimizer.step(loss)
    return start.with_tensors(start.tensors() | {"c": c.detach(), "log_tau": log_tau.detach()})


@pytest.mark.parametrize("batch_seqs", [8, 64])
def test_a_rung_of_the_ladder_is_not_starved(batch_seqs):
    """However few steps an epoch of the lens has, it comes within one per cent of the best bias and temperature."""
    train, held_out = toy(64, seed=1), toy(16, seed=2)
    train.resid[:, :-1] += 1.5
    held_out.resid[:, :-1] += 1.5
    bias = rung(fit_params(batch_seqs=batch_seqs, epochs=0.5, validate_every=999), "bias", train)
    start = Lens.start(bias, L, D)
    found = fit(toy_head(), train, held_out, bias, start)
    best = objective.validate(LinearKL(toy_head()), best_bias(toy_head(), train, start), held_out)

    assert found.steps == BIAS_STEPS
    assert found.best.mean == pytest.approx(best.mean, rel=0.01)
    assert found.best.mean < 0.9 * fit(toy_head(), train, held_out, fit_params(kind="temperature"), start).best.mean


def test_the_fit_records_the_products_that_it_took(hardware):
    """Provenance records the dtype that `auto` took."""
    assert run(epochs=1).products == str(machines.taken(hardware)).removeprefix("torch.")


def test_numbers_that_are_not_finite_stop_the_fit_before_the_step():
    """The message names step and layer."""
    settings, train = plain(batch_seqs=8, rank=4), toy(64, seed=1)
    train.resid[:, 1] = torch.nan

    with pytest.raises(NumericError, match=r"KL of layer 2 is not finite at step 0"):
        fit(toy_head(), train, toy(16, seed=2), settings, Lens.start(settings, L, D))


def test_a_fit_that_diverges_is_stopped_with_a_hint():
    """At a rate of 10 the held-out KL exceeds ten times the best."""
    with pytest.raises(NumericError, match=r"the fit diverges. A smaller fit\.lr than 10 or more fit\.warmup may help"):
        run(kind="bias", temperature=False, lr=10.0, warmup=0.0, validate_every=2, patience=99)


def test_a_model_of_one_block_has_the_identity_and_nothing_to_train():
    """Its only block is the last one: no step is taken, and the lens is exact."""
    settings, last = fit_params(rank=4), toy(8, seed=1)
    rows = HeldRows(last.resid[:, -1:], P)
    result = fit(replace(toy_head(), input_norms=(None,)), rows, rows, settings, Lens.start(settings, 1, D))

    assert (result.steps, result.best.score) == (0, 0.0)


def test_each_epoch_reads_every_sequence_once_in_a_new_order():
    """64 sequences of 6 positions, 4 epochs of 8 steps: 1,536 positions."""
    settings, train, asked = plain(batch_seqs=8, rank=4, epochs=4), toy(64, seed=1), []

    class Watched(HeldRows):
        def read(self, seqs: np.ndarray) -> Batch:
            asked.append(seqs)
            return super().read(seqs)

    result = fit(toy_head(), Watched(train.resid, P), toy(16, seed=2), settings, Lens.start(settings, L, D))

    epochs = np.stack(asked).reshape(4, 64)
    assert all(sorted(epoch) == list(range(64)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert (result.steps, result.positions_used) == (32, 1536)


def test_validation_is_the_mean_kl_of_the_decoded_logits():
    """Validation equals KL from whole logits, in bits, layer by layer."""
    head, rows, lens = toy_head(), toy(16, seed=2), random_lens(torch.float32)
    found = objective.validate(LinearKL(head), lens, rows).kl_bits

    final = head.logits(rows.resid[:, -1])
    for block in range(L - 1):
        expected = kl_bits(final, lens.logits(head, rows.resid[:, block], block + 1)).mean().item()
        assert found[block] == pytest.approx(expected, rel=1e-5)
    assert found[-1] == 0


def test_a_fit_tells_steps_and_the_last_validation_in_whole_lines(monkeypatch, capsys):
    """Every tenth of 32 steps is validated: the line of step 31 has the KL of step 30."""
    monkeypatch.setattr(progress, "EVERY", 0.0)
    done = run(patience=99)
    said = capsys.readouterr().err
    lines = [line for line in said.splitlines() if line.startswith("fit low_rank: 31 of 32 steps")]

    row = next(row for row in done.log if row.step == 30)
    assert "\r" not in said and len(lines) == 1
    assert f"KL {row.val_kl_bits_25:.3f} / {row.val_kl_bits_50:.3f} / {row.val_kl_bits_75:.3f} bits" in lines[0]

"""Held-out KL of a lens by its rank, for the price of one fit.

Where KL is quadratic, a truncation of the closed form's decomposition is the best lens of its rank. The curve of the
closed form decides `rank: auto`: the smallest rank whose KL is at most SHARE above the lowest. The curve of the trained
lens says what a smaller rank would cost. Its map is truncated in whitened coordinates; c is corrected so that the mean
of the head's input stays, and a temperature is fit for each rank. Both curves are means over depths 25, 50 and 75 %, at
a few held-out positions.

    rank_curve.csv    rank, kl_bits (empty above the rank of the lens), closed_form_kl_bits (at temperature one)
"""

from collections.abc import Mapping
from pathlib import Path

import torch

from lensmith.files import artifacts
from lensmith.lens import closed_form, objective
from lensmith.lens.closed_form import Solution
from lensmith.lens.coordinates import through
from lensmith.lens.divergence import BITS, LinearKL
from lensmith.lens.lens import Lens
from lensmith.process.progress import track
from lensmith.source.residuals import Residuals

# Of the lowest KL, by which that of the chosen rank may be above it. Little: training gains more at a larger rank.
SHARE = 0.005

Curve = dict[int, float]  # rank -> bits


def ranks_up_to(widest: int) -> list[int]:
    """Ranks of a curve, ascending to `widest`: 1, 2, 3, 4, 6, 8, 12, 16, …"""
    ranks = {factor * 2**power // 2 for power in range(widest.bit_length() + 1) for factor in (2, 3)}
    return sorted({rank for rank in ranks if rank < widest} | {widest} - {0})


def of_closed_form(linear_kl: LinearKL, solution: Solution, held_out: Residuals, start: Lens) -> Curve:
    """The curve of a closed form, up to the rank of `start`; empty where that is 0."""
    batch, head = objective.few_positions(linear_kl.head, held_out), linear_kl.head
    teacher, blocks = objective.teacher_of(head, batch), objective.depth_blocks(start.n_layers)
    curve = {}
    for rank in track(ranks_up_to(start.rank), "rank curve of the closed form", "rank"):
        y = objective.head_inputs(head, solution.lens(start, rank), batch.resid, blocks)
        curve[rank] = float(linear_kl.value(teacher, y, y.new_zeros(len(y))).mean()) * BITS
    return curve


def of_lens(linear_kl: LinearKL, solution: Solution, lens: Lens, train: Residuals, held_out: Residuals) -> Curve:
    """The curve of a trained lens, up to its rank; empty where that is 0. Temperatures are chosen on `train`."""
    batch, head = objective.few_positions(linear_kl.head, held_out), linear_kl.head
    teacher, curve = objective.teacher_of(head, batch), {}
    blocks = [block for block in objective.depth_blocks(lens.n_layers) if block < lens.n_layers - 1]
    P, R, mean = solution.whitening[blocks], solution.head_whitening, solution.mean[blocks]
    factors = lens.tensors()
    U, V = torch.linalg.solve(P, factors["U"][blocks]), torch.linalg.solve(R, factors["V"][blocks])
    left, size, right = torch.linalg.svd(U @ V.mT, full_matrices=False)
    whole = through(mean, factors["U"][blocks], factors["V"][blocks])
    for rank in track(ranks_up_to(lens.rank), "rank curve of the lens", "rank"):
        root = size[:, None, :rank].sqrt()
        tensors = {name: tensor.clone() for name, tensor in factors.items()}
        tensors["U"], tensors["V"] = (torch.zeros_like(lens.U) for _ in range(2))
        tensors["U"][blocks, :, :rank] = P @ (left[..., :rank] * root)
        tensors["V"][blocks, :, :rank] = R @ (right.mT[..., :rank] * root)
        tensors["c"][blocks] += whole - through(mean, tensors["U"][blocks], tensors["V"][blocks])
        cut = lens.with_tensors(tensors)
        log_tau = closed_form.temperatures(head, cut, train, blocks)
        y = objective.head_inputs(head, cut, batch.resid, blocks)
        curve[rank] = float(linear_kl.value(teacher, y, log_tau[blocks]).mean()) * BITS
    return curve


def smallest_rank(curve: Curve) -> int:
    """The smallest rank of a curve whose KL is at most SHARE above the lowest."""
    return min(rank for rank, kl_bits in curve.items() if kl_bits <= (1 + SHARE) * min(curve.values()))


def write(path: Path, trained: Mapping[int, float], closed: Mapping[int, float]) -> None:
    """Write both curves of a lens."""
    rows = [(rank, trained.get(rank), closed.get(rank)) for rank in sorted({*trained, *closed})]
    artifacts.write_csv(path, ["rank", "kl_bits", "closed_form_kl_bits"], rows)

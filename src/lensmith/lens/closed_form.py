"""A lens from second moments alone, the start of a fit: one pass over the residuals and no step.

With x = N(resid_post[l]), f the head's input at the last block, and centred quantities,

    S = Cov(x)     C = Cov(x, f - x)     F = W_U^T <diag(p j^2) - (p j)(p j)^T> W_U, the mean Fisher information of
                                         the model's own distribution at f (j: slope of the softcap, else 1)
    A = (S + r)^-1 C                     ridge regression of what the later blocks add, r relative to mean(diag S)
    (S + r)^1/2 A F^1/2 = u s v^T        its truncation to rank k is the best lens of rank k where KL is quadratic
    U = (S + r)^-1/2 u sqrt(s)           V = F^-1/2 v sqrt(s)           c = mean(f) - mean(x) - mean(x) U V^T

Each layer takes the ridge of RIDGES whose A has the lowest held-out KL. One decomposition gives the lens of every rank
(`rank_curve`). The same eigenvectors give (S + r)^-1/2 and (F + r)^-1/2, the coordinates of the fit (`coordinates`).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lensmith.lens import objective, temperature
from lensmith.lens.coordinates import through
from lensmith.lens.divergence import LinearKL
from lensmith.lens.lens import Lens
from lensmith.lens.moments import Moments
from lensmith.lens.spectrum import Spectrum, top_singular
from lensmith.process.progress import track
from lensmith.source.head import Head
from lensmith.source.residuals import Residuals

RIDGES = (1e-3, 1e-2, 1e-1)
FISHER_RIDGE = 1e-6  # of the mean of its diagonal: W_U may not use every dimension
FISHER_STEP_RIDGE = 1e-2  # the same for training: limits steps along what W_U hardly reads
# Bytes of fp64 moments on the device at a time. Where all layers need more, each group of layers reads all residuals.
MOMENT_BYTES = 2**32


@dataclass(frozen=True)
class Solution:
    """Factors of all blocks but the last. float32."""

    mean: Tensor  # (L, d_model): of x by block, of f at the last
    U: Tensor  # (L - 1, d_model, rank)
    V: Tensor  # (L - 1, d_model, rank)
    whitening: Tensor  # (L - 1, d_model, d_model): (S + r)^-1/2
    head_whitening: Tensor  # (d_model, d_model): (F + r)^-1/2, for all blocks
    ridge: tuple[float, ...]  # the best of RIDGES, by block

    def lens(self, start: Lens, rank: int | None = None) -> Lens:
        """`start` with U, V and c of this solution, as far as its kind has them; U and V cut to `rank`."""
        rank = min(start.rank if rank is None else rank, self.U.shape[-1])
        tensors = start.map_tensors(Tensor.clone).tensors()
        if start.kind in {"low_rank", "full"}:
            for name, factor in (("U", self.U), ("V", self.V)):
                tensors[name].zero_()[:-1, :, :rank] = factor[..., :rank]
        if start.kind not in {"identity", "temperature"}:
            U, V, mean = tensors["U"][:-1], tensors["V"][:-1], self.mean[:-1]
            tensors["c"][:-1] = self.mean[-1] - mean - through(mean, U, V)
        return start.with_tensors(tensors)


@dataclass(frozen=True)
class Fisher:
    """Powers of F, which all blocks share."""

    root: Tensor  # (d_model, d_model): F^1/2, fp64
    unroot: Tensor  # F^-1/2, fp64
    whitening: Tensor  # F^-1/2 with the ridge of training, fp32

    @classmethod
    def of(cls, matrix: Tensor) -> "Fisher":
        spectrum = Spectrum.of(matrix)
        whitening = spectrum.inverse_root(FISHER_STEP_RIDGE).float()
        return cls(spectrum.root(FISHER_RIDGE), spectrum.inverse_root(FISHER_RIDGE), whitening)

    def factors(self, white: Tensor, cross: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
        """U, V (d_model, rank) and the whitening of one block, float32; `white` is (S + r)^-1/2, `cross` is C."""
        left, size, right = top_singular(white @ cross @ self.root, rank)
        return (white @ left * size.sqrt()).float(), (self.unroot @ right * size.sqrt()).float(), white.float()


def solve(linear_kl: LinearKL, train: Residuals, held_out: Residuals, start: Lens) -> Solution:
    """The factors for a lens of the norm and rank of `start`.

    One pass over `train` and one over a part of `held_out` for each group of layers; MOMENT_BYTES bounds a group.

    Raises:
        NumericError: a residual is not finite.
    """
    head, n_blocks = linear_kl.head, start.n_layers - 1
    size = max(1, MOMENT_BYTES // (2 * 8 * start.d_model**2))
    fisher: Fisher | None = None
    means: list[Tensor] = []
    factors: list[tuple[Tensor, Tensor, Tensor]] = []
    ridges: list[float] = []
    for first in range(0, n_blocks, size):
        blocks = list(range(first, min(first + size, n_blocks)))
        moments = Moments.of(head, train, start, blocks, with_fisher=fisher is None)
        if fisher is None:
            fisher = Fisher.of(moments.fisher)
        inputs = moments.inputs()
        best = best_ridges(linear_kl, moments, inputs, held_out, start)
        factors += [
            fisher.factors(inputs[i].inverse_root(best[i]), moments.cross[i], start.rank)
            for i in track(range(len(blocks)), "closed form, factors", "layer")
        ]
        means.append(moments.mean.float())
        ridges += best
    assert fisher is not None
    U, V, whitening = (torch.stack(tensors) for tensors in zip(*factors, strict=True))
    mean = torch.cat([*(mean[:-1] for mean in means), means[0][-1:]])
    return Solution(mean, U, V, whitening, fisher.whitening, tuple(ridges))


def best_ridges(
    linear_kl: LinearKL, moments: Moments, inputs: Sequence[Spectrum], held_out: Residuals, start: Lens
) -> list[float]:
    """For each block the ridge whose regression has the lowest held-out KL, at full rank and temperature one."""
    batch, mean = objective.few_positions(linear_kl.head, held_out), moments.mean.float()
    teacher = objective.teacher_of(linear_kl.head, batch)
    x = objective.normed(linear_kl.head, batch.resid, moments.blocks, start.norm) - mean[:-1, None]
    kl = []
    for ridge in track(RIDGES, "closed form, ridges", "ridge"):
        roots = [spectrum.inverse_root(ridge) for spectrum in inputs]
        A = torch.stack([(root @ (root @ C)).float() for root, C in zip(roots, moments.cross, strict=True)])
        kl.append(linear_kl.value(teacher, mean[-1] + x + x @ A, x.new_zeros(len(x))).mean(1))
    return [RIDGES[best] for best in torch.stack(kl).argmin(0).tolist()]


def temperatures(head: Head, lens: Lens, train: Residuals, blocks: Iterable[int] | None = None) -> Tensor:
    """log tau (L,) with the lowest KL at a few positions, for some blocks of a lens; 0 for the others.

    Args:
        blocks: the blocks to choose for; None for all but the last.
    """
    batch, log_tau = objective.few_positions(head, train), torch.zeros_like(lens.log_tau)
    teacher = objective.teacher_of(head, batch)
    p = None if teacher.y is None else head.logits(teacher.y).softmax(-1)
    for block in range(lens.n_layers - 1) if blocks is None else blocks:
        y = lens.head_input(head, batch.resid[:, block], block + 1)
        log_tau[block] = math.log(temperature.fit_head_input(head, y, teacher, p))
    return log_tau

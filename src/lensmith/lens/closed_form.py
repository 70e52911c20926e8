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
from lensmith.process.draws import Stream
from lensmith.process.errors import NumericError
from lensmith.process.progress import Progress, track
from lensmith.source.head import Head
from lensmith.source.residuals import Batch, Residuals
from lensmith.source.teacher import Teacher

RIDGES = (1e-3, 1e-2, 1e-1)
FISHER_RIDGE = 1e-6  # of the mean of its diagonal: W_U may not use every dimension
FISHER_STEP_RIDGE = 1e-2  # the same for training: limits steps along what W_U hardly reads
CONSTANT = 1e-12  # variance over mean square, up to which an input counts as constant: it is fp32 rounding
# Positions and sequences by which ridges, temperatures and the rank are chosen: a few suffice for one number a layer.
FEW_POSITIONS, FEW_SEQS = 256, 8
FISHER_EVERY = 4  # F is a mean over positions: every fourth one estimates it for a quarter of the products
OVERSAMPLING, POWER_STEPS = 16, 4  # of the randomised decomposition
# Bytes of fp64 moments on the device at a time. Where all layers need more, each group of layers reads all residuals.
MOMENT_BYTES = 2**32


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues and eigenvectors of a symmetric matrix, fp64."""

    values: Tensor  # (d_model,)
    vectors: Tensor  # (d_model, d_model)
    # Up to this mean eigenvalue the matrix counts as zero, and its roots are the identity: an input that never varies
    # predicts nothing.
    least: float

    @classmethod
    def of(cls, matrix: Tensor, least: float = 0.0) -> "Spectrum":
        values, vectors = torch.linalg.eigh(matrix)
        return cls(values, vectors, least)

    def root(self, ridge: float) -> Tensor:
        """Square root of the matrix, `ridge` times its mean eigenvalue added."""
        return self._with(self._shifted(ridge).sqrt())

    def inverse_root(self, ridge: float) -> Tensor:
        """The inverse of `root`."""
        return self._with(self._shifted(ridge).rsqrt())

    def _shifted(self, ridge: float) -> Tensor:
        if not self.values.mean() > self.least:
            return torch.ones_like(self.values)
        return self.values.clamp_min(0) + ridge * self.values.mean()

    def _with(self, values: Tensor) -> Tensor:
        return (self.vectors * values) @ self.vectors.T


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
    def of(cls, spectrum: Spectrum) -> "Fisher":
        whitening = spectrum.inverse_root(FISHER_STEP_RIDGE).float()
        return cls(spectrum.root(FISHER_RIDGE), spectrum.inverse_root(FISHER_RIDGE), whitening)


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
            fisher = Fisher.of(Spectrum.of(moments.fisher))
        inputs = moments.inputs()
        best = _best_ridges(linear_kl, moments, inputs, held_out, start)
        factors += [
            _factors(inputs[i].inverse_root(best[i]), moments.cross[i], fisher, start.rank)
            for i in track(range(len(blocks)), "closed form, factors", "layer")
        ]
        means.append(moments.mean.float())
        ridges += best
    assert fisher is not None
    U, V, whitening = (torch.stack(tensors) for tensors in zip(*factors, strict=True))
    mean = torch.cat([*(mean[:-1] for mean in means), means[0][-1:]])
    return Solution(mean, U, V, whitening, fisher.whitening, tuple(ridges))


@dataclass(frozen=True)
class Moments:
    """Means and centred second moments of some blocks, fp64."""

    blocks: Sequence[int]
    mean: Tensor  # (blocks + 1, d_model), of f at the end
    cov: Tensor  # (blocks, d_model, d_model): S
    cross: Tensor  # (blocks, d_model, d_model): C
    fisher: Tensor  # (d_model, d_model), or empty

    @classmethod
    def of(cls, head: Head, train: Residuals, start: Lens, blocks: Sequence[int], *, with_fisher: bool) -> "Moments":
        """One pass over all residuals: products of a chunk in the head's precision, sums in fp64.

        Raises:
            NumericError: a residual is not finite.
        """
        d, n, fisher = start.d_model, 0, _FisherSum(head)
        total = head.W_U.new_zeros(len(blocks) + 1, d, dtype=torch.float64)
        cov, cross = (total.new_zeros(len(blocks), d, d) for _ in range(2))
        shift: Tensor | None = None
        n_positions = train.n_seqs * train.positions_per_seq
        with Progress("closed form, moments", n_positions, "position") as progress:
            for batch in objective.read(head, train):
                resid = batch.resid
                f = head.norm(resid[:, -1], start.n_layers, "final")
                x = torch.cat([objective.normed(head, resid, blocks, start.norm), f[None]])
                # Nearly centred, by the mean of the first chunk: the subtraction at the end then loses few digits.
                shift = x.mean(1, keepdim=True) if shift is None else shift
                x -= shift
                total += x.sum(1)
                for i in range(len(blocks)):
                    cov[i] += x[i].T @ x[i]
                    cross[i] += x[i].T @ x[-1]
                if with_fisher:
                    fisher.add(f[::FISHER_EVERY])
                n += len(f)
                progress.advance(len(f))
        assert shift is not None
        for i, block in enumerate(blocks):
            if not cov[i].isfinite().all():
                raise NumericError(f"fit: a residual of layer {block + 1} is not finite. No lens was written.")
        mean = total / n
        cov = cov / n - mean[:-1, :, None] * mean[:-1, None, :]
        cross = cross / n - mean[:-1, :, None] * mean[-1] - cov
        return cls(blocks, mean + shift[:, 0], cov, cross, fisher.mean() if with_fisher else cov.new_empty(0))

    def inputs(self) -> list[Spectrum]:
        """S of each block."""
        return [
            Spectrum.of(self.cov[i], CONSTANT * float(self.mean[i].square().mean()))
            for i in track(range(len(self.blocks)), "closed form, eigenvectors", "layer")
        ]


class _FisherSum:
    """The mean Fisher information at the head's input, W_U^T <diag(p j^2) - (p j)(p j)^T> W_U, from chunks of f."""

    def __init__(self, head: Head) -> None:
        self.head, self.n = head, 0
        self.weight = head.W_U.new_zeros(len(head.W_U), dtype=torch.float64)
        self.outer = head.W_U.new_zeros(2 * (head.W_U.shape[1],), dtype=torch.float64)

    def add(self, f: Tensor) -> None:
        for part in f.split(self.head.positions_at_once()):
            z = self.head.logits(part)
            j = self.head.transform.slope(z)
            pj = z.softmax(-1) * j
            e = pj @ self.head.W_U
            self.weight += (pj * j).sum(0)
            self.outer += e.T @ e
            self.n += len(part)

    def mean(self) -> Tensor:
        total = torch.zeros_like(self.outer)
        for W, weight in zip(self.head.W_U.split(4096), self.weight.split(4096), strict=True):
            total += (W.T.double() * weight) @ W.double()
        return (total - self.outer) / self.n


def _best_ridges(
    linear_kl: LinearKL, moments: Moments, inputs: Sequence[Spectrum], held_out: Residuals, start: Lens
) -> list[float]:
    """For each block the ridge whose regression has the lowest held-out KL, at full rank and temperature one."""
    batch, mean = few_positions(linear_kl.head, held_out), moments.mean.float()
    teacher = objective.teacher_of(linear_kl.head, batch)
    x = objective.normed(linear_kl.head, batch.resid, moments.blocks, start.norm) - mean[:-1, None]
    kl = []
    for ridge in track(RIDGES, "closed form, ridges", "ridge"):
        roots = [spectrum.inverse_root(ridge) for spectrum in inputs]
        A = torch.stack([(root @ (root @ C)).float() for root, C in zip(roots, moments.cross, strict=True)])
        kl.append(linear_kl.value(teacher, mean[-1] + x + x @ A, x.new_zeros(len(x))).mean(1))
    return [RIDGES[best] for best in torch.stack(kl).argmin(0).tolist()]


def _factors(white: Tensor, cross: Tensor, fisher: Fisher, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """U, V (d_model, rank) and the whitening of one block, float32; `white` is (S + r)^-1/2."""
    left, size, right = _top_singular(white @ cross @ fisher.root, rank)
    return (white @ left * size.sqrt()).float(), (fisher.unroot @ right * size.sqrt()).float(), white.float()


def _top_singular(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The largest singular values (rank,) and their vectors, (m, rank) and (n, rank).

    A large matrix is decomposed by subspace iteration: a fit needs a few per cent of its directions.
    """
    width = rank + OVERSAMPLING
    if 2 * width >= min(matrix.shape):
        u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
        return u[:, :rank], s[:rank], vt[:rank].T
    probe = torch.from_numpy(Stream(0, "closed-form").normal((matrix.shape[1], width), step=0)).to(matrix)
    basis = torch.linalg.qr(matrix @ probe).Q
    for _ in range(POWER_STEPS):
        basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ basis).Q).Q
    u, s, vt = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
    return basis @ u[:, :rank], s[:rank], vt[:rank].T


def few_positions(head: Head, residuals: Residuals) -> Batch:
    """At most FEW_POSITIONS positions, evenly spaced over the first FEW_SEQS sequences."""
    batch = next(objective.read(head, residuals, FEW_SEQS))
    return batch.at(slice(None, None, -(-len(batch.resid) // FEW_POSITIONS)))


def temperatures(head: Head, lens: Lens, train: Residuals, blocks: Iterable[int] | None = None) -> Tensor:
    """log tau (L,) with the lowest KL at a few positions, for some blocks of a lens; 0 for the others.

    Args:
        blocks: the blocks to choose for; None for all but the last.
    """
    batch, log_tau = few_positions(head, train), torch.zeros_like(lens.log_tau)
    teacher = objective.teacher_of(head, batch)
    p = None if teacher.y is None else head.logits(teacher.y).softmax(-1)
    for block in range(lens.n_layers - 1) if blocks is None else blocks:
        log_tau[block] = _best_log_tau(head, lens.head_input(head, batch.resid[:, block], block + 1), teacher, p)
    return log_tau


def _best_log_tau(head: Head, y: Tensor, teacher: Teacher, p: Tensor | None) -> float:
    """log tau of the lowest KL at inputs y (n, d_model) of the head; p (n, d_vocab) for a head with a softcap.

    Logits at temperature one are computed once. Behind a softcap the curvature is the Fisher information of q.
    """
    dot, u = torch.linalg.vecdot, head.scale * torch.nn.functional.linear(y, head.W_U, head.bias)
    of_teacher = p if p is not None else head.scale * (dot(y, teacher.e_p) + teacher.b_p)  # p, or E_p[u]
    size = max(1, temperature.LOGITS // u.shape[1])
    pieces = list(zip(u.split(size), of_teacher.split(size), strict=True))

    def derivatives(b: float) -> tuple[float, float]:
        slope = curve = 0.0
        for part, of_p in pieces:
            z = head.transform.cap_(part * b)
            gain = part if p is None else part * head.transform.slope(z)  # of each logit, by b
            q = z.softmax(-1)
            of_q = dot(q, gain)
            slope += float((of_q - (of_p if p is None else dot(of_p, gain))).sum())
            curve += float((dot(q.mul_(gain), gain) - of_q**2).sum())
        return slope / len(u), curve / len(u)

    return math.log(temperature.search(derivatives))

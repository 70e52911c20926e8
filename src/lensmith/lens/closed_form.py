"""A lens from second moments alone, the start of a fit: one pass over the residuals and no step.

With x = N(resid_post[l]), f the head's input at the last block, and centred quantities,

    S = Cov(x)     C = Cov(x, f - x)     F = W_U^T <diag(p j^2) - (p j)(p j)^T> W_U, the mean Fisher information of
                                         the model's own distribution at f (j: slope of the softcap, else 1)
    A = (S + r)^-1 C                     ridge regression of what the later blocks add, r relative to mean(diag S)
    (S + r)^1/2 A F^1/2 = u s v^T        its truncation to rank k is the best lens of rank k where KL is quadratic
    U = (S + r)^-1/2 u sqrt(s)           V = F^-1/2 v sqrt(s)           c = mean(f) - mean(x) - mean(x) U V^T

Each layer takes the ridge of RIDGES with the lowest held-out KL, and the temperature with the lowest KL on training
text. The same eigenvectors give (S + r)^-1/2 and (F + r)^-1/2, the coordinates of the fit (`coordinates`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lensmith.lens import objective
from lensmith.lens.coordinates import through
from lensmith.lens.divergence import LinearKL
from lensmith.lens.lens import Lens
from lensmith.process.draws import Stream
from lensmith.process.errors import NumericError
from lensmith.source.head import Head
from lensmith.source.residuals import Batch, Residuals

RIDGES = (1e-3, 1e-2, 1e-1)
FISHER_RIDGE = 1e-6  # of the mean of its diagonal: W_U may not use every dimension
FISHER_STEP_RIDGE = 1e-2  # the same for training: limits steps along what W_U hardly reads
CONSTANT = 1e-12  # variance over mean square; what varies less is the rounding of fp32
# Positions and sequences that ridges and temperatures are chosen on: a few suffice for one number a layer.
FEW_POSITIONS, FEW_SEQS = 512, 8
# Newton on log tau: most steps, longest step, and the step below which it has converged.
TAU_STEPS, TAU_REACH, TAU_ENOUGH = 8, 0.7, 0.01
OVERSAMPLING, POWER_STEPS = 16, 4  # of the randomised decomposition
# Bytes of fp64 moments on the device at a time; where all layers need more, residuals are read again for each group.
MOMENT_BYTES = 2**32


Spectrum = tuple[Tensor, Tensor]  # eigenvalues (d_model,) and eigenvectors (d_model, d_model)


@dataclass(frozen=True)
class Solution:
    """Factors of all blocks but the last. float32."""

    mean: Tensor  # (L, d_model): of x by block, of f at the last
    U: Tensor  # (L - 1, d_model, rank)
    V: Tensor  # (L - 1, d_model, rank)
    whitening: Tensor  # (L - 1, d_model, d_model): (S + r)^-1/2
    head_whitening: Tensor  # (d_model, d_model): (F + r)^-1/2, for all blocks
    ridge: tuple[float, ...]  # the best of RIDGES, by block

    def lens(self, start: Lens) -> Lens:
        """`start` with its U, V and c replaced, as far as its kind and rank allow."""
        rank, tensors = min(start.rank, self.U.shape[-1]), start.map_tensors(Tensor.clone).tensors()
        if start.kind in {"low_rank", "full"}:
            for name, factor in (("U", self.U), ("V", self.V)):
                tensors[name].zero_()[:-1, :, :rank] = factor[..., :rank]
        if start.kind not in {"identity", "temperature"}:
            U, V, mean = tensors["U"][:-1], tensors["V"][:-1], self.mean[:-1]
            tensors["c"][:-1] = self.mean[-1] - mean - through(mean, U, V)
        return start.with_tensors(tensors)


@dataclass(frozen=True)
class BlockFactors:
    """U, V and whitening of one block at one ridge, as in Solution."""

    U: Tensor
    V: Tensor
    whitening: Tensor
    ridge: float


@dataclass(frozen=True)
class Fisher:
    """Powers of F, for all blocks and ridges."""

    root: Tensor  # (d_model, d_model): F^1/2, fp64
    unroot: Tensor  # F^-1/2, fp64
    whitening: Tensor  # F^-1/2 with the ridge of training, fp32

    @classmethod
    def of(cls, spectrum: Spectrum) -> "Fisher":
        return cls(*_roots(spectrum, FISHER_RIDGE), _roots(spectrum, FISHER_STEP_RIDGE)[1].float())


def solve(linear_kl: LinearKL, train: Residuals, held_out: Residuals, start: Lens) -> Solution:
    """The factors for a lens of the norm and rank of `start`.

    One pass over `train`, and one over a part of `held_out`; one for each group of layers where the moments of all
    layers exceed MOMENT_BYTES.
    """
    head, n_blocks = linear_kl.head, start.n_layers - 1
    size = max(1, MOMENT_BYTES // (2 * 8 * start.d_model**2))
    fisher: Fisher | None = None
    means: list[Tensor] = []
    factors: list[BlockFactors] = []
    for first in range(0, n_blocks, size):
        blocks = list(range(first, min(first + size, n_blocks)))
        moments = Moments.of(head, train, start, blocks, with_fisher=fisher is None)
        if fisher is None:
            fisher = Fisher.of(torch.linalg.eigh(moments.fisher))
        spectra = [torch.linalg.eigh(cov) for cov in moments.cov]
        candidates = [_at_ridge(moments, spectra, ridge, fisher, start.rank) for ridge in RIDGES]
        means.append(moments.mean.float())
        factors += _best(linear_kl, candidates, held_out, start, blocks, mean=means[-1])
    assert fisher is not None
    return Solution(
        mean=torch.cat([*(mean[:-1] for mean in means), means[0][-1:]]),
        U=torch.stack([block.U for block in factors]),
        V=torch.stack([block.V for block in factors]),
        whitening=torch.stack([block.whitening for block in factors]),
        head_whitening=fisher.whitening,
        ridge=tuple(block.ridge for block in factors),
    )


@dataclass(frozen=True)
class Moments:
    """Moments of some blocks, centred, fp64."""

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
                fisher.add(f)
            n += len(f)
        assert shift is not None
        for i, block in enumerate(blocks):
            if not cov[i].isfinite().all():
                raise NumericError(f"fit: a residual of layer {block + 1} is not finite. No lens was written.")
        mean = total / n
        cov = cov / n - mean[:-1, :, None] * mean[:-1, None, :]
        cross = cross / n - mean[:-1, :, None] * mean[-1] - cov
        return cls(mean + shift[:, 0], cov, cross, fisher.mean() if with_fisher else cov.new_empty(0))


class _FisherSum:
    """The mean Fisher information at the head's input, W_U^T <diag(p j^2) - (p j)(p j)^T> W_U, from chunks of f."""

    def __init__(self, head: Head) -> None:
        self.head, self.n = head, 0
        self.weight = head.W_U.new_zeros(len(head.W_U), dtype=torch.float64)
        self.outer = head.W_U.new_zeros(2 * (head.W_U.shape[1],), dtype=torch.float64)

    def add(self, f: Tensor) -> None:
        for part in f.split(self.head.positions_at_once()):
            z = self.head.logits(part)
            p, j = z.softmax(-1), 1.0 if self.head.softcap is None else 1 - (z / self.head.softcap) ** 2
            pj = p * j
            e = pj @ self.head.W_U
            self.weight += (pj * j).sum(0)
            self.outer += e.T @ e
            self.n += len(part)

    def mean(self) -> Tensor:
        total = torch.zeros_like(self.outer)
        for W, weight in zip(self.head.W_U.split(4096), self.weight.split(4096), strict=True):
            total += (W.T.double() * weight) @ W.double()
        return (total - self.outer) / self.n


def _roots(spectrum: Spectrum, ridge: float, nothing: float = 0.0) -> tuple[Tensor, Tensor]:
    """Square root and inverse square root of a symmetric matrix, `ridge` times its mean eigenvalue added.

    Both are the identity where the mean eigenvalue is not above `nothing`: an input that never varies has no
    coordinates of its own, and predicts nothing.
    """
    values, vectors = spectrum
    if not values.mean() > nothing:
        identity = torch.eye(len(values)).to(vectors)
        return identity, identity
    root = (values.clamp_min(0) + ridge * values.mean()).sqrt()
    return (vectors * root) @ vectors.T, (vectors / root) @ vectors.T


def _at_ridge(
    moments: Moments, spectra: Sequence[Spectrum], ridge: float, fisher: Fisher, rank: int
) -> list[BlockFactors]:
    """The factors of each block at one ridge."""
    factors = []
    for spectrum, cross, mean in zip(spectra, moments.cross, moments.mean[:-1], strict=True):
        _, white = _roots(spectrum, ridge, CONSTANT * float(mean.square().mean()))
        left, size, right = _top_singular(white @ cross @ fisher.root, rank)
        U, V = white @ left * size.sqrt(), fisher.unroot @ right * size.sqrt()
        factors.append(BlockFactors(U.float(), V.float(), white.float(), ridge))
    return factors


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


def _best(
    linear_kl: LinearKL,
    candidates: Sequence[list[BlockFactors]],
    held_out: Residuals,
    start: Lens,
    blocks: list[int],
    *,
    mean: Tensor,
) -> list[BlockFactors]:
    """For each block the candidate with the lowest held-out KL at temperature one; `mean` as of Moments."""
    batch = _few_positions(linear_kl.head, held_out)
    teacher = objective.teacher_of(linear_kl.head, batch)
    x = objective.normed(linear_kl.head, batch.resid, blocks, start.norm) - mean[:-1, None]
    kl = []
    for candidate in candidates:
        U, V = torch.stack([block.U for block in candidate]), torch.stack([block.V for block in candidate])
        kl.append(linear_kl.value(teacher, mean[-1] + x + x @ U @ V.mT, x.new_zeros(len(blocks))).mean(1))
    return [candidates[best][i] for i, best in enumerate(torch.stack(kl).argmin(0).tolist())]


def _few_positions(head: Head, residuals: Residuals) -> Batch:
    """Positions far apart, of the first sequences."""
    batch = next(objective.read(head, residuals, FEW_SEQS))
    return batch.every(-(-len(batch.resid) // FEW_POSITIONS))


def temperatures(linear_kl: LinearKL, lens: Lens, train: Residuals) -> Tensor:
    """log tau (L,) of each layer of a lens, by KL at some positions of a few sequences; the last one stays 0."""
    batch = _few_positions(linear_kl.head, train)
    teacher, blocks = objective.teacher_of(linear_kl.head, batch), list(range(lens.n_layers - 1))
    y = objective.head_inputs(linear_kl.head, lens, batch.resid, blocks)
    log_tau = torch.zeros_like(lens.log_tau)
    for _ in range(TAU_STEPS if blocks else 0):
        # Newton, the curvature from a second slope; the longest step downhill where KL is not convex in log tau.
        slope = linear_kl(teacher, y, log_tau[:-1])[2].mean(1)
        curve = (linear_kl(teacher, y, log_tau[:-1] + 0.05)[2].mean(1) - slope) / 0.05
        step = torch.where(curve > 0, slope / curve, slope.sign() * TAU_REACH)
        log_tau[:-1] -= step.clamp(-TAU_REACH, TAU_REACH)
        if step.abs().max() < TAU_ENOUGH:
            break
    return log_tau

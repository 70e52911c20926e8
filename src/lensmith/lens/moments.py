"""What the closed form is made of: means, second moments and Fisher information of residuals, from one pass."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lensmith.lens import objective
from lensmith.lens.lens import Lens
from lensmith.lens.spectrum import Spectrum
from lensmith.process.errors import NumericError
from lensmith.process.progress import Progress, track
from lensmith.source.head import Head
from lensmith.source.residuals import Residuals

CONSTANT = 1e-12  # variance over mean square, up to which an input counts as constant: it is fp32 rounding
CENTER_SEQS = 64
SHORTEST = 1e-12  # of a residual, which may be zero
FISHER_EVERY = 4  # F is a mean over positions: every fourth one estimates it for a quarter of the products


def centers(head: Head, train: Residuals) -> Tensor:
    """A point amid the residuals of each layer: their mean direction, at the harmonic mean of their lengths.

    A norm's derivative falls with the length, so it is near its mean there. The plain mean is moved by the first tokens
    of texts, whose residuals are a hundred times as long as others.

    Returns:
        (L, d_model), float32, of at most CENTER_SEQS sequences.
    """
    directions = inverses = torch.zeros((), dtype=torch.float64)
    for batch in objective.read(head, train, CENTER_SEQS):
        resid = batch.resid.double()
        inverse = 1 / torch.linalg.vector_norm(resid, dim=-1, keepdim=True).clamp_min(SHORTEST)
        directions = directions + (resid * inverse).sum(0).cpu()
        inverses = inverses + inverse.sum(0).cpu()
    n = train.positions_per_seq * min(train.n_seqs, CENTER_SEQS)
    return (torch.nn.functional.normalize(directions, dim=-1) / (inverses / n)).float()


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
        d, n, fisher = start.d_model, 0, FisherSum(head)
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


class FisherSum:
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

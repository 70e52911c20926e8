"""Decompositions of the closed form: eigenvalues of second moments, and the largest singular values of a map."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lensmith.process.draws import Stream

OVERSAMPLING, POWER_STEPS = 16, 4  # of the randomised decomposition


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


def top_singular(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
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

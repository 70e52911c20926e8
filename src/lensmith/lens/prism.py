"""Prism, one decoder for all layers: a baseline, and a basis for U and V.

Let x = N(resid_post), (n, d_model), of all blocks together, with mean mu and deviation sigma by dimension. Prism
whitens x by dimension, turns the principal directions of the result into those of W_U, and reads that with the head:

    w = ((x - mu) / sigma) Q        z = g(w W_U + b)
        E (d_model, k)    top eigenvectors of the covariance of (x - mu) / sigma
        F (d_model, k)    top eigenvectors of sum_v W_U[v] W_U[v]^T
        Q (d_model, d_model)   orthogonal, takes E to F (Procrustes); near the identity where k leaves it free

An eigenvector has no sign. Both bases are of the residual stream, so the two of a pair are taken to point one way.

As preconditioner the update of a translator is written in w: x' = W^-1(w + w U' V'^T + c') with w = W(x), that is
U = (Q / sigma) U' and V = (sigma Q) V'. mu contributes a constant, which c holds anyway.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from lensmith.files import artifacts
from lensmith.lens.lens_file import PRISM_TENSORS
from lensmith.process.errors import IntegrityError, NumericError
from lensmith.process.progress import track
from lensmith.source.head import Head, HeadInput
from lensmith.source.residuals import Residuals

MAX_DIRECTIONS = 512
READ_SEQS = 8  # at a time
VARIANCE_FLOOR = 1e-6  # of the mean variance: bounds how far a dimension that hardly varies is scaled up
ORTHOGONAL = 1e-4  # largest entry of Q^T Q - 1 that a file may have, float32


@dataclass(frozen=True)
class Prism:
    """The shared decoder of one model. mean, inv_scale: (d_model,); rotation: (d_model, d_model). float32."""

    mean: Tensor
    inv_scale: Tensor
    rotation: Tensor
    directions: int  # k
    residuals: int  # how many it was fit on, each block's counted

    @classmethod
    def fit(cls, head: Head, train: Residuals, directions: int = MAX_DIRECTIONS) -> "Prism":
        """The Prism of all blocks' normed residuals, in one pass over them.

        Raises:
            NumericError: a residual is not finite.
        """
        total = torch.zeros(head.W_U.shape[1], dtype=torch.float64, device=head.W_U.device)
        second, n = total.new_zeros(len(total), len(total)), 0
        parts = np.array_split(np.arange(train.n_seqs), max(1, train.n_seqs // READ_SEQS))
        for seqs in track(parts, "prism", "part"):
            resid = train.read(seqs).resid
            for block in range(resid.shape[1]):
                x = head.norm(resid[:, block].to(head.W_U.device), block + 1, "final")
                total += x.double().sum(0)
                second += _gram(x)
                n += len(x)
        mean = total / n
        covariance = second / n - torch.outer(mean, mean)
        if not covariance.isfinite().all():
            raise NumericError("prism: a residual is not finite. No Prism was written.")
        variance = covariance.diagonal()
        inv_scale = (variance + VARIANCE_FLOOR * variance.mean()).rsqrt()
        k = min(directions, len(mean))
        seen = _top_directions(inv_scale[:, None] * covariance * inv_scale, k)
        read = _top_directions(_gram(head.W_U), k)
        return cls(mean.float(), inv_scale.float(), procrustes(seen, read).float(), k, n)

    def head_reads(self, head: Head, resid: Tensor, layer: int) -> HeadInput:
        """What the head reads of resid (n, d_model) at `layer` in 0..L; Prism has no temperature."""
        return HeadInput(self.head_input(head, resid, layer))

    def head_input(self, head: Head, resid: Tensor, layer: int) -> Tensor:
        """w, what W_U reads: (n, d_model), float32."""
        return ((head.norm(resid, layer, "final") - self.mean) * self.inv_scale) @ self.rotation

    def basis(self) -> tuple[Tensor, Tensor]:
        """(P, R), each (d_model, d_model): U = P U' and V = R V' for an update U', V' in w."""
        return self.inv_scale[:, None] * self.rotation, self.rotation / self.inv_scale[:, None]

    def to(self, device: torch.device) -> "Prism":
        moved = {name: getattr(self, name).to(device) for name in PRISM_TENSORS}
        return Prism(**moved, directions=self.directions, residuals=self.residuals)

    def save(self, path: Path) -> None:
        """Write the file."""
        form = {"directions": self.directions, "residuals": self.residuals, "schema": 1}
        tensors = {name: getattr(self, name).detach().cpu().contiguous() for name in PRISM_TENSORS}
        with artifacts.replacing(path) as temporary:
            save_file(tensors, temporary, metadata={"lensmith": artifacts.canonical_json(form)})

    @classmethod
    def load(cls, path: Path) -> "Prism":
        """Read the file that `save` wrote.

        Raises:
            IntegrityError: missing, damaged, of another form, or its rotation is not orthogonal.
        """
        try:
            with safe_open(path, framework="pt") as file:
                form = json.loads((file.metadata() or {})["lensmith"])
                tensors = {name: file.get_tensor(name) for name in PRISM_TENSORS}
            prism = cls(**tensors, directions=form["directions"], residuals=form["residuals"])
        except Exception as error:  # noqa: BLE001, safetensors raises several kinds, all mean one thing
            raise IntegrityError(f"{path}: not a whole Prism file ({error})") from None
        prism._check(path)
        return prism

    def _check(self, path: Path) -> None:
        d_model = len(self.mean)
        shapes = {name: tuple(getattr(self, name).shape) for name in PRISM_TENSORS}
        allowed = {"mean": (d_model,), "inv_scale": (d_model,), "rotation": (d_model, d_model)}
        if shapes != allowed:
            raise IntegrityError(f"{path}: holds {shapes}, must be {allowed}")
        error = (self.rotation.T @ self.rotation - torch.eye(d_model)).abs().max()
        # `not <=` refuses NaN too.
        if not (error <= ORTHOGONAL and self.mean.isfinite().all() and (self.inv_scale > 0).all()):
            raise IntegrityError(f"{path}: its rotation is not orthogonal, or a mean or scale is not finite")


def procrustes(seen: Tensor, read: Tensor) -> Tensor:
    """The orthogonal Q with seen^T Q = +-read^T, nearest to the identity in what that leaves free.

    Args:
        seen, read: (d_model, k), orthonormal columns in pairs; signs mean nothing.

    Returns:
        (d_model, d_model).
    """
    aligned = read * torch.where((seen * read).sum(0) < 0, -1.0, 1.0)
    identity = torch.eye(len(seen), dtype=seen.dtype, device=seen.device)
    # The two terms act on complements of each other, so the polar factor of their sum has both.
    free = (identity - seen @ seen.T) @ (identity - read @ read.T)
    left, _, right = torch.linalg.svd(seen @ aligned.T + free)
    rotation: Tensor = left @ right
    return rotation


def _gram(x: Tensor) -> Tensor:
    """x^T x of x (n, d_model) in float64, in chunks: a float64 copy of W_U would take gigabytes."""
    gram = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64, device=x.device)
    for chunk in x.split(4096):
        gram.addmm_(chunk.T.double(), chunk.double())
    return gram


def _top_directions(symmetric: Tensor, k: int) -> Tensor:
    """Eigenvectors of the k largest eigenvalues, largest first: (d_model, k)."""
    vectors: Tensor = torch.linalg.eigh(symmetric).eigenvectors
    return vectors.flip(1)[:, :k]

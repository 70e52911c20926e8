"""What a fit minimises, its gradient, and the same quantity on held-out residuals.

    loss = mean over layers of [ mean over positions of KL(final || lens_l)                                 in nats
                                 + l2_smallness * (|U_l|^2 + |V_l|^2 + |c_l|^2)
                                 + smooth_depth * |U_l+1 V_l+1^T - U_l V_l^T|^2 ]

Depth is smoothed on the map U V^T. A penalty on U and V apart, as in the reference recipe, would change with the gauge
(U G, V G^-T), which changes no lens.

`divergence.LinearKL` gives the gradient of KL with respect to the head's input. `layer_gradients` takes it on to the
parameters, by three products for all layers at once.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lensmith.lens.depth import PERCENTILES, depth_layer
from lensmith.lens.divergence import BITS, LinearKL
from lensmith.lens.lens import Lens
from lensmith.source.head import Head, NormKind
from lensmith.source.residuals import Batch, Residuals, read_ahead
from lensmith.source.teacher import Teacher

READ_SEQS = 8  # sequences that are read at a time
# Positions and sequences by which ridges, temperatures and the rank are chosen: a few suffice for one number a layer.
FEW_POSITIONS, FEW_SEQS = 256, 8

Gradients = dict[str, Tensor]


@dataclass(frozen=True)
class Validation:
    """Held-out KL(final || lens) by layer, in bits: (L,); NaN at layers that the lens lacks."""

    kl_bits: tuple[float, ...]

    def at(self, depth_pct: int) -> float:
        return self.kl_bits[depth_layer(len(self.kl_bits), depth_pct) - 1]

    @property
    def at_depths(self) -> tuple[float, ...]:
        """At 25, 50 and 75 % of depth."""
        return tuple(self.at(depth) for depth in PERCENTILES)

    @property
    def mean(self) -> float:
        """Over the layers that a lens translates: all but the last, where it is 0."""
        present = [bits for bits in self.kl_bits if not math.isnan(bits)]
        return sum(present) / max(1, len(present) - 1)

    @property
    def score(self) -> float:
        """What early stopping minimises: the mean over depths 25, 50 and 75 %."""
        return sum(self.at_depths) / len(PERCENTILES)


def depth_blocks(n_layers: int) -> list[int]:
    """The blocks that end at 25, 50 and 75 % of depth."""
    return [depth_layer(n_layers, depth) - 1 for depth in PERCENTILES]


def normed(head: Head, resid: Tensor, blocks: Sequence[int], norm: NormKind) -> Tensor:
    """x of resid_post (n, L, d_model) for some blocks: (len(blocks), n, d_model), in the head's precision."""
    if norm == "final":
        return head.norm(resid[:, list(blocks)].transpose(0, 1).contiguous(), resid.shape[1], "final")
    return torch.stack([head.norm(resid[:, block], block + 1, norm) for block in blocks])


def head_inputs(head: Head, lens: Lens, resid: Tensor, blocks: Sequence[int]) -> Tensor:
    """What W_U reads through a lens of resid_post (n, L, d_model): (len(blocks), n, d_model)."""
    return torch.stack([lens.head_input(head, resid[:, block], block + 1) for block in blocks])


def teacher_of(head: Head, batch: Batch) -> Teacher:
    """The model's own distribution: from the bank where it holds one, else from resid_post."""
    if batch.teacher is not None:
        return batch.teacher
    return Teacher.from_head_input(head, head.norm(batch.resid[:, -1], batch.resid.shape[1], "final"))


def layer_gradients(
    linear_kl: LinearKL, teacher: Teacher, x: Tensor, translator: Mapping[str, Tensor]
) -> tuple[Tensor, Gradients]:
    """Mean KL in nats of some blocks, and its gradient.

    Args:
        x: (blocks, n, d_model), what the translators read at n positions.
        translator: U, V, c, scale, log_tau of these blocks, stacked.

    Returns:
        (blocks,) and a gradient for each name, of its shape.
    """
    U, V, n = translator["U"], translator["V"], x.shape[1]
    hidden = x @ U
    y = torch.baddbmm(translator["c"][:, None].expand_as(x), hidden, V.mT).addcmul_(x, translator["scale"][:, None])
    kl, dy, d_log_tau = linear_kl(teacher, y, translator["log_tau"])
    dy /= n
    return kl.mean(1), {
        "U": x.mT @ (dy @ V),
        "V": dy.mT @ hidden,
        "c": dy.sum(1),
        "scale": torch.linalg.vecdot(dy, x, dim=1),
        "log_tau": d_log_tau.mean(1),
    }


def validate(linear_kl: LinearKL, lens: Lens, held_out: Residuals) -> Validation:
    """KL of every layer that the lens reads over all positions, in bits."""
    blocks = [layer - 1 for layer in lens.layers[:-1]]  # the last one is the model
    total = torch.full((lens.n_layers,), torch.nan, dtype=torch.float64)
    total[[*blocks, -1]] = 0
    for batch in read(linear_kl.head, held_out) if blocks else ():
        y = head_inputs(linear_kl.head, lens, batch.resid, blocks)
        kl = linear_kl.value(teacher_of(linear_kl.head, batch), y, lens.log_tau[blocks])
        total[blocks] += kl.double().sum(1).cpu()
    return Validation(tuple((total / (held_out.n_seqs * held_out.positions_per_seq) * BITS).tolist()))


def read(head: Head, residuals: Residuals, n_seqs: int | None = None) -> Iterator[Batch]:
    """All sequences, or the first `n_seqs`, a few at a time on the head's device."""
    seqs = np.arange(residuals.n_seqs if n_seqs is None else min(n_seqs, residuals.n_seqs))
    parts = np.array_split(seqs, max(1, len(seqs) // READ_SEQS))
    return (batch.to(head.W_U.device) for batch in read_ahead(residuals, parts))


def few_positions(head: Head, residuals: Residuals) -> Batch:
    """At most FEW_POSITIONS positions, evenly spaced over the first FEW_SEQS sequences."""
    batch = next(read(head, residuals, FEW_SEQS))
    return batch.at(slice(None, None, -(-len(batch.resid) // FEW_POSITIONS)))


def penalty_gradients(
    U: Tensor, V: Tensor, c: Tensor, blocks: Sequence[int], *, l2_smallness: float, smooth_depth: float
) -> Gradients:
    """Gradients of some blocks' penalties. The last block, the identity, takes no part.

    Args:
        U, V, c: of all blocks but the last, stacked.
    """
    picked = list(blocks)
    gradients = {name: 2 * l2_smallness * tensor[picked] for name, tensor in (("U", U), ("V", V), ("c", c))}
    for i, block in enumerate(picked if smooth_depth else ()):
        for other in (block - 1, block + 1):
            if 0 <= other < len(U):
                # (U V^T - U' V'^T) V, without a d_model x d_model product.
                gradients["U"][i] += 2 * smooth_depth * _gap(U[block], V[block], U[other], V[other])
                gradients["V"][i] += 2 * smooth_depth * _gap(V[block], U[block], V[other], U[other])
    return gradients


def _gap(A: Tensor, B: Tensor, A2: Tensor, B2: Tensor) -> Tensor:
    return A @ (B.T @ B) - A2 @ (B2.T @ B)

"""What a fit minimises, its gradient, and the same quantity on held-out rows.

    loss = mean over layers of [ mean over positions of KL(final || lens_l)                                 in nats
                                 + l2_smallness * (|U_l|^2 + |V_l|^2 + |c_l|^2)
                                 + smooth_depth * (|U_l+1 - U_l|^2 + |V_l+1 - V_l|^2) ]

The gradient of KL with respect to the head's input comes from `divergence.kl_gradient`; from there to the parameters
it is three products, written out here. Rows are taken in chunks, so memory does not grow with batch or vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lensmith.lens.depth import PERCENTILES, depth_row
from lensmith.lens.divergence import BITS, Teacher, kl_gradient
from lensmith.lens.translators import Lens
from lensmith.source.backbone import Head
from lensmith.source.bank import Rows

# Logits of one chunk of rows. Its few passes then stay in cache on a CPU, and the allocator reuses its memory.
CHUNK_LOGITS = 2**22
MIN_CHUNK_ROWS = 256
VALIDATION_SEQS = 8  # read at a time

Gradients = dict[str, Tensor]


@dataclass(frozen=True)
class Validation:
    """Held-out KL(final || lens) by layer, in bits: (L,)."""

    kl_bits: tuple[float, ...]

    def at(self, depth_pct: int) -> float:
        return self.kl_bits[depth_row(len(self.kl_bits), depth_pct) - 1]

    @property
    def score(self) -> float:
        """What early stopping minimises: the mean over depths 25, 50 and 75 %."""
        return sum(self.at(depth) for depth in PERCENTILES) / len(PERCENTILES)


def layer_gradients(head: Head, lens: Lens, resid: Tensor, blocks: list[int]) -> tuple[Tensor, dict[int, Gradients]]:
    """Mean KL in nats of each block, and its gradient.

    Args:
        resid: (n, L, d_model), resid_post at n positions.
        blocks: which blocks, 0-based.

    Returns:
        (len(blocks),) and, by block, a gradient for each name of the lens's tensors.
    """
    n = len(resid)
    kl = torch.zeros(len(blocks), device=head.W_U.device)
    gradients: dict[int, Gradients] = {}
    for chunk in _chunks(head, resid):
        teacher = Teacher.of(head, head.norm(chunk[:, -1], lens.n_layers, "final"))
        for i, block in enumerate(blocks):
            nats, grad = _block_gradient(head, lens, teacher, chunk[:, block], block)
            kl[i] += nats / n
            held = gradients.setdefault(block, {name: torch.zeros_like(g) for name, g in grad.items()})
            for name, g in grad.items():
                held[name].add_(g, alpha=1 / n)
    return kl, gradients


def _chunks(head: Head, resid: Tensor) -> Iterator[Tensor]:
    """A few rows at a time, on the head's device in its precision."""
    for chunk in resid.split(max(MIN_CHUNK_ROWS, CHUNK_LOGITS // len(head.W_U))):
        yield chunk.to(head.W_U)


def _block_gradient(head: Head, lens: Lens, teacher: Teacher, resid: Tensor, block: int) -> tuple[Tensor, Gradients]:
    """KL in nats of one block, summed over rows, and its gradient."""
    x = head.norm(resid, block + 1, lens.norm)
    hidden = x @ lens.U[block]
    y = lens.scale[block] * x + hidden @ lens.V[block].T + lens.c[block]
    kl, dy, d_log_tau = kl_gradient(head, teacher, y, lens.log_tau[block])
    return kl.sum(), {
        "U": x.T @ (dy @ lens.V[block]),
        "V": dy.T @ hidden,
        "c": dy.sum(0),
        "scale": (dy * x).sum(0),
        "log_tau": d_log_tau.sum(),
    }


def validate(head: Head, lens: Lens, rows: Rows) -> Validation:
    """KL of every layer over all rows, in bits."""
    total = torch.zeros(lens.n_layers, dtype=torch.float64)
    for seqs in np.array_split(np.arange(rows.n_seqs), max(1, rows.n_seqs // VALIDATION_SEQS)):
        for chunk in _chunks(head, rows.resid_post(seqs)):
            teacher = Teacher.of(head, head.norm(chunk[:, -1], lens.n_layers, "final"))
            for block in range(lens.n_layers - 1):  # the last one is the model
                y = lens.head_input(head, chunk[:, block], block + 1)
                total[block] += kl_gradient(head, teacher, y, lens.log_tau[block])[0].double().sum().cpu()
    return Validation(tuple((total / (rows.n_seqs * rows.positions_per_seq) * BITS).tolist()))


def penalty_gradients(lens: Lens, block: int, l2_smallness: float, smooth_depth: float) -> Gradients:
    """Gradient of one block's penalties. The last block is the identity and nobody's neighbour."""
    gradients = {name: 2 * l2_smallness * getattr(lens, name)[block] for name in ("U", "V", "c")}
    for name in ("U", "V"):
        tensor = getattr(lens, name)
        for neighbour in (block - 1, block + 1):
            if 0 <= neighbour < lens.n_layers - 1:
                gradients[name] += 2 * smooth_depth * (tensor[block] - tensor[neighbour])
    return gradients

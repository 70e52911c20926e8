"""The vocabulary in tiles, so that no tensor has d_vocab columns.

The logits of all tokens at a few hundred positions exceed any cache, so each pass over them waits for memory. Those of
a tile stay in the cache while all their sums are taken.

A softmax in tiles keeps a running maximum m and the sum of exp(z - m). Where a tile raises m, the earlier sum is scaled
down.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from lensmith.source.head import ByDevice, Head

TOKENS = ByDevice(cpu=2048, accelerator=16384)  # in a tile
LOWEST = -1e15  # below every logit; its square is finite, so that no product with zero is NaN


class Tile(NamedTuple):
    """Some consecutive tokens of the vocabulary."""

    start: int
    W_U: Tensor  # (t, d_model)
    bias: Tensor | None  # (t,)

    @property
    def stop(self) -> int:
        return self.start + len(self.W_U)

    def products(self, y: Tensor, out: Tensor) -> Tensor:
        """y W_U^T + b of y (n, d_model), in a buffer of at least n * t numbers: (n, t)."""
        z = torch.mm(y, self.W_U.T, out=part(out, len(y), len(self.W_U)))
        return z if self.bias is None else z.add_(self.bias)


def tiles(head: Head) -> Iterator[Tile]:
    """All tokens of a head, in order. A token that its bias excludes (-inf) has the lowest finite one."""
    size = TOKENS.of(head.W_U.device)
    for start in range(0, len(head.W_U), size):
        bias = None if head.bias is None else head.bias[start : start + size].clamp(min=LOWEST)
        yield Tile(start, head.W_U[start : start + size], bias)


def buffers(head: Head, rows: int, count: int) -> list[Tensor]:
    """Memory for `count` tiles of `rows` positions each."""
    return [head.W_U.new_empty(rows * min(TOKENS.of(head.W_U.device), len(head.W_U))) for _ in range(count)]


def part(buffer: Tensor, rows: int, columns: int) -> Tensor:
    """The first rows * columns numbers of a buffer as a matrix."""
    return buffer[: rows * columns].view(rows, columns)


def dot(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """<a, b> over the tokens of a tile, (n, t) each to (n,). `vecdot` makes a tensor of its own, which costs more."""
    return torch.mul(a, b, out=part(out, *a.shape)).sum(-1)


def transform(head: Head, z: Tensor, a: float, out: Tensor) -> Tensor:
    """g(a z) of products z (n, t), g the head's scale and softcap: (n, t), in a buffer."""
    return head.transform.cap_(torch.mul(z, a * head.scale, out=part(out, *z.shape)))


class Softmax:
    """Maximum, place of the maximum, and sum of exponentials of n rows of logits that come in tiles."""

    def __init__(self, like: Tensor) -> None:
        """`like`: (n, ...), of the logits' type and device."""
        self.high = like.new_full((len(like),), LOWEST)
        self.top = torch.zeros_like(self.high, dtype=torch.long)
        self.total = torch.zeros_like(self.high, dtype=torch.float64)  # of exp(z - high)

    def add(self, z: Tensor, start: int, out: Tensor) -> tuple[Tensor, Tensor]:
        """One more tile, whose logits z (n, t) begin at token `start`; z becomes z - high, `out` exp(z - high).

        Returns:
            exp(z - high) (n, t), and by how much `high` rose (n,), float64: earlier sums of exponentials are to be
            multiplied by exp(-rise).
        """
        high = z.amax(-1)
        if len(rows := (high > self.high).nonzero()[:, 0]):
            self.top[rows] = start + z[rows].argmax(-1)
        high = torch.maximum(high, self.high)
        rise = high.double() - self.high
        self.high = high
        e = torch.exp(z.sub_(high[:, None]), out=part(out, *z.shape))
        self.total = self.total * torch.exp(-rise) + e.sum(-1)
        return e, rise

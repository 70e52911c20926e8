"""The model's final distribution p at a position, in d_model + 2 numbers.

The p of KL(p ‖ q) is the same for every layer, epoch and rank of a fit. For a head whose logits are linear in its input
y, z = a (y W_Uᵀ + b), the divergence and its gradient need of p only

    e_p = p W_U (d_model)      b_p = ⟨p, b⟩      H(p), nats

so these are computed once a position and stored. The likeliest tokens under p are stored too: a softmax over a part of
the vocabulary must not miss them. A softcap is not linear: there the head's input y is stored, and p is computed from
it a chunk of positions at a time.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from lensmith.source.head import Head

LIKELY = 16  # likeliest tokens that are stored for a position


@dataclass(frozen=True)
class Teacher:
    """p at n positions: `packed` and `likely` for a head that is linear, `y` for one with a softcap."""

    packed: Tensor | None  # (n, d_model + 2) fp32: e_p, b_p, H(p)
    likely: Tensor | None  # (n, LIKELY) int32: the likeliest tokens; fewer columns where d_vocab is smaller
    y: Tensor | None  # (n, d_model): the head's input at the last layer

    @classmethod
    def from_head_input(cls, head: Head, y_final: Tensor) -> Self:
        """From the head's input at the last layer, y_final (n, d_model)."""
        if head.softcap is not None:
            return cls(None, None, y_final)
        packed, likely = [], []
        for y in y_final.split(head.positions_at_once()):
            p = head.logits(y).softmax(-1)
            entropy = torch.special.entr(p).sum(-1, keepdim=True)
            b_p = torch.zeros_like(entropy) if head.bias is None else (p @ head.bias)[:, None]
            packed.append(torch.cat([p @ head.W_U, b_p, entropy], -1))
            likely.append(p.topk(min(LIKELY, p.shape[-1]), sorted=False).indices.int())
        return cls(torch.cat(packed), torch.cat(likely), None)

    @property
    def e_p(self) -> Tensor:
        """(n, d_model)."""
        assert self.packed is not None
        return self.packed[:, :-2]

    @property
    def b_p(self) -> Tensor:
        """(n,)."""
        assert self.packed is not None
        return self.packed[:, -2]

    @property
    def entropy(self) -> Tensor:
        """(n,), in nats."""
        assert self.packed is not None
        return self.packed[:, -1]

    def part(self, positions: slice | Tensor) -> "Teacher":
        """p at some of the positions."""
        return self.map_tensors(lambda tensor: tensor[positions])

    def to(self, device: torch.device) -> "Teacher":
        """The same on a device."""
        return self.map_tensors(lambda tensor: tensor.to(device, non_blocking=True))

    def map_tensors(self, change: Callable[[Tensor], Tensor]) -> "Teacher":
        """The same with `change` applied to each tensor."""
        tensors = (self.packed, self.likely, self.y)
        return Teacher(*(None if tensor is None else change(tensor) for tensor in tensors))

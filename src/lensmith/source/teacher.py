"""The model's final distribution at a position, in d_model + 2 numbers.

Every divergence KL(p || q) that a lens is fit on has the same p, whatever the layer, epoch or rank. For a head whose
logits are linear in its input y, z = a (y W_Uᵀ + b), all that KL and its gradient need of p is

    e_p = p W_U (d_model)      b_p = <p, b>      H(p), nats

so it is computed once a position and kept. A softcap is not linear: there the head's input is kept, and p is made of it
anew, a chunk of rows at a time.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from lensmith.source.head import Head


@dataclass(frozen=True)
class Teacher:
    """p at n positions. Either `packed` or `y`, as the head asks."""

    packed: Tensor | None  # (n, d_model + 2) fp32: e_p, b_p, H(p); None where the head has a softcap
    y: Tensor | None  # (n, d_model): the head's input at the last block; None where `packed` says all

    @classmethod
    def from_head_input(cls, head: Head, y_final: Tensor) -> Self:
        """From the head's input at the last block, y_final (n, d_model)."""
        if head.softcap is not None:
            return cls(None, y_final)
        return cls(torch.cat([_pack(head, part) for part in y_final.split(head.positions_at_once())]), None)

    @property
    def e_p(self) -> Tensor:
        assert self.packed is not None
        return self.packed[:, :-2]

    @property
    def b_p(self) -> Tensor:
        assert self.packed is not None
        return self.packed[:, -2]

    @property
    def entropy(self) -> Tensor:
        assert self.packed is not None
        return self.packed[:, -1]

    def part(self, part: slice) -> "Teacher":
        """The same for some of the positions."""
        return Teacher(*(None if held is None else held[part] for held in (self.packed, self.y)))

    def to(self, device: torch.device) -> "Teacher":
        return Teacher(*(None if held is None else held.to(device) for held in (self.packed, self.y)))


def _pack(head: Head, y: Tensor) -> Tensor:
    p = head.logits(y).softmax(-1)
    entropy = torch.special.entr(p).sum(-1, keepdim=True)
    b_p = torch.zeros_like(entropy) if head.bias is None else (p @ head.bias)[:, None]
    return torch.cat([p @ head.W_U, b_p, entropy], -1)

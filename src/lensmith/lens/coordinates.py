"""The coordinates that a lens is trained in. A lens on disk does not depend on them.

    y = s * (x - m) + ((x - m) U) V^T + b        U = P U'    V = R V'    b = B b'        trained: U', V', b', s, log_tau
    c = b - s * m - (m U) V^T                    the lens on disk has U, V, c, s, log_tau

plain       P, R, B = 1, m = 0: the reference recipe's, whose penalties and decay act on U and V themselves
whitened    P = Cov(x)^-1/2, R = B = F^-1/2 of the head's Fisher information F, m = mean(x): steps in all directions
            of x, and of what the head reads, have the same scale for every model, since half the squared length of a
            small change of F^1/2 y is KL in nats
prism       P, R of Prism (the reference recipe's preconditioner), B = 1
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lensmith.lens.lens import Lens


@dataclass(frozen=True)
class Coordinates:
    """m, P, R and B of all blocks but the last."""

    mean: Tensor  # (L - 1, d_model): m
    P: Tensor | None = None  # (d_model, d_model), or one for each block; None is 1
    R: Tensor | None = None  # as P
    B: Tensor | None = None  # as P

    @classmethod
    def plain(cls, lens: Lens) -> "Coordinates":
        return cls(torch.zeros_like(lens.c[:-1]))

    def enter(self, lens: Lens) -> dict[str, Tensor]:
        """The trained tensors of a lens by name, each (L - 1, ...); `c` holds b'."""
        U, V, s, log_tau = (getattr(lens, name)[:-1].clone() for name in ("U", "V", "scale", "log_tau"))
        b = lens.c[:-1] + s * self.mean + through(self.mean, U, V)
        c = _undo(self.B, b[..., None])[..., 0]
        return {"U": _undo(self.P, U), "V": _undo(self.R, V), "c": c, "scale": s, "log_tau": log_tau}

    def leave(self, trained: Mapping[str, Tensor], like: Lens) -> Lens:
        """The lens of trained tensors, with the last block of `like`."""
        s = trained["scale"]
        U, V, b = self.factors(trained)
        c = b - s * self.mean - through(self.mean, U, V)
        inner = {"U": U, "V": V, "c": c, "scale": s, "log_tau": trained["log_tau"]}
        return like.with_tensors({name: torch.cat([part, getattr(like, name)[-1:]]) for name, part in inner.items()})

    def factors(self, trained: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """U and V (L - 1, d_model, rank), and b (L - 1, d_model)."""
        b = _apply(self.B, trained["c"][..., None])[..., 0]
        return _apply(self.P, trained["U"]), _apply(self.R, trained["V"]), b

    def pull(self, gradients: dict[str, Tensor], blocks: list[int]) -> dict[str, Tensor]:
        """Gradients for U', V' and b' of some blocks, from those for U, V and b, by the chain rule; in place."""
        for name, basis in (("U", self.P), ("V", self.R), ("c", self.B)):
            if basis is not None:
                gradient, of_blocks = gradients[name], basis if basis.dim() == 2 else basis[blocks]
                gradients[name] = (of_blocks.mT @ gradient.view(len(blocks), gradient.shape[1], -1)).view_as(gradient)
        return gradients


def _apply(basis: Tensor | None, tensor: Tensor) -> Tensor:
    return tensor if basis is None else basis @ tensor


def _undo(basis: Tensor | None, tensor: Tensor) -> Tensor:
    """The solution x of basis x = tensor."""
    return tensor if basis is None else torch.linalg.solve(basis, tensor)


def through(mean: Tensor, U: Tensor, V: Tensor) -> Tensor:
    """(mean U) V^T of each block, mean (blocks, d_model)."""
    return ((mean[:, None] @ U) @ V.mT)[:, 0]

"""The optimizers of a fit, over the trained tensors of single blocks.

adamw   AdamW for all
muon    Muon for U and V: it replaces their momentum by the nearest orthogonal matrix; AdamW for the rest

A new one is one case of `Optimizers`, its name in `FitParams`, and a test.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from lensmith.settings.sections import FitParams

MOMENTUM = 0.95  # of Muon
MATRICES = ("U", "V")


class Optimizers:
    """The optimizers of a fit; they change the trained tensors in place."""

    def __init__(self, settings: FitParams, trained: Mapping[str, Tensor]) -> None:
        """`trained` by name, stacked by block."""
        # Views of the stacked tensors, one a block: an optimizer skips a block without a gradient.
        self._leaves = {name: list(tensor) for name, tensor in trained.items()}
        matrices = [name for name in trained if settings.optimizer == "muon" and name in MATRICES]
        self._optimizers: list[Optimizer] = []
        if matrices:
            flat = [leaf for name in matrices for leaf in self._leaves[name]]
            muon = torch.optim.Muon(flat, lr=settings.lr, momentum=MOMENTUM, weight_decay=settings.weight_decay)
            self._optimizers.append(muon)
        # Decay pulls towards zero; `scale`, a factor, must stay near one.
        groups = [
            {"params": leaves, "weight_decay": 0.0 if name == "scale" else settings.weight_decay}
            for name, leaves in self._leaves.items()
            if name not in matrices
        ]
        if groups:
            self._optimizers.append(torch.optim.AdamW(groups, lr=settings.lr, betas=(settings.beta1, settings.beta2)))

    def take_step(self, gradients: Mapping[str, Tensor], blocks: Sequence[int], lr: float) -> None:
        """One step of these blocks at this rate; other blocks keep their values, momentum and decay included.

        Args:
            gradients: by name, stacked in the order of `blocks`; the step is on their mean over blocks.
        """
        position = {block: i for i, block in enumerate(blocks)}
        for name, leaves in self._leaves.items():
            for block, leaf in enumerate(leaves):
                leaf.grad = gradients[name][position[block]] / len(blocks) if block in position else None
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()

    def states(self) -> list[dict[int, dict[str, Tensor]]]:
        """The state of each optimizer by leaf, as `state_dict` has it; the tensors are those that steps change."""
        return [optimizer.state_dict()["state"] for optimizer in self._optimizers]

    def restore(self, states: Sequence[Mapping[int, Mapping[str, Tensor]]]) -> None:
        """Take over the `states` of optimizers of the same settings."""
        for optimizer, state in zip(self._optimizers, states, strict=True):
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})

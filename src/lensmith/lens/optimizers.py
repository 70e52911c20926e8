"""The optimizers of a fit, over the trained tensors of single blocks.

adamw   AdamW for all
muon    Muon for U and V: it replaces their momentum by the nearest orthogonal matrix; AdamW for the rest
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from lensmith.settings.sections import FitParams

MOMENTUM = 0.95  # of Muon
MATRICES = ("U", "V")

Leaves = Mapping[str, list[Tensor]]  # the trained tensors by name, one for each block


def make(settings: FitParams, leaves: Leaves) -> list[Optimizer]:
    """Optimizers for the trained tensors."""
    matrices = {name: leaves[name] for name in leaves if settings.optimizer == "muon" and name in MATRICES}
    others = {name: tensors for name, tensors in leaves.items() if name not in matrices}
    made: list[Optimizer] = []
    if matrices:
        flat = [tensor for tensors in matrices.values() for tensor in tensors]
        made.append(torch.optim.Muon(flat, lr=settings.lr, momentum=MOMENTUM, weight_decay=settings.weight_decay))
    if others:
        # Decay pulls towards zero; `scale`, a factor, must stay near one.
        groups = [
            {"params": tensors, "weight_decay": 0.0 if name == "scale" else settings.weight_decay}
            for name, tensors in others.items()
        ]
        made.append(torch.optim.AdamW(groups, lr=settings.lr, betas=(settings.beta1, settings.beta2)))
    return made


def take_step(
    made: Sequence[Optimizer], leaves: Leaves, gradients: Mapping[str, Tensor], blocks: Sequence[int], lr: float
) -> None:
    """One step of these blocks at this rate; other blocks keep their values, momentum and decay included.

    Args:
        gradients: by name, stacked in the order of `blocks`; the step is on their mean over blocks.
    """
    position = {block: i for i, block in enumerate(blocks)}
    for name, tensors in leaves.items():
        for block, leaf in enumerate(tensors):
            leaf.grad = gradients[name][position[block]] / len(blocks) if block in position else None
    for optimizer in made:
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()


def restore(made: Sequence[Optimizer], states: Sequence[Mapping[int, Mapping[str, Tensor]]]) -> None:
    """Give optimizers of the same settings the states of a `state_dict`, by leaf."""
    for optimizer, state in zip(made, states, strict=True):
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})

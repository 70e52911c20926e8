"""The optimizers of a fit, over the trained tensors of single blocks.

adamw   AdamW for all
muon    Muon for U and V: their momentum is replaced by the nearest orthogonal matrix. AdamW for the rest
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from lensmith.settings.sections import FitParams

Optimizer = torch.optim.Optimizer
MOMENTUM = 0.95  # of Muon
MATRICES = ("U", "V")


def make(settings: FitParams, leaves: Mapping[str, list[Tensor]]) -> list[Optimizer]:
    """Optimizers for the trained tensors, by name a list over blocks."""
    kinds: dict[str, Callable[[FitParams, Mapping[str, list[Tensor]]], Optimizer]] = {"adamw": _adamw, "muon": _muon}
    own = {name: tensors for name, tensors in leaves.items() if settings.optimizer != "adamw" and name in MATRICES}
    rest = {name: tensors for name, tensors in leaves.items() if name not in own}
    pairs = ((settings.optimizer, own), ("adamw", rest))
    return [kinds[kind](settings, group) for kind, group in pairs if group]


def _adamw(settings: FitParams, leaves: Mapping[str, list[Tensor]]) -> Optimizer:
    # Decay pulls to zero, and a factor of zero is no lens: `scale` rests at one.
    groups = [
        {"params": tensors, "weight_decay": 0.0 if name == "scale" else settings.weight_decay}
        for name, tensors in leaves.items()
    ]
    return torch.optim.AdamW(groups, lr=settings.lr, betas=(settings.beta1, settings.beta2))


def _muon(settings: FitParams, leaves: Mapping[str, list[Tensor]]) -> Optimizer:
    every = [tensor for tensors in leaves.values() for tensor in tensors]
    return torch.optim.Muon(every, lr=settings.lr, momentum=MOMENTUM, weight_decay=settings.weight_decay)


def restore(made: Sequence[Optimizer], states: Sequence[Mapping[int, Mapping[str, Tensor]]]) -> None:
    """Give optimizers of the same settings the state that `state_dict` had said of them, by leaf."""
    for optimizer, state in zip(made, states, strict=True):
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})

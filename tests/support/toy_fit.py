"""Residuals of a linear toy model and its head, for fits of milliseconds."""

import torch
from torch import nn

from lensmith.source.head import Head, Transform
from tests.support.held_rows import HeldRows

L, D, V, P = 4, 12, 23, 6


def toy(n_seqs: int, seed: int, dtype=torch.float32) -> HeldRows:
    maps = torch.randn(L, D, D, generator=torch.Generator().manual_seed(7), dtype=dtype) * 0.15 + torch.eye(D)
    last = torch.randn(n_seqs * P, D, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    layers = [last @ maps[layer] for layer in range(L - 1)]
    return HeldRows(torch.stack([*layers, last], 1), P)


def toy_head(dtype=torch.float32) -> Head:
    W_U = torch.randn(V, D, generator=torch.Generator().manual_seed(0), dtype=dtype)
    return Head(W_U, None, Transform(), nn.Identity(), (None,) * L, "")

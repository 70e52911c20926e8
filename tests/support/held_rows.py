"""Residuals in memory, for tests of code that reads a bank."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lensmith.source.residuals import Batch


@dataclass
class HeldRows:
    """The interface of `residuals.Residuals` over a tensor."""

    resid: Tensor  # (n_seqs * positions_per_seq, L, d_model)
    positions_per_seq: int
    tokens_forwarded: int = 0

    @property
    def n_seqs(self) -> int:
        return len(self.resid) // self.positions_per_seq

    reads_ahead = False

    def read(self, seqs: np.ndarray) -> Batch:
        return Batch(self.resid_post(seqs), None)

    def resid_post(self, seqs: np.ndarray) -> Tensor:
        return self.resid.unflatten(0, (-1, self.positions_per_seq))[torch.from_numpy(seqs)].flatten(0, 1)

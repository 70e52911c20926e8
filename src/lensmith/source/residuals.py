"""Residuals at sampled positions, by sequence: what a fit reads, from a bank or from the model."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lensmith.process.draws import Stream
from lensmith.settings.sections import FitParams
from lensmith.source.backbone import Backbone
from lensmith.source.head import ByDevice
from lensmith.source.teacher import Teacher

# Tokens of one forward pass. On a CPU its activations should stay near the cache; on a GPU products should be large.
CAPTURE_TOKENS = ByDevice(cpu=4096, accelerator=16384)


class Batch(NamedTuple):
    """Residuals of some sequences."""

    resid: Tensor  # (n, L, d_model), resid_post at n positions
    teacher: Teacher | None  # at the same positions; None where it must be computed from the residuals

    def to(self, device: torch.device) -> "Batch":
        """The same on a device."""
        resid = self.resid.to(device, non_blocking=True)
        return Batch(resid, None if self.teacher is None else self.teacher.to(device))

    def at(self, positions: slice | Tensor) -> "Batch":
        """The same at some of its positions, by index."""
        return Batch(self.resid[positions], None if self.teacher is None else self.teacher.part(positions))


class Residuals(Protocol):
    """Residuals by sequence."""

    tokens_forwarded: int  # through the model, to make what was read; a fit that resumes sets it back

    @property
    def n_seqs(self) -> int: ...

    @property
    def positions_per_seq(self) -> int: ...

    @property
    def reads_ahead(self) -> bool:
        """Whether the next batch may be read while one is in use."""

    def read(self, seqs: NDArray[np.int64]) -> Batch:
        """These sequences' sampled positions, len(seqs) * positions_per_seq of them."""


def read_ahead(residuals: Residuals, batches: Iterable[NDArray[np.int64]]) -> Iterator[Batch]:
    """Batches of sequences, each read while the one before is in use."""
    if not residuals.reads_ahead:
        yield from map(residuals.read, batches)
        return
    with ThreadPoolExecutor(max_workers=1) as reader:
        earlier = None
        for seqs in batches:
            later = reader.submit(residuals.read, seqs)
            if earlier is not None:
                yield earlier.result()
            earlier = later
        if earlier is not None:
            yield earlier.result()


def sample_positions(settings: FitParams, n_seqs: int, seq_len: int) -> NDArray[np.int64]:
    """The sampled positions of each sequence, ascending, without repeats: (n_seqs, positions_per_seq)."""
    first, last = int(seq_len * settings.position_min), int(seq_len * settings.position_max)
    stream = Stream(settings.seed, "positions")
    return first + np.stack([stream.subset(last - first, settings.positions_per_seq, step=i) for i in range(n_seqs)])


@dataclass
class StreamedResiduals:
    """Residuals captured at each reading: no disk, one forward pass an epoch."""

    backbone: Backbone
    tokens: NDArray[np.uint32]  # (n_seqs, seq_len)
    positions: NDArray[np.int64]  # (n_seqs, positions_per_seq)
    tokens_forwarded: int = 0
    reads_ahead = False  # a forward pass uses the cores that work on the batch before

    @property
    def n_seqs(self) -> int:
        return len(self.tokens)

    @property
    def positions_per_seq(self) -> int:
        return int(self.positions.shape[1])

    @property
    def capture_seqs(self) -> int:
        """Sequences of one forward pass."""
        return max(1, CAPTURE_TOKENS.of(self.backbone.device) // int(self.tokens.shape[1]))

    def read(self, seqs: NDArray[np.int64]) -> Batch:
        parts = []
        for start in range(0, len(seqs), self.capture_seqs):
            chunk = seqs[start : start + self.capture_seqs]
            tokens = torch.from_numpy(self.tokens[chunk].astype(np.int64))
            captured = self.backbone.capture(tokens, torch.from_numpy(self.positions[chunk]))
            parts.append(captured[:, :, 1:].flatten(0, 1))  # layer 0 is the embedding, which no lens reads
            self.tokens_forwarded += tokens.numel()
        return Batch(torch.cat(parts), None)

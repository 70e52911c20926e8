"""The batch, layers and learning rate of each step of a fit: functions of the step alone, so that a fit can resume.

`vocab_scaling` follows the reference recipe for large vocabularies. With s = min(1, sqrt(32,000 / d_vocab)) a step
takes round(s * layers) layers and round(s * positions) positions of a sequence, at least 8 and 12 and at most those of
the settings; from 100,000 tokens on the head's products are bfloat16.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lensmith.process.draws import Stream
from lensmith.settings.sections import FitParams

FULL_VOCAB, LOW_PRECISION_VOCAB = 32_000, 100_000
MIN_LAYERS, MIN_POSITIONS = 8, 12


def scaled_to_vocabulary(settings: FitParams, d_vocab: int, n_layers: int) -> FitParams:
    """The settings as a model of this vocabulary and depth runs them."""
    if not settings.vocab_scaling:
        return settings
    s = min(1.0, math.sqrt(FULL_VOCAB / d_vocab))

    def scaled(full: int, floor: int) -> int:
        return min(full, max(floor, round(s * full)))

    layers = n_layers - 1 if settings.layers_per_step == "all" else settings.layers_per_step
    changes = {
        "layers_per_step": scaled(layers, MIN_LAYERS),
        "positions_per_seq": scaled(settings.positions_per_seq, MIN_POSITIONS),
        "products": "bfloat16" if d_vocab >= LOW_PRECISION_VOCAB else "float32",
    }
    return settings.model_copy(update=changes)


@dataclass(frozen=True)
class Schedule:
    """The steps of one fit of `n_blocks` translators on `n_seqs` sequences; none where nothing is trained."""

    settings: FitParams
    n_seqs: int
    n_blocks: int
    trains: bool = True

    @property
    def batch_seqs(self) -> int:
        return min(self.settings.batch_seqs, self.n_seqs)

    @property
    def steps_per_epoch(self) -> int:
        return self.n_seqs // self.batch_seqs

    @property
    def total_steps(self) -> int:
        return math.ceil(self.settings.epochs * self.steps_per_epoch) if self.trains else 0

    @property
    def layers_per_step(self) -> int:
        layers = self.settings.layers_per_step
        return self.n_blocks if layers == "all" else min(layers, self.n_blocks)

    @property
    def warmup_steps(self) -> int:
        return math.ceil(self.settings.warmup * self.total_steps)

    def learning_rate(self, step: int) -> float:
        """Linear warm-up to `lr`, then a cosine to zero at `total_steps`."""
        if step < self.warmup_steps:
            return self.settings.lr * (step + 1) / self.warmup_steps
        left = max(1, self.total_steps - self.warmup_steps)
        return self.settings.lr * 0.5 * (1 + math.cos(math.pi * (step - self.warmup_steps) / left))

    def batch(self, step: int) -> NDArray[np.int64]:
        """The sequences of a step, ascending. Each epoch draws an order and reads each sequence at most once."""
        epoch, index = divmod(step, self.steps_per_epoch)
        order = Stream(self.settings.seed, "order").permutation(self.n_seqs, step=epoch)
        return np.sort(order[index * self.batch_seqs : (index + 1) * self.batch_seqs])

    def blocks(self, step: int) -> list[int]:
        """The blocks that a step trains, ascending."""
        stream = Stream(self.settings.seed, "layers")
        return [int(block) for block in stream.subset(self.n_blocks, self.layers_per_step, step)]

    def is_judged(self, steps: int) -> bool:
        """Whether the lens is validated after this many steps: every `validate_every`, and after the last one."""
        return steps % self.settings.validate_every == 0 or steps == self.total_steps

"""The tokens that the softmax of a training step runs over.

A step costs 4 d_model FLOP for each token, position and layer: with a real vocabulary, nearly all that it costs. A
sampled step takes the softmax over D and S instead,

    D    the FREQUENT tokens that the training text holds most, and the teacher's likeliest at the positions of the step
    S    DRAWN of the others, anew for each step; the exponential of each counts as that of |others| / |S| tokens

which estimates the sum of exponentials Z and the sum behind e_q without bias. What depends on p stays exact: it is the
teacher's. KL holds log Z, and its gradient divides by Z, so both have a bias: about -Var(Z) / 2 Z^2 for KL, in nats. It
is large where the lens gives many rare tokens probability, and small where D holds nearly all of its probability.
Validation, closed form and all judging use the whole vocabulary.
"""

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lensmith.process.draws import Stream
from lensmith.process.errors import InputError
from lensmith.settings.sections import FitParams
from lensmith.source.head import Head
from lensmith.source.teacher import Teacher

FREQUENT, DRAWN = 2048, 1024
# Tokens from which `vocabulary: auto` samples. In a smaller vocabulary D and S would be too large a part of all tokens.
LARGE_VOCABULARY = 2**14


@dataclass(frozen=True)
class SampledVocabulary:
    """Draws D and S for each step, as a function of the seed, the step and the teacher."""

    frequent: Tensor  # (n,) token ids
    d_vocab: int
    seed: int

    @classmethod
    def of(cls, settings: FitParams, head: Head, tokens: NDArray[np.uint32]) -> Self | None:
        """The vocabulary of a fit on this training text (n_seqs, seq_len); None where its steps use all tokens.

        Raises:
            InputError: `sampled` for a head with a softcap.
        """
        d_vocab = len(head.W_U)
        if settings.vocabulary == "sampled" and head.softcap is not None:
            raise InputError(
                "params.yaml: fit.vocabulary is sampled, but this model caps its logits, and a gradient through a cap "
                "needs all tokens; must be exact or auto. Nothing was fit."
            )
        is_large = d_vocab >= LARGE_VOCABULARY and head.softcap is None
        if settings.vocabulary == "exact" or (settings.vocabulary == "auto" and not is_large):
            return None
        counts = np.bincount(tokens.ravel(), minlength=d_vocab)
        # The lowest id first among equals, on every machine.
        return cls(torch.from_numpy(np.argsort(-counts, kind="stable")[:FREQUENT]), d_vocab, settings.seed)

    def draw(self, teacher: Teacher, step: int) -> tuple[Tensor, Tensor]:
        """Ids of D and S (n,) on the CPU, and log of the number of tokens that each id stands for (n,)."""
        assert teacher.likely is not None
        others = torch.ones(self.d_vocab, dtype=torch.bool)
        others[self.frequent] = False
        others[teacher.likely.flatten().cpu()] = False
        certain, rest = others.logical_not().nonzero()[:, 0], others.nonzero()[:, 0]
        drawn = rest[torch.from_numpy(Stream(self.seed, "vocabulary").subset(len(rest), DRAWN, step))]
        weight = math.log(len(rest) / len(drawn)) if len(drawn) else 0.0
        log_weights = torch.cat([torch.zeros(len(certain)), torch.full((len(drawn),), weight)])
        return torch.cat([certain, drawn]), log_weights

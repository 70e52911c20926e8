"""What a fit takes: its memory, and the plan's rules for large vocabularies (section 15.1).

With s = min(1, sqrt(32,000 / d_vocab)) a step takes round(s * layers) layers and round(s * positions) positions of a
sequence, but not below 8 and 12, nor above what was asked; from 100,000 tokens on the head's products are bfloat16.
"""

import math

from lensmith.settings.sections import FitParams

FULL_VOCAB, LOW_PRECISION_VOCAB = 32_000, 100_000
MIN_LAYERS, MIN_POSITIONS = 8, 12
COPIES = 6  # of a lens in training: itself, its gradient, two moments, the start and the best


def scaled(settings: FitParams, d_vocab: int, n_layers: int) -> FitParams:
    """The settings as a model of this vocabulary and depth runs them."""
    if not settings.vocab_scaling:
        return settings
    s = min(1.0, math.sqrt(FULL_VOCAB / d_vocab))
    layers = n_layers - 1 if settings.layers_per_step == "all" else settings.layers_per_step
    changes = {
        "layers_per_step": _scaled(layers, s, MIN_LAYERS),
        "positions_per_seq": _scaled(settings.positions_per_seq, s, MIN_POSITIONS),
        "products": "bfloat16" if d_vocab >= LOW_PRECISION_VOCAB else "float32",
    }
    return settings.model_copy(update=changes)


def _scaled(asked: int, s: float, floor: int) -> int:
    return min(asked, max(floor, round(s * asked)))


def memory(settings: FitParams, n_layers: int, d_model: int) -> int:
    """Bytes that the fit of a lens holds on its device, fp32, at the largest rank that `auto` picks."""
    rank = d_model if settings.kind == "full" else 256 if settings.rank == "auto" else settings.rank
    lens = (n_layers - 1) * (2 * d_model * min(rank, d_model) + 2 * d_model)
    whitening = n_layers * d_model**2 if settings.coordinates == "whitened" else 0
    return 4 * (COPIES * lens + whitening)

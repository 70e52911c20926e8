"""A small measurement that needs only a model and its lens: the model writes the text.

    gain(layer)  = median over positions of [ KL(final || stronger norm lens) - KL(final || lens) ]
    identity     = max over positions of KL(final || lens at the last layer)
    last_norm    = median over positions of KL(model || norm lens at the last layer, with one temperature)

All in bits. `final` is the head on the last residual; `model` is what the model's own forward pass says.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lensmith.judge import walk
from lensmith.judge.tables import NORMS, TUNED
from lensmith.judge.walk import MEASURED
from lensmith.lens import temperature
from lensmith.lens.divergence import kl_bits
from lensmith.lens.lens import Lens
from lensmith.process.draws import Stream
from lensmith.process.errors import InputError
from lensmith.process.progress import Progress, track
from lensmith.source.backbone import Backbone
from lensmith.source.proof import PROOF_LIMIT_BITS

SEED = 316
POSITIONS = 100  # drawn
SEQUENCES, TOKENS = 8, 24  # of sampled text
IDENTITY_LIMIT_BITS = PROOF_LIMIT_BITS  # what float32 leaves of an identity
LAST_NORM_LIMIT_BITS = 0.05  # the model's own logits may be of bfloat16; gate C asks for the same


class SpotCheck(NamedTuple):
    """What was measured, in bits."""

    gain: dict[int, float]  # by layer
    median_gain: float  # over layers and positions
    identity: float
    last_norm: float

    def fault(self) -> str | None:
        """The first number that is outside its limit or not finite; None where there is none."""
        at_most = (
            ("of the lens from the model's head (identity)", self.identity, IDENTITY_LIMIT_BITS),
            ("of the norm lens from the model (gate C)", self.last_norm, LAST_NORM_LIMIT_BITS),
        )
        for what, bits, limit in at_most:
            if not bits <= limit:  # so that NaN fails
                return f"at the last layer the KL {what} is {bits:.3g} bits, must be at most {limit:g}"
        if not (math.isfinite(self.median_gain) and self.median_gain > 0):
            return f"the median KL that the lens saves is {self.median_gain:+.3g} bits, must be above 0"
        return None

    def lines(self) -> Iterator[str]:
        """What was measured, with units, text and baseline."""
        by_layer = ", ".join(f"{layer}: {gain:+.2f}" for layer, gain in self.gain.items())
        yield (
            "bits of KL to the model that the lens saves, against the stronger of the two norm lenses (the final norm, "
            f"the next block's), median over {POSITIONS} positions of {SEQUENCES} texts that the model wrote: "
            f"{self.median_gain:+.2f} over layers {min(self.gain)}..{max(self.gain)}"
        )
        yield f"by layer {by_layer}"
        yield (
            f"at the last layer the lens is the model's head within {self.identity:.1e} bits (limit "
            f"{IDENTITY_LIMIT_BITS:g}), the norm lens is the model within {self.last_norm:.1e} bits (limit "
            f"{LAST_NORM_LIMIT_BITS:g})"
        )


def measure(backbone: Backbone, lens: Lens) -> SpotCheck:
    """Every layer, at POSITIONS positions.

    Raises:
        InputError: the model has one layer.
    """
    if backbone.n_layers < 2:
        raise InputError("a model of one layer has no middle layer that a lens could read")
    tokens = sample(backbone)
    # resid (POSITIONS, L + 1, d_model) and the model's own logits (POSITIONS, d_vocab), never of a first token.
    every = torch.arange(1, TOKENS, device=tokens.device).expand(SEQUENCES, -1)
    chosen = Stream(SEED, "spot-check/positions").subset(every.numel(), POSITIONS, step=0)
    resid = backbone.capture(tokens, every).flatten(0, 1)[chosen]
    model_logits = backbone.logits(tokens)[:, 1:].flatten(0, 1)[chosen]

    head, last = backbone.head, backbone.n_layers
    readings = [*((name, layer) for layer in lens.layers[:-1] for name in (*NORMS, TUNED)), (TUNED, last)]
    with Progress("verify, readings", POSITIONS * len(readings), "reading") as progress:
        read = walk.read(head, resid, readings, walk.head_reads(head, lens), advance=progress.advance)
    kl = {reading: read[reading].measured[:, MEASURED.index("kl_final_lens_bits")] for reading in readings}
    gains: dict[int, Tensor] = {}  # KL saved at each position, against the norm lens of the smaller median KL: (n,)
    for layer in lens.layers[:-1]:
        stronger = min((kl[norm, layer] for norm in NORMS), key=lambda bits: float(bits.median()))
        gains[layer] = stronger - kl[TUNED, layer]
    final = head.logits(head.norm(resid[:, last], last))
    tau = temperature.fit(final, model_logits.softmax(-1))
    return SpotCheck(
        gain={layer: float(gain.median()) for layer, gain in gains.items()},
        median_gain=float(torch.stack(list(gains.values())).median()),
        identity=float(kl[TUNED, last].max()),
        last_norm=float(kl_bits(model_logits, final / tau).median()),
    )


def sample(backbone: Backbone) -> Tensor:
    """Ids (SEQUENCES, TOKENS) of text that the model writes at temperature 1.

    It begins with the BOS token or, where the model has none, with tokens drawn at random.
    """
    draws = Stream(SEED, "spot-check/text")
    bos = getattr(backbone.tokenizer, "bos_token_id", None)
    first = draws.words(SEQUENCES, step=0) % np.uint64(backbone.d_vocab) if bos is None else [bos] * SEQUENCES
    tokens = torch.as_tensor(np.asarray(first, dtype=np.int64), device=backbone.device)[:, None]
    for step in track(range(1, TOKENS), "verify, text that the model writes", "token"):
        uniform = torch.from_numpy(draws.words(SEQUENCES, step).astype(np.float64) * 2.0**-64).to(backbone.device)
        below = backbone.logits(tokens)[:, -1].double().softmax(-1).cumsum(-1)
        following = torch.searchsorted(below, uniform[:, None] * below[:, -1:], right=True)
        tokens = torch.cat([tokens, following.clamp(max=below.shape[-1] - 1)], 1)
    return tokens

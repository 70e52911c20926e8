"""A small measurement that needs a model and its lens and nothing else: the text is sampled from the model itself.

    gain(row)  = median over positions of [ KL(final || stronger norm lens) - KL(final || lens) ]       in bits
    identity   = max over positions of KL(final || lens) after the last block
    gate C     = median over positions of KL(model || norm lens after the last block, with one temperature)

`final` is the head on the last residual; `model` is what the model's own forward pass says.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lensmith.judge import temperature
from lensmith.lens.divergence import kl_bits
from lensmith.lens.lens import Lens
from lensmith.process.draws import Stream
from lensmith.process.errors import InputError
from lensmith.source.backbone import Backbone

SEED = 316
LAYERS, POSITIONS = 10, 100  # drawn, the plan's numbers
SEQUENCES, TOKENS = 8, 24  # of sampled text


class SpotCheck(NamedTuple):
    """What was measured, in bits."""

    gain: dict[int, float]  # by row
    median_gain: float  # over rows and positions
    identity: float
    gate_c: float


def measure(backbone: Backbone, lens: Lens) -> SpotCheck:
    """LAYERS rows below the last one (all where there are fewer) and the last one, at POSITIONS positions."""
    if backbone.n_layers < 2:
        raise InputError("a model of one block has no middle layer that a lens could read")
    tokens = sample(backbone)
    resid, own = _positions(backbone, tokens)
    head, last = backbone.head, backbone.n_layers
    final = head.logits(head.norm(resid[:, last], last))
    drawn = Stream(SEED, "spot-check/rows").subset(last - 1, min(LAYERS, last - 1), step=0) + 1
    gains = {int(row): _gain(backbone, lens, resid[:, row], int(row), final) for row in drawn}
    tau = temperature.fit(lambda: [final], temperature.expected_logit(own, final))
    return SpotCheck(
        gain={row: float(gain.median()) for row, gain in gains.items()},
        median_gain=float(torch.stack(list(gains.values())).median()),
        identity=float(kl_bits(final, lens.logits(head, resid[:, last], last)).max()),
        gate_c=float(kl_bits(own, final / tau).median()),
    )


def sample(backbone: Backbone) -> Tensor:
    """Ids (SEQUENCES, TOKENS) of text that the model writes at temperature 1.

    It begins with the BOS token or, where the model has none, with tokens drawn at random.
    """
    draws = Stream(SEED, "spot-check/text")
    bos = getattr(backbone.tokenizer, "bos_token_id", None)
    first = draws.words(SEQUENCES, step=0) % np.uint64(backbone.d_vocab) if bos is None else [bos] * SEQUENCES
    tokens = torch.as_tensor(np.asarray(first, dtype=np.int64), device=backbone.device)[:, None]
    for step in range(1, TOKENS):
        uniform = torch.from_numpy(draws.words(SEQUENCES, step).astype(np.float64) * 2.0**-64).to(backbone.device)
        below = backbone.logits(tokens)[:, -1].double().softmax(-1).cumsum(-1)
        following = torch.searchsorted(below, uniform[:, None] * below[:, -1:], right=True)
        tokens = torch.cat([tokens, following.clamp(max=below.shape[-1] - 1)], 1)
    return tokens


def _positions(backbone: Backbone, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """resid (POSITIONS, L + 1, d_model) and the model's own logits (POSITIONS, d_vocab), never of a first token."""
    every = torch.arange(1, TOKENS, device=tokens.device).expand(SEQUENCES, -1)
    chosen = Stream(SEED, "spot-check/positions").subset(every.numel(), POSITIONS, step=0)
    resid = backbone.capture(tokens, every).flatten(0, 1)[chosen]
    return resid, backbone.logits(tokens)[:, 1:].flatten(0, 1)[chosen]


def _gain(backbone: Backbone, lens: Lens, resid: Tensor, row: int, final: Tensor) -> Tensor:
    """KL saved at each position of one row, against the norm lens of the smaller median KL: (n,)."""
    head = backbone.head
    final_norm, next_input = (
        kl_bits(final, head.logits(head.norm(resid, row, kind))) for kind in ("final", "next_input")
    )
    norm = min(final_norm, next_input, key=lambda kl: float(kl.median()))
    return norm - kl_bits(final, lens.logits(head, resid, row))

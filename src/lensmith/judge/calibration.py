"""The norm lens against the model's own logits, and with the one temperature that suits it best.

At the last block the norm lens must be the model. That is asked of the model's own forward pass, not of our copy of
its head, so that a softcap or scale that our head lacks would show as bits here.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lensmith.judge import temperature
from lensmith.judge.measure import Bench
from lensmith.lens import divergence

ENOUGH = 1000  # positions that a temperature is fitted on, where there are as many


@dataclass(frozen=True)
class LastLayer:
    """The norm lens at the last block against the model's own logits: means over positions, and by sequence."""

    kl_lens_final_bits: float
    kl_final_lens_bits: float
    top1_agree: float
    temperature: float
    kl_lens_final_after_temp_bits: float
    kl_final_lens_after_temp_bits_by_seq: tuple[float, ...]
    positions: int


@torch.inference_mode()
def last_layer(bench: Bench, tokens: Tensor, positions: Tensor) -> LastLayer:
    """Measure it on sequences (n, seq_len) at positions (p,), a sequence at a time."""

    def lens_logits() -> Iterator[Tensor]:
        for resid in kept:
            yield from (bench.final(part) for part in resid.split(bench.chunk))

    def pairs() -> Iterator[tuple[Tensor, Tensor]]:
        for sequence, resid in zip(tokens, kept, strict=True):
            own = bench.backbone.logits(sequence[None])[0, positions.to(bench.backbone.device)]
            yield own, torch.cat([bench.final(part) for part in resid.split(bench.chunk)])

    kept = [bench.backbone.capture(sequence[None], positions[None])[0] for sequence in tokens]
    expected = torch.cat([temperature.expected_logit(own, z) for own, z in pairs()])
    tau = temperature.fit(lens_logits, expected)
    # One line for each sequence: KL both ways, agreement, and both ways again after the temperature.
    table = np.array([[_mean(v) for v in _compare(own, z, tau)] for own, z in pairs()])
    reverse, forward, agree, reverse_after, _ = table.mean(axis=0).tolist()
    by_seq = tuple(table[:, 4].tolist())
    return LastLayer(reverse, forward, agree, tau, reverse_after, by_seq, len(expected))


def _compare(own: Tensor, z: Tensor, tau: float) -> Iterator[Tensor]:
    yield divergence.kl_bits(z, own)
    yield divergence.kl_bits(own, z)
    yield (own.argmax(-1) == z.argmax(-1)).float()
    yield divergence.kl_bits(z / tau, own)
    yield divergence.kl_bits(own, z / tau)


def _mean(values: Tensor) -> float:
    return float(values.double().mean())


@torch.inference_mode()
def norm_temperatures(bench: Bench, lens: str, tokens: Tensor, positions: Tensor) -> list[float]:
    """The best temperature of a norm lens at each row 0..L, over sequences (n, seq_len) at positions (p,)."""
    kept = [bench.backbone.capture(sequence[None], positions[None])[0] for sequence in tokens]
    parts = [part for resid in kept for part in resid.split(bench.chunk)]
    return [_row_temperature(bench, lens, row, parts) for row in range(bench.n_layers + 1)]


def _row_temperature(bench: Bench, lens: str, row: int, parts: Sequence[Tensor]) -> float:
    def logits() -> Iterator[Tensor]:
        return (bench.decode(lens, row, part) for part in parts)

    expected = [temperature.expected_logit(bench.final(part), z) for part, z in zip(parts, logits(), strict=True)]
    return temperature.fit(logits, torch.cat(expected))

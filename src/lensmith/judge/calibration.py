"""The norm lens against the model's own logits, and with the one temperature that suits it best.

At the last block the norm lens must be the model. That is asked of the model's own forward pass, not of our copy of
its head, so that a softcap or scale that our head lacks would show as bits here.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from lensmith.judge import temperature
from lensmith.judge.bench import Bench
from lensmith.judge.facts import LastLayer, LogitTransform
from lensmith.lens import divergence
from lensmith.process.progress import track

ENOUGH = 1000  # positions that a temperature is fitted on, where there are as many
WARN_BITS = 0.25  # the reference recipe warns above this


@torch.inference_mode()
def capture(bench: Bench, tokens: Tensor, positions: Tensor) -> list[Tensor]:
    """The residual stream of each of some sequences (n, seq_len) at its positions (n, p): n of (p, L + 1, d_model)."""
    return [bench.backbone.capture(sequence, places)[0] for sequence, places in _pairs(tokens, positions)]


@torch.inference_mode()
def last_layer(bench: Bench, tokens: Tensor, positions: Tensor, kept: Sequence[Tensor]) -> LastLayer:
    """The norm lens after the last block on sequences (n, seq_len) at positions (n, p); `kept` is their capture."""
    # A forward pass costs more than these logits: at 1000 positions they are a gigabyte for the largest vocabulary.
    own = [bench.backbone.logits(s)[0, p[0].to(bench.backbone.device)] for s, p in _pairs(tokens, positions)]

    def lens_logits() -> Iterator[Tensor]:
        return (torch.cat([bench.final(part) for part in resid.split(bench.chunk)]) for resid in kept)

    expected = [temperature.expected_logit(model, z) for model, z in zip(own, lens_logits(), strict=True)]
    tau = temperature.fit(lens_logits, torch.cat(expected))
    # One line for each sequence, in the order of `_compare`.
    pairs = zip(own, lens_logits(), strict=True)
    table = np.array([[float(v.double().mean()) for v in _compare(model, z, tau)] for model, z in pairs])
    reverse, forward, agree, p_lens, p_model, reverse_after, _ = table.mean(axis=0).tolist()
    transform = bench.backbone.head.transform
    return LastLayer(
        kl_to_final_bits=reverse,
        top1_agree=agree,
        p_top1_lens=p_lens,
        p_top1_model=p_model,
        temp_est=tau,
        temp_at_bound=temperature.at_bound(tau),
        cfg_transform=LogitTransform(scale=transform.scale, softcap=transform.softcap),
        kl_after_temp_bits=reverse_after,
        kl_final_lens_bits=forward,
        kl_final_lens_after_temp_bits_by_seq=tuple(table[:, -1].tolist()),
        n_positions=positions.numel(),
        warn_high_last_layer_kl=not reverse <= WARN_BITS,
    )


def _pairs(tokens: Tensor, positions: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
    return zip(tokens.split(1), positions.split(1), strict=True)


def _compare(own: Tensor, z: Tensor, tau: float) -> Iterator[Tensor]:
    yield divergence.kl_bits(z, own)
    yield divergence.kl_bits(own, z)
    yield (own.argmax(-1) == z.argmax(-1)).float()
    yield z.softmax(-1).amax(-1)
    yield own.softmax(-1).amax(-1)
    yield divergence.kl_bits(z / tau, own)
    yield divergence.kl_bits(own, z / tau)


@torch.inference_mode()
def norm_temperatures(bench: Bench, lens: str, kept: Sequence[Tensor]) -> list[float]:
    """The best temperature of a norm lens at each layer 0..L, over captures (p, L + 1, d_model)."""
    parts = torch.cat(list(kept)).split(bench.chunk)
    layers = track(range(bench.n_layers + 1), "sweep, temperatures", "layer")
    return [_temperature(bench, lens, layer, parts) for layer in layers]


def _temperature(bench: Bench, lens: str, layer: int, parts: Sequence[Tensor]) -> float:
    def decoded() -> Iterator[Tensor]:
        return (bench.decode(lens, layer, part) for part in parts)

    # One piece is few enough to keep; more are made anew at each step.
    logits = decoded if len(parts) > 1 else list(decoded()).copy
    expected = [temperature.expected_logit(bench.final(part), z) for part, z in zip(parts, logits(), strict=True)]
    return temperature.fit(logits, torch.cat(expected))

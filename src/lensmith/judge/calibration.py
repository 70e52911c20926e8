"""The norm lens against the model's own logits, and with the one temperature that suits it best.

At the last block the norm lens must be the model. It is compared with the model's own forward pass, not with our copy
of the head, so a softcap or scale that our copy lacks would show as bits here.
"""

import numpy as np
import torch
from torch import Tensor

from lensmith.judge.bench import Bench
from lensmith.judge.facts import LastLayer, LogitTransform
from lensmith.lens import divergence, temperature
from lensmith.process.progress import track

ENOUGH = 1000  # positions that a temperature is fit on, or all where there are fewer
LOGITS = 2**26  # most that are kept: with a vocabulary above 64k, of fewer positions
WARN_BITS = 0.25  # the reference recipe warns above this


def n_seqs(d_vocab: int, positions_per_seq: int) -> int:
    """Number of sequences that a temperature is fit on."""
    wanted, room = -(-ENOUGH // positions_per_seq), LOGITS // (d_vocab * positions_per_seq)
    return max(1, min(wanted, room))


@torch.inference_mode()
def last_layer(bench: Bench, tokens: Tensor, positions: Tensor, resid: Tensor) -> LastLayer:
    """The norm lens after the last block against the model's own logits.

    Args:
        tokens: (n, seq_len). positions: (n, p). resid: (n, p, L + 1, d_model), captured there.
    """
    forwards = track(list(zip(tokens, positions, strict=True)), "sweep, last layer", "sequence")
    model = torch.stack(
        [bench.backbone.logits(sequence[None])[0, places.to(bench.backbone.device)] for sequence, places in forwards]
    )
    lens = torch.stack([bench.final(part) for part in resid])
    tau = temperature.fit(lens.flatten(0, 1), model.flatten(0, 1).softmax(-1))
    table = np.array([compared(*pair, tau) for pair in zip(model, lens, strict=True)])
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


def compared(model: Tensor, lens: Tensor, tau: float) -> list[float]:
    """KL(lens || model), KL(model || lens), agreement, both top probabilities, and both KLs after tau: means."""
    scaled = lens / tau
    values = (
        divergence.kl_bits(lens, model),
        divergence.kl_bits(model, lens),
        (model.argmax(-1) == lens.argmax(-1)).float(),
        lens.softmax(-1).amax(-1),
        model.softmax(-1).amax(-1),
        divergence.kl_bits(scaled, model),
        divergence.kl_bits(model, scaled),
    )
    return [float(value.double().mean()) for value in values]


@torch.inference_mode()
def norm_temperatures(bench: Bench, lens: str, resid: Tensor) -> list[float]:
    """The best temperature of a norm lens at each layer 0..L, over residual streams (n, p, L + 1, d_model)."""
    resid = resid.flatten(0, 1)
    p = bench.final(resid).softmax(-1)
    taus = [1.0]
    for layer in track(range(bench.n_layers, -1, -1), "sweep, temperatures", "layer"):
        logits = bench.backbone.head.logits(*bench.head_reads(lens, layer, resid))
        taus.append(temperature.fit(logits, p, start=taus[-1]))  # neighbours are alike
        del logits  # before there are those of the next layer
    return taus[:0:-1]

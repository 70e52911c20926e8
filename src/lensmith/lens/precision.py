"""The head of a model in another precision: the same weights, rounded, and what that costs in bits."""

from dataclasses import replace

import torch

from lensmith.lens.divergence import kl_bits
from lensmith.lens.provenance import RoundedHead
from lensmith.source.backbone import Backbone
from lensmith.source.head import Head

DTYPES = (torch.bfloat16, torch.float16)  # that models are loaded in


def rounded(head: Head, dtype: torch.dtype) -> Head:
    """A head with W_U rounded to `dtype`."""
    return replace(head, W_U=head.W_U.to(dtype).float())


def cost_bits(backbone: Backbone, other: Head) -> float:
    """Mean KL in bits of the model's final distribution from that of another head, at the positions of the proof."""
    with torch.inference_mode():
        ours, theirs = (
            head.logits(head.norm(backbone.proof.resid, backbone.n_layers)) for head in (backbone.head, other)
        )
    return float(kl_bits(ours, theirs).mean())


def rounded_heads(backbone: Backbone) -> dict[str, RoundedHead]:
    """The model's head in each of DTYPES but its own, by name; without those in which a weight is infinite.

    From weights that were rounded nobody can tell what they were before, so they are recorded where they are known.
    """
    heads = {dtype: _record(backbone, dtype) for dtype in DTYPES if dtype != backbone.dtype}
    return {str(dtype).removeprefix("torch."): head for dtype, head in heads.items() if head is not None}


def _record(backbone: Backbone, dtype: torch.dtype) -> RoundedHead | None:
    """The record of one rounded head, which is not kept: it is as large as the model's."""
    head = rounded(backbone.head, dtype)
    if not head.W_U.isfinite().all():
        return None
    return RoundedHead(w_u_sha256=head.fingerprint()["w_u_sha256"], kl_bits=cost_bits(backbone, head))

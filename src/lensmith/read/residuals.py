"""A captured residual seen through a lens: `lensmith.logits`."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lensmith.lens.lens import Lens
from lensmith.process.errors import InputError
from lensmith.release.pretrained import StreamedLens
from lensmith.source.backbone import Backbone
from lensmith.source.borrowed import borrowed


def logits(lens: Lens | StreamedLens, model: PreTrainedModel | Backbone, resid: Tensor, layer: int) -> Tensor:
    """`lensmith.logits`, which says what the arguments and errors are."""
    if not isinstance(resid, Tensor):
        raise InputError(
            f"logits: resid is a {type(resid).__name__}, must be a tensor: some blocks return it in a tuple"
        )
    if resid.shape[-1:] != (lens.d_model,) or not resid.is_floating_point():
        raise InputError(
            f"logits: resid is {resid.dtype} of shape {tuple(resid.shape)}, must be (..., {lens.d_model}): numbers of "
            "the residual stream after a block"
        )
    if not 1 <= layer <= lens.n_layers:
        raise InputError(
            f"logits: layer is {layer}, must be in 1..{lens.n_layers}; layer i is the stream after block i - 1"
        )
    with borrowed(model) as backbone:
        lens.check_head(backbone.head)
        flat = resid.to(backbone.device).reshape(-1, lens.d_model)
        read = lens.to(backbone.device).logits(backbone.head, flat, layer)
    return read.unflatten(0, resid.shape[:-1]) if resid.dim() > 1 else torch.squeeze(read, 0)

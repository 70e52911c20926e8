"""The measure that all contenders of `quality_per_second` share.

It needs torch and transformers and none of our code, so it runs unchanged in the environment of tuned-lens. The model's
own forward pass gives, at each held-out position, the final logits and the residual after every block. A lens is a
function of residuals (n, d_model) and their layer to logits (n, d_vocab).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel

Decode = Callable[[Tensor, int], Tensor]
BATCH_SEQS = 8


@torch.no_grad()
def kl_bits(model: PreTrainedModel, tokens: Tensor, positions: Tensor, decode: Decode) -> list[float]:
    """Mean KL(final || lens) in bits at layers 1..L-1, in float32.

    Args:
        tokens: (n_seqs, seq_len) ids.
        positions: (n_seqs, n) indices into seq_len.
        decode: the lens.
    """
    total = torch.zeros(model.config.num_hidden_layers - 1, dtype=torch.float64)
    for text, at in zip(tokens.split(BATCH_SEQS), positions.split(BATCH_SEQS), strict=True):
        output = model(input_ids=text, output_hidden_states=True, use_cache=False)
        rows = torch.arange(len(text)).unsqueeze(1)
        log_p = output.logits[rows, at].float().log_softmax(-1).flatten(0, 1)
        for layer in range(1, len(total) + 1):
            resid = output.hidden_states[layer][rows, at].float().flatten(0, 1)
            log_q = decode(resid, layer).float().log_softmax(-1)
            total[layer - 1] += (log_p.exp() * (log_p - log_q)).sum().double()
    return (total / positions.numel() / math.log(2)).tolist()

"""The proof that a head is the model's own, measured whenever a Backbone is made.

On the residual after the last block, the head must give the model's own logits:

    max over positions of KL(model ‖ head(resid_post[L - 1])) ≤ 1e-4 bits, in fp32

A missed softcap, scale, bias or gain fails it, and nothing is computed with a head that fails.
"""

import math
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lensmith.process.errors import NumericError
from lensmith.source.configuration import max_length
from lensmith.source.discovery import REFUSED, Anatomy, n_embeddings
from lensmith.source.head import Head
from lensmith.source.watching import hidden_out

PROOF_LIMIT_BITS = 1e-4
PROOF_POSITIONS = 64

# The distance of residuals of two forward passes over the same tokens, relative to their length: they are equal up to
# the order of sums. Mixture-of-experts kernels on a GPU add in any order.
_DRIFT_LIMIT = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 5e-2}

PROOF_TEXT = (
    "When the ferry from the mainland was late, the keeper of the lighthouse counted 127 steps down to the harbour, "
    "opened the wooden shed, and wrote the time in his book: 18:40, wind from the north-west, three boats at sea. "
    'He had done so every evening since 1987. "If nobody reads it," his daughter once asked, "then why do you '
    'write it?" He answered that a record is not kept for its readers; it is kept so that it can be read.'
)


@dataclass(frozen=True)
class Proof:
    """How near the head on the last layer comes to the model."""

    max_kl_bits: float  # over positions
    resid: Tensor  # (n_positions, d_model), of the last layer

    @property
    def n_positions(self) -> int:
        return len(self.resid)


def prove(model: PreTrainedModel, anatomy: Anatomy, head: Head, tokens: Tensor, captured: Tensor) -> Proof:
    """Compare the head on captured residuals with the model's own logits, in fp32, at every position of `tokens`.

    Args:
        tokens: (batch, pos).
        captured: (batch, pos, d_model), the residuals that a capture of these tokens gave for the last layer.

    Raises:
        NumericError: the distributions differ, or two forward passes give different residuals.
    """
    resid, logits = _fp32_tail(model, anatomy, tokens)
    # The median distance, relative to the length of the residual.
    distances = (captured.float() - resid.float()).norm(dim=-1) / resid.float().norm(dim=-1).clamp_min(1e-30)
    drift, limit = float(distances.median()), _DRIFT_LIMIT.get(model.dtype, 5e-2)
    # In fp32 the captured residuals themselves are proven; in other dtypes a second pass may differ by rounding.
    last = captured if model.dtype == torch.float32 else resid
    with torch.inference_mode():
        head_logits = head.logits(head.norm(last, len(anatomy.blocks), "final"))
    kl = math.inf
    if head_logits.shape == logits.shape:  # in fp64, which adds no rounding of its own
        log_p, log_q = logits.double().log_softmax(-1), head_logits.double().log_softmax(-1)
        kl = float((log_p.exp() * (log_p - log_q)).sum(-1).max() / math.log(2))
    # `not <=`: NaN fails.
    if not (drift <= limit and kl <= PROOF_LIMIT_BITS):
        raise NumericError(
            f"{type(model).__name__}: the head on the last residual is {kl:.3g} bits from the model's own logits "
            f"(max KL over {tokens.numel()} positions in float32), limit {PROOF_LIMIT_BITS} bits; captured residuals "
            f"drift by {drift:.3g}, limit {limit}. Final norm {anatomy.final_norm_name} "
            f"({type(anatomy.final_norm).__name__}); logit transforms tried: {', '.join(anatomy.tried)}; "
            f"taken: {anatomy.transform.source}. {REFUSED}"
        )
    return Proof(max_kl_bits=kl, resid=last.flatten(0, 1))


def _fp32_tail(model: PreTrainedModel, anatomy: Anatomy, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Last resid_post and logits of the model's own forward pass, its final norm and unembedding run in fp32.

    Logits in bf16 are rounded to 8 bits, too coarse to tell a right head from a slightly wrong one. So the model's code
    runs on fp32 weights from the final norm on. A model in fp32 runs as it is.
    """
    swapped = {
        f"{path}.{name}": parameter.detach().float()
        for path, module in model.named_modules()
        if module is anatomy.final_norm or module is anatomy.unembed
        for name, parameter in module.named_parameters()
    }
    last: list[Tensor] = []

    def store(_module: nn.Module, _args: tuple[Any, ...], output: object) -> None:
        resid = hidden_out(output)
        assert resid is not None  # `dissect` saw it
        last.append(resid.clone())

    def upcast(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        # nanochat calls its final norm on the embedding too: the tail begins after the last block.
        return (args[0].float(), *args[1:]) if last else args

    with ExitStack() as hooks, torch.inference_mode():
        hooks.callback(anatomy.blocks[-1].register_forward_hook(store).remove)
        hooks.callback(anatomy.final_norm.register_forward_pre_hook(upcast).remove)
        inputs = {"input_ids": tokens.to(model.device), "use_cache": False}
        # Tied weights stay apart: the embedding must keep the model's dtype.
        output = functional_call(model, swapped, args=(), kwargs=inputs, tie_weights=False)
    return last[0], output.logits.float()


def proof_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> Tensor:
    """(batch, pos) of at least PROOF_POSITIONS ids: a text, or without a tokenizer ids spread over the vocabulary."""
    length = min(PROOF_POSITIONS, max_length(model.config) or PROOF_POSITIONS)
    n_seqs = math.ceil(PROOF_POSITIONS / length)
    if tokenizer is None:
        ids = [int(i) for i in torch.linspace(0, n_embeddings(model) - 1, n_seqs * length)]
    else:
        # A tokenizer may have more tokens than the model has embeddings.
        ids = [i % n_embeddings(model) for i in tokenizer(PROOF_TEXT)["input_ids"]]
        ids = (ids * math.ceil(n_seqs * length / len(ids)))[: n_seqs * length]
    return torch.tensor(ids).view(n_seqs, length)

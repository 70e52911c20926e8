"""Distances between the distributions that two sets of logits stand for. Bits live here and nowhere else.

The fit minimises KL(p || q), p the model's final distribution and q the lens's. With y (d_model) the input of the
head, a = scale / tau and logits z = a (y W_U^T + b), everything that depends on p collapses into d_model + 2 numbers

    e_p = p W_U (d_model),    b_p = <p, b>,    H(p):
    KL = lse(z) - a (<y, e_p> + b_p) - H(p)
    dKL/dy = a (e_q - e_p)        dKL/dlog_tau = a (<y, e_p - e_q> + b_p - b_q)

so one teacher serves every layer, and a layer costs product, softmax in place, product. A head with a softcap is not
linear in y: there p itself is kept, and autograd takes the gradient.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lensmith.source.backbone import Head

BITS = 1 / math.log(2)  # bits in a nat


def kl_bits(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """KL(p || q) in bits of the distributions that two tensors of logits (..., d_vocab) stand for: (...).

    Zero where they are equal, non-negative within float32 rounding. A token that p excludes (-inf) costs nothing.

    Raises:
        ValueError: the shapes differ. Broadcasting would return a plausible number.
    """
    if p_logits.shape != q_logits.shape:
        raise ValueError(f"kl_bits: p_logits is {tuple(p_logits.shape)} but q_logits is {tuple(q_logits.shape)}")
    log_p, log_q = _log_softmax(p_logits), _log_softmax(q_logits)
    p = log_p.exp()
    return torch.where(p > 0, p * (log_p - log_q), 0.0).sum(-1) * BITS


def entropy_bits(logits: Tensor) -> Tensor:
    """Entropy in bits of softmax(logits), (..., d_vocab) to (...)."""
    log_p = _log_softmax(logits)
    p = log_p.exp()
    return -torch.where(p > 0, p * log_p, 0.0).sum(-1) * BITS


def token_rank(logits: Tensor, token_ids: Tensor) -> Tensor:
    """How many tokens have a larger logit than `token_ids` (...): 0 is the top of (..., d_vocab)."""
    own = logits.gather(-1, token_ids[..., None])
    return (logits > own).sum(-1)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of two vectors (..., n): (...)."""
    return torch.nn.functional.cosine_similarity(_wide(a), _wide(b), dim=-1)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _log_softmax(logits: Tensor) -> Tensor:
    return _wide(logits).log_softmax(-1)


@dataclass(frozen=True)
class Teacher:
    """The model's final distribution p at n positions, in the form that `kl_gradient` needs."""

    entropy: Tensor  # (n,) nats
    e_p: Tensor | None  # (n, d_model), linear heads
    b_p: Tensor | None  # (n,), linear heads
    p: Tensor | None  # (n, d_vocab), other heads

    @classmethod
    def of(cls, head: Head, y_final: Tensor) -> "Teacher":
        """From the input of the head at the last block, y_final (n, d_model)."""
        log_p = _log_softmax(head.logits(y_final))
        p = log_p.exp()
        entropy = -torch.where(p > 0, p * log_p, 0.0).sum(-1)
        if head.softcap is not None:
            return cls(entropy, None, None, p)
        b_p = p.new_zeros(len(p)) if head.bias is None else p @ head.bias
        return cls(entropy, p @ head.W_U, b_p, None)


def kl_gradient(head: Head, teacher: Teacher, y: Tensor, log_tau: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """KL(p || q) of one layer in nats, and its gradient.

    Args:
        y: (n, d_model), the translated input of the head.
        log_tau: (), log of the layer's temperature.

    Returns:
        KL (n,) in nats; dKL/dy (n, d_model); dKL/dlog_tau (n,).
    """
    if head.softcap is not None:
        return _kl_autograd(head, teacher, y, log_tau)
    assert teacher.e_p is not None and teacher.b_p is not None
    a = head.scale * torch.exp(-log_tau)
    q = y @ head.W_U.T if head.bias is None else torch.addmm(head.bias, y, head.W_U.T)
    q.mul_(a)
    top = q.amax(-1, keepdim=True)
    q.sub_(top).exp_()  # in place: fresh (n, d_vocab) memory costs more than the arithmetic
    total = q.sum(-1, keepdim=True)
    e_q = q @ head.W_U / total
    b_q = 0.0 if head.bias is None else q @ head.bias / total.squeeze(-1)
    agreement = (y * teacher.e_p).sum(-1) + teacher.b_p
    kl = (top + total.log()).squeeze(-1) - a * agreement - teacher.entropy
    return kl, a * (e_q - teacher.e_p), a * (agreement - (y * e_q).sum(-1) - b_q)


def _kl_autograd(head: Head, teacher: Teacher, y: Tensor, log_tau: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    assert teacher.p is not None
    with torch.enable_grad():
        leaf = y.detach().requires_grad_()
        row_tau = log_tau.detach().expand(len(y)).clone().requires_grad_()
        log_q = _log_softmax(head.logits(leaf, row_tau))
        kl = -(teacher.p * log_q).sum(-1) - teacher.entropy
        d_y, d_log_tau = torch.autograd.grad(kl.sum(), (leaf, row_tau))
    return kl.detach(), d_y, d_log_tau

"""Distances between the distributions of two sets of logits. BITS is the one factor from nats to bits.

The fit minimises KL(p || q), p the model's final distribution and q the lens's. With y (d_model) the input of the
head, a = scale / tau and logits z = a (y W_U^T + b), everything that depends on p collapses into d_model + 2 numbers

    e_p = p W_U (d_model),    b_p = <p, b>,    H(p):
    KL = lse(z) - a (<y, e_p> + b_p) - H(p)
    dKL/dy = a (e_q - e_p)        dKL/dlog_tau = a (<y, e_p - e_q> + b_p - b_q)

so one teacher serves every layer (`source.teacher`), and a layer costs a product, a softmax in place and a product. A
softcap, z' = cap tanh(z / cap), is not linear in y: p is computed once a chunk for all layers. With j = 1 - (z'/cap)^2

    dKL/dy = a ((q - p) * j) W_U        dKL/dlog_tau = -<y, dKL/dy> - a <(q - p) * j, b>
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lensmith.source.head import Head
from lensmith.source.teacher import Teacher

BITS = 1 / math.log(2)  # bits in a nat


def kl_bits(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """KL(p || q) in bits of the distributions of two tensors of logits (..., d_vocab): (...).

    Zero where they are equal, non-negative within float32 rounding. A token that p excludes (-inf) costs nothing.

    Raises:
        ValueError: the shapes differ. Broadcasting would return a plausible number.
    """
    if p_logits.shape != q_logits.shape:
        raise ValueError(f"kl_bits: p_logits is {tuple(p_logits.shape)} but q_logits is {tuple(q_logits.shape)}")
    log_p, log_q = (_wide(logits).log_softmax(-1) for logits in (p_logits, q_logits))
    p = log_p.exp()
    return torch.where(p > 0, p * (log_p - log_q), 0.0).sum(-1) * BITS


def entropy_bits(logits: Tensor) -> Tensor:
    """Entropy in bits of softmax(logits), (..., d_vocab) to (...)."""
    nats: Tensor = torch.special.entr(_wide(logits).softmax(-1)).sum(-1)
    return nats * BITS


def token_rank(logits: Tensor, token_ids: Tensor) -> Tensor:
    """How many tokens have a larger logit than `token_ids` (...): 0 is the top of (..., d_vocab)."""
    return (logits > logits.gather(-1, token_ids[..., None])).sum(-1)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of two vectors (..., n): (...)."""
    return torch.nn.functional.cosine_similarity(_wide(a), _wide(b), dim=-1)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


class LinearKL:
    """KL(p || q) in nats and its gradient for the stacked inputs of a head, a chunk of positions at a time.

    The logits of a chunk are the only tensor with d_vocab columns. Their buffer is reused: on a CPU fresh pages cost
    more than the arithmetic. Products run in `products` (float32, or bfloat16 where the hardware has it); the softmax
    and all sums are fp32, or fp64 where the head is.
    """

    def __init__(
        self,
        head: Head,
        products: torch.dtype | None = None,
        budget: int | None = None,
        log_weights: Tensor | None = None,
    ) -> None:
        """
        Args:
            budget: bytes of a chunk's logits; None for what suits the device.
            log_weights: (d_vocab,), log of how often each token's exponential counts; None for once.
        """
        self.head, self._log_weights = head, log_weights
        self._W = head.W_U if products in {None, torch.float32} else head.W_U.to(products)
        self.chunk = head.positions_at_once(budget)
        self._buffers: list[Tensor] = []

    def restricted_to(self, tokens: Tensor, log_weights: Tensor) -> "LinearKL":
        """The same with the softmax over some tokens (n,), each counted exp(log_weights) times."""
        tokens, log_weights = tokens.to(self.head.W_U.device), log_weights.to(self.head.W_U)
        bias = None if self.head.bias is None else self.head.bias[tokens]
        part = replace(self.head, W_U=self.head.W_U[tokens], bias=bias)
        return LinearKL(part, self._W.dtype, log_weights=log_weights)

    def __call__(self, teacher: Teacher, y: Tensor, log_tau: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Value and gradient.

        Args:
            teacher: p at n positions, the same for every layer.
            y: (layers, n, d_model), inputs of the head.
            log_tau: (layers,), log of each layer's temperature.

        Returns:
            KL (layers, n) in nats; dKL/dy (layers, n, d_model); dKL/dlog_tau (layers, n).
        """
        kl, d_log_tau, d_y = y.new_empty(y.shape[:2]), y.new_empty(y.shape[:2]), torch.empty_like(y)
        chunk = self._linear if self.head.softcap is None else self._capped
        a = self.head.scale * torch.exp(-log_tau)
        for part, p in self._parts(teacher, y.shape[1]):
            for layer in range(len(y)):
                kl[layer, part], d_y[layer, part], d_log_tau[layer, part] = chunk(p, y[layer, part], a[layer])
        return kl, d_y, d_log_tau

    def value(self, teacher: Teacher, y: Tensor, log_tau: Tensor) -> Tensor:
        """KL (layers, n) in nats, for half the cost of value and gradient. Arguments as of a call."""
        kl = y.new_empty(y.shape[:2])
        a = self.head.scale * torch.exp(-log_tau)
        for part, p in self._parts(teacher, y.shape[1]):
            for layer in range(len(y)):
                z = self._logits(y[layer, part], a[layer])
                z = self.head.transform.cap_(z)
                agreement = p.agreement(y[layer, part], a[layer]) if p.p is None else p.capped(z)
                kl[layer, part] = _exp(z)[1] - agreement - p.entropy
        return kl

    def _parts(self, teacher: Teacher, n: int) -> Iterator[tuple[slice, "_Target"]]:
        for start in range(0, n, self.chunk):
            part = slice(start, min(start + self.chunk, n))
            yield part, _Target.of(self.head, teacher.part(part))

    def _linear(self, p: "_Target", y: Tensor, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        agreement = p.agreement(y, a)
        q, lse, total = _exp(self._logits(y, a))
        # The division after the product saves a pass over the logits.
        e_q = self._back(q) / total
        b_q = 0.0 if self.head.bias is None else (q @ self.head.bias) / total.squeeze(-1)
        return lse - agreement - p.entropy, a * (e_q - p.e_p), agreement - a * ((y * e_q).sum(-1) + b_q)

    def _capped(self, p: "_Target", y: Tensor, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        assert p.p is not None
        z = self.head.transform.cap_(self._logits(y, a))
        slope = self.head.transform.slope(z, out=self._buffer(1, len(z)))
        agreement = p.capped(z)
        q, lse, total = _exp(z)
        d_z = q.div_(total).sub_(p.p).mul_(slope)
        d_y = a * self._back(d_z)
        by_bias = 0.0 if self.head.bias is None else a * (d_z @ self.head.bias)
        return lse - agreement - p.entropy, d_y, -(y * d_y).sum(-1) - by_bias

    def _logits(self, y: Tensor, a: Tensor) -> Tensor:
        """a (y W_U^T + b), in a buffer. a multiplies y, which is smaller than the logits."""
        z, scaled = self._buffer(0, len(y)), y * a
        if self._W.dtype == y.dtype:
            torch.mm(scaled, self._W.T, out=z)
        else:
            z.copy_(_product(scaled.to(self._W.dtype), self._W.T))
        if self.head.bias is not None:
            z.add_(a * self.head.bias)
        return z if self._log_weights is None else z.add_(self._log_weights)

    def _back(self, q: Tensor) -> Tensor:
        """q W_U."""
        return q @ self._W if self._W.dtype == q.dtype else _product(q.to(self._W.dtype), self._W)

    def _buffer(self, i: int, n: int) -> Tensor:
        """The first n rows of the i-th buffer: (n, d_vocab)."""
        while len(self._buffers) <= i:
            self._buffers.append(self.head.W_U.new_empty(self.chunk, len(self.head.W_U)))
        return self._buffers[i][:n]


@dataclass(frozen=True)
class _Target:
    """p of one chunk: e_p and b_p for a linear head, p itself for a capped one."""

    entropy: Tensor  # (n,) nats
    e_p: Tensor  # (n, d_model)
    b_p: Tensor  # (n,)
    p: Tensor | None  # (n, d_vocab)

    @classmethod
    def of(cls, head: Head, teacher: Teacher) -> "_Target":
        if teacher.y is None:
            return cls(teacher.entropy, teacher.e_p, teacher.b_p, None)
        p = _wide(head.logits(teacher.y)).softmax(-1)
        none = p.new_empty(0)
        return cls(torch.special.entr(p).sum(-1), none, none, p)

    def agreement(self, y: Tensor, a: Tensor) -> Tensor:
        """<p, z> of a linear head, without its logits."""
        return a * ((y * self.e_p).sum(-1) + self.b_p)

    def capped(self, z: Tensor) -> Tensor:
        """<p, z> of capped logits z."""
        assert self.p is not None
        return (self.p * z).sum(-1)


def _exp(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """exp(z - max) in place, with logsumexp(z) (n,) and the sum (n, 1) that makes it a distribution."""
    top = z.amax(-1, keepdim=True)
    total = z.sub_(top).exp_().sum(-1, keepdim=True)
    return z, (top + total.log()).squeeze(-1), total


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a b of low-precision tensors in fp32; a CPU rounds it to their precision first."""
    return torch.mm(a, b, out_dtype=torch.float32) if a.is_cuda else torch.mm(a, b).float()

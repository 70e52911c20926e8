"""One scalar temperature for logits that have none: of a rung, and of the norm lens in its fair form.

KL(p || softmax(b z)) is convex in the inverse temperature b, with first and second derivative, a position at a time,

    E_q[z] - E_p[z]        Var_q[z]        q = softmax(b z)

so a few guarded Newton steps find it. E_p[z] is computed once. A step needs the lens's logits z alone, which are kept:
computing them costs more than a step.
"""

import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from lensmith.lens.tiles import LOWEST
from lensmith.source.head import Head
from lensmith.source.teacher import Teacher

COLDEST, HOTTEST = 0.05, 20.0
STEPS = 12
BESIDE = 1.1  # a temperature within this factor of a bound is at it: STEPS may not bring the search nearer
CLOSE = 1e-4  # relative change of the inverse temperature at which the search ends
LOGITS = 2**18  # in a piece, so that all passes over it stay in the cache


def at_bound(tau: float) -> bool:
    """Whether a search ended at a bound: the best temperature may lie beyond it."""
    return not COLDEST * BESIDE < tau < HOTTEST / BESIDE


def fit(z: Tensor, p: Tensor, start: float = 1.0) -> float:
    """The temperature tau in 0.05..20 that brings softmax(z / tau) closest to p on average.

    Args:
        z: (n, d_vocab), logits.
        p: (n, d_vocab), probabilities. A token that p excludes counts nothing.
        start: where the search begins.
    """
    parts = zip(z.split(_size(z)), p.split(_size(z)), strict=True)
    pieces = [(part, torch.linalg.vecdot(chances, _from_top(part))) for part, chances in parts]

    def sums(b: float) -> Iterator[tuple[float, float]]:
        for part, of_p in pieces:
            below = _from_top(part)
            yield _sums((b * below).softmax(-1), below, of_p)

    return search(sums, start)


def fit_head_input(head: Head, y: Tensor, teacher: Teacher, p: Tensor | None) -> float:
    """The temperature in 0.05..20 with the lowest KL at inputs y (n, d_model) of the head.

    Logits at temperature one are computed once. A head with a softcap needs p (n, d_vocab): the curvature behind it is
    the Fisher information of q.
    """
    dot, u = torch.linalg.vecdot, head.scale * torch.nn.functional.linear(y, head.W_U, head.bias)
    of_teacher = p if p is not None else head.scale * (dot(y, teacher.e_p) + teacher.b_p)  # p, or E_p[u]
    pieces = list(zip(u.split(_size(u)), of_teacher.split(_size(u)), strict=True))

    def sums(b: float) -> Iterator[tuple[float, float]]:
        for part, of_p in pieces:
            z = head.transform.cap_(part * b)
            gain = part if p is None else part * head.transform.slope(z)  # of each logit, by b
            yield _sums(z.softmax(-1), gain, of_p if p is None else dot(of_p, gain))

    return search(sums)


def _size(logits: Tensor) -> int:
    """Rows of a piece."""
    return max(1, LOGITS // logits.shape[1])


def _sums(q: Tensor, gain: Tensor, of_p: Tensor) -> tuple[float, float]:
    """Sums over rows of E_q - E_p and of Var_q of `gain` (n, d_vocab); `of_p` (n,) is E_p. Overwrites q."""
    of_q = torch.linalg.vecdot(q, gain)
    return float((of_q - of_p).sum()), float((torch.linalg.vecdot(q.mul_(gain), gain) - of_q**2).sum())


def search(sums: Callable[[float], Iterable[tuple[float, float]]], start: float = 1.0) -> float:
    """The temperature in 0.05..20 with the lowest KL.

    Args:
        sums: its first and second derivative at an inverse temperature, each a sum over some positions.
        start: where the search begins.
    """
    low, high = 1 / HOTTEST, 1 / COLDEST
    b = 1 / start
    for _ in range(STEPS):
        slope, curve = (math.fsum(of_pieces) for of_pieces in zip(*sums(b), strict=True))
        step = b - slope / curve if curve > 0 else low
        if abs(step - b) <= CLOSE * b:
            return 1 / step
        low, high = (low, b) if slope > 0 else (b, high)
        # A Newton step out of the bracket overshot: bisect in the logarithm instead.
        b = step if low < step < high else (low * high) ** 0.5
    return 1 / b


def _from_top(z: Tensor) -> Tensor:
    """Logits less the largest one of each position, finite where a token is excluded."""
    return (z.float() - z.amax(-1, keepdim=True)).clamp_(min=LOWEST)

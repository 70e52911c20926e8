"""One scalar temperature for logits that have none: of a rung, and of the norm lens in its fair form.

KL(p || softmax(b z)) is convex in the inverse temperature b, with first and second derivative, a position at a time,

    E_q[z] - E_p[z]        Var_q[z]        q = softmax(b z)

so a few guarded Newton steps find it. E_p[z] is computed once. A step needs the lens's logits z alone, which are kept:
computing them costs more than a step.
"""

from collections.abc import Callable

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
    dot, size = torch.linalg.vecdot, max(1, LOGITS // z.shape[1])
    pieces = [(part, dot(chances, _from_top(part))) for part, chances in zip(z.split(size), p.split(size), strict=True)]

    def derivatives(b: float) -> tuple[float, float]:
        slope, curve = 0.0, 0.0
        for part, expected in pieces:
            below = _from_top(part)
            e = torch.exp(b * below)
            total = e.sum(-1).double()
            mean = dot(e, below) / total
            slope += float((mean - expected).sum())
            curve += float((dot(e, below.square_()) / total - mean.square()).sum())
        return slope / len(z), curve / len(z)

    return search(derivatives, start)


def fit_head_input(head: Head, y: Tensor, teacher: Teacher, p: Tensor | None) -> float:
    """The temperature in 0.05..20 with the lowest KL at inputs y (n, d_model) of the head.

    Logits at temperature one are computed once. A head with a softcap needs p (n, d_vocab): the curvature behind it is
    the Fisher information of q.
    """
    dot, u = torch.linalg.vecdot, head.scale * torch.nn.functional.linear(y, head.W_U, head.bias)
    of_teacher = p if p is not None else head.scale * (dot(y, teacher.e_p) + teacher.b_p)  # p, or E_p[u]
    size = max(1, LOGITS // u.shape[1])
    pieces = list(zip(u.split(size), of_teacher.split(size), strict=True))

    def derivatives(b: float) -> tuple[float, float]:
        slope = curve = 0.0
        for part, of_p in pieces:
            z = head.transform.cap_(part * b)
            gain = part if p is None else part * head.transform.slope(z)  # of each logit, by b
            q = z.softmax(-1)
            of_q = dot(q, gain)
            slope += float((of_q - (of_p if p is None else dot(of_p, gain))).sum())
            curve += float((dot(q.mul_(gain), gain) - of_q**2).sum())
        return slope / len(u), curve / len(u)

    return search(derivatives)


def search(derivatives: Callable[[float], tuple[float, float]], start: float = 1.0) -> float:
    """The temperature in 0.05..20 with the lowest KL, by its first and second derivative at an inverse temperature."""
    low, high = 1 / HOTTEST, 1 / COLDEST
    b = 1 / start
    for _ in range(STEPS):
        slope, curve = derivatives(b)
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

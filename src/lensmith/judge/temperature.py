"""One scalar temperature for a lens that has none: the fair form of the norm lens.

KL(p || softmax(b z)) is convex in the inverse temperature b, with first and second derivative, a position at a time,

    E_q[z] - E_p[z]        Var_q[z]        q = softmax(b z)

so a few guarded Newton steps find it. E_p[z] is computed once; a step needs the lens's logits z alone, which are
decoded again each time instead of kept: n positions of them may be gigabytes.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

COLDEST, HOTTEST = 0.05, 20.0
STEPS = 12
BESIDE = 1.1  # as near to a bound as the search comes in its steps
CLOSE = 1e-4  # relative change of the inverse temperature at which the search ends


def at_bound(tau: float) -> bool:
    """Whether a search ended where it may not go on: the best temperature may lie beyond."""
    return not COLDEST * BESIDE < tau < HOTTEST / BESIDE


def expected_logit(p_logits: Tensor, z: Tensor) -> Tensor:
    """E_p[z] of p = softmax(p_logits), both (n, d_vocab): (n,). A token that p excludes counts nothing."""
    p = p_logits.float().softmax(-1)
    return torch.where(p > 0, p * z, 0.0).sum(-1)


def fit(chunks: Callable[[], Iterable[Tensor]], expected: Tensor) -> float:
    """The temperature tau in 0.05..20 that brings softmax(z / tau) closest to p on average.

    Args:
        chunks: gives z in pieces (n_i, d_vocab), the same each time it is called.
        expected: E_p[z] at all positions, (n,).
    """
    low, high = 1 / HOTTEST, 1 / COLDEST
    b = 1.0
    for _ in range(STEPS):
        slope = curve = 0.0
        start = 0
        for z in chunks():
            q = (b * z.float()).softmax(-1)
            mean = torch.where(q > 0, q * z, 0.0).sum(-1)
            spread = torch.where(q > 0, q * (z - mean[:, None]) ** 2, 0.0).sum(-1)
            slope += float((mean - expected[start : start + len(z)]).double().sum())
            curve += float(spread.double().sum())
            start += len(z)
        slope, curve = slope / start, curve / start
        step = b - slope / curve if curve > 0 else low
        if abs(step - b) <= CLOSE * b:
            return 1 / step
        low, high = (low, b) if slope > 0 else (b, high)
        # Outside what is known to hold the minimum Newton overshot: halve in the logarithm instead.
        b = step if low < step < high else (low * high) ** 0.5
    return 1 / b

"""Percentile bootstrap intervals, where whole clusters are drawn.

A draw with replacement of clusters is a row of counts: how often each unit (a prompt, a sequence) occurs in it. A
statistic of the resample is then the statistic of the units under these counts, so that no resample is ever built.
Counts depend on the stream of draws and the clusters alone: equal input gives equal intervals.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from lensmith.draws import Stream

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]
Statistic = Callable[[Floats, Counts], Floats]

CHUNK = 2_000_000  # cells of a block of resamples: bounds memory, does not change any number


def draw_counts(clusters: Sequence[object], samples: int, draws: Stream) -> Counts:
    """How often each unit occurs in each resample.

    Args:
        clusters: the cluster of each unit, (n,). A resample draws as many clusters as there are.

    Returns:
        (samples, n).
    """
    names, member = np.unique(np.asarray([str(cluster) for cluster in clusters]), return_inverse=True)
    size = len(names)
    if size == 0:
        return np.zeros((samples, 0), dtype=np.int64)
    # A remainder favours small numbers by size / 2**64: nothing. The words themselves are the same in every NumPy.
    drawn = (draws.words(samples * size, 0) % np.uint64(size)).astype(np.int64).reshape(samples, size)
    flat = (drawn + size * np.arange(samples)[:, None]).ravel()
    counts = np.bincount(flat, minlength=samples * size).reshape(samples, size)
    return counts[:, member]


def mean(values: Floats, counts: Counts) -> Floats:
    """The mean of values (n,) under each row of counts (samples, n); NaN where a row is empty."""
    with np.errstate(invalid="ignore"):
        return np.asarray((counts @ values) / counts.sum(axis=1), dtype=np.float64)


def median(values: Floats, counts: Counts) -> Floats:
    """The median of values (n,) under each row of counts (samples, n), as of the values written out so often."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    step = max(1, CHUNK // max(len(values), 1))
    blocks = [_median(ordered, counts[i : i + step, order]) for i in range(0, len(counts), step)]
    return np.concatenate(blocks) if blocks else np.empty(0)


def _median(ordered: Floats, counts: Counts) -> Floats:
    reached = counts.cumsum(axis=1)
    total = reached[:, -1]
    lower, upper = (ordered[(reached > place[:, None]).argmax(axis=1)] for place in ((total - 1) // 2, total // 2))
    return np.where(total > 0, (lower + upper) / 2, np.nan)


def interval(statistic: Statistic, values: Floats, counts: Counts, confidence: float) -> tuple[float, float]:
    """The percentile interval of a statistic of finite values; (NaN, NaN) where no resample holds any."""
    resampled = statistic(values, counts)
    resampled = resampled[np.isfinite(resampled)]
    if resampled.size == 0:
        return float("nan"), float("nan")
    tail = (1 - confidence) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return float(low), float(high)

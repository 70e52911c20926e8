"""Percentile bootstrap intervals, where whole clusters are drawn.

A draw with replacement of clusters is a row of counts: how often each cluster occurs in it. A statistic of the resample
is then the statistic of the units (prompts, positions) under the counts of their clusters, so that no resample is ever
built. Counts depend on the stream of draws and the clusters alone: equal input gives equal intervals.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lensmith.judge.judgement import Estimate
from lensmith.judge.tables import Floats
from lensmith.process.draws import Stream

CHUNK = 2_000_000  # cells of a block of resamples: bounds memory, does not change any number


@dataclass(frozen=True)
class Draws:
    """Resamples of n units in whole clusters."""

    counts: NDArray[np.int64]  # (samples, clusters): how often each cluster occurs in each resample
    member: NDArray[np.int64]  # (n,): the cluster of each unit

    @classmethod
    def once(cls, n: int) -> "Draws":
        """Every unit once: the sample itself."""
        return cls(np.ones((1, 1), dtype=np.int64), np.zeros(n, dtype=np.int64))

    def only(self, units: slice | NDArray[np.bool_]) -> "Draws":
        """The same resamples of some of the units."""
        return Draws(self.counts, self.member[units])


Statistic = Callable[[Floats, Draws], Floats]


def draw(clusters: Sequence[object], samples: int, stream: Stream) -> Draws:
    """Resamples of as many clusters as there are; `clusters` names the cluster of each unit, (n,)."""
    names, member = np.unique(np.asarray([str(cluster) for cluster in clusters]), return_inverse=True)
    size = len(names)
    if size == 0:
        return Draws(np.zeros((samples, 0), dtype=np.int64), np.zeros(0, dtype=np.int64))
    # A remainder favours small numbers by size / 2**64: nothing. The words themselves are the same in every NumPy.
    drawn = (stream.words(samples * size, 0) % np.uint64(size)).astype(np.int64).reshape(samples, size)
    flat = (drawn + size * np.arange(samples)[:, None]).ravel()
    return Draws(np.bincount(flat, minlength=samples * size).reshape(samples, size), member.astype(np.int64))


def mean(values: Floats, draws: Draws) -> Floats:
    """The mean of values (n,) in each resample, (samples,); NaN where a resample is empty."""
    clusters = draws.counts.shape[1]
    total = draws.counts @ np.bincount(draws.member, weights=values, minlength=clusters)
    with np.errstate(invalid="ignore"):
        return np.asarray(total / (draws.counts @ np.bincount(draws.member, minlength=clusters)), dtype=np.float64)


def median(values: Floats, draws: Draws) -> Floats:
    """The median of values (n,) in each resample, as of the values written out so often; NaN where it is empty."""
    if not len(values):
        return np.full(len(draws.counts), np.nan)
    order = np.argsort(values, kind="stable")
    ordered, member = values[order], draws.member[order]
    medians = np.full(len(draws.counts), np.nan)
    step = max(1, CHUNK // len(values))
    for start in range(0, len(medians), step):
        reached = draws.counts[start : start + step, member].cumsum(axis=1)
        total = reached[:, -1]
        lower, upper = (ordered[(reached > rank[:, None]).argmax(axis=1)] for rank in ((total - 1) // 2, total // 2))
        medians[start : start + step] = np.where(total > 0, (lower + upper) / 2, np.nan)
    return medians


def ratio(values: Floats, draws: Draws, centre: Statistic = mean) -> Floats:
    """Centre of the first column of values (n, 2) over that of the second, in each resample; NaN where that is 0."""
    whole = centre(values[:, 1], draws)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(whole == 0, np.nan, centre(values[:, 0], draws) / whole)


def interval(statistic: Statistic, values: Floats, draws: Draws, confidence: float) -> tuple[float, float]:
    """The percentile interval of a statistic of finite values; (NaN, NaN) where no resample holds any."""
    resampled = statistic(values, draws)
    resampled = resampled[np.isfinite(resampled)]
    if resampled.size == 0:
        return float("nan"), float("nan")
    tail = (1 - confidence) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return float(low), float(high)


def estimate(statistic: Statistic, values: Floats, draws: Draws, confidence: float) -> Estimate:
    """A statistic of values (n, ...) with its interval; MISSING numbers where there are none or one is not finite."""
    # inf passes a median unseen, so finiteness is settled before anything is computed.
    if not len(values) or not np.isfinite(values).all():
        return Estimate(value=None, lo=None, hi=None, units=len(values))
    value = float(statistic(values, Draws.once(len(values)))[0])
    lo, hi = interval(statistic, values, draws, confidence)
    return Estimate(value=value, lo=lo, hi=hi, units=len(values))

"""The plan's KPIs (section 6), each with its interval.

Everything compares the tuned lens with the *stronger* of two norm baselines: the model's final norm at every layer, and
the next block's input norm. W_U was trained against the final norm's gain, so that the other baseline is often nearly
uniform, and beating it says little. Which one is stronger is settled once for each KPI, on all units, and reported.

Signs: a positive number is in favour of the tuned lens. "Rank k" counts from 1: the answer is within rank k where its
token_rank is below k.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lensmith.draws import Stream
from lensmith.edge.params import GatesParams
from lensmith.judge import bootstrap
from lensmith.judge.tables import LENSES, NORMS, TUNED, Curves, Floats, Measured
from lensmith.lens.depth import depth_row, scaled_layers

Centre = Callable[[Floats], Any]  # np.mean or np.median

KL = "kl_final_lens_bits"
RANKS = (10, 5, 1)
# Below this many templates a resample of templates says more about their number than about the prompts.
MIN_CLUSTERS = 8


@dataclass(frozen=True)
class Kpi:
    """A number, its interval, and how many units it was computed from. NaN where there is none."""

    value: float
    lo: float
    hi: float
    units: int

    @property
    def finite(self) -> bool:
        return bool(np.isfinite([self.value, self.lo, self.hi]).all())


@dataclass(frozen=True)
class Earliness:
    """How much earlier the tuned lens has the answer within rank k, prompt by prompt."""

    baseline: str
    shift: Floats  # layers, (n,): first row under the baseline minus first row under the tuned lens
    reached: NDArray[np.bool_]  # (n,): prompts where at least one of the two gets there
    first: dict[str, Floats]  # lens -> first row, L + 1 where it never does


@dataclass(frozen=True)
class Book:
    """All KPIs of one model; `facts` holds what has no interval: baselines, rows, counts."""

    measured: Measured
    limits: GatesParams

    @cached_property
    def clusters(self) -> tuple[str, ...]:
        """The unit of resampling of each prompt: its template, or itself where there are few templates."""
        templates = tuple(f"{row['domain']}\n{row['template']}" for row in self.measured.prompts)
        return templates if len(set(templates)) >= MIN_CLUSTERS else self.measured.suite.units

    @cached_property
    def aligned(self) -> NDArray[np.bool_]:
        """Prompts whose answer has a first token, (n,)."""
        return np.array([row["aligned"] == "1" for row in self.measured.prompts], dtype=bool)

    @cached_property
    def _suite_counts(self) -> bootstrap.Counts:
        return self._draws("bootstrap-suite", self.clusters)

    @cached_property
    def _heldout_counts(self) -> bootstrap.Counts:
        return self._draws("bootstrap-heldout", self.measured.heldout.units)

    def _draws(self, stream: str, clusters: Sequence[object]) -> bootstrap.Counts:
        return bootstrap.draw_counts(clusters, self.limits.bootstrap_samples, Stream(self.limits.seed, stream))

    def _kpi(self, statistic: bootstrap.Statistic, values: Floats, counts: bootstrap.Counts) -> Kpi:
        # inf passes a median unseen, so finiteness is settled before anything is computed.
        if values.size == 0 or not np.isfinite(values).all():
            return Kpi(np.nan, np.nan, np.nan, len(values))
        value = statistic(values, np.ones((1, len(values)), dtype=np.int64))[0]
        return Kpi(float(value), *bootstrap.interval(statistic, values, counts, self.limits.confidence), len(values))

    def delta_kl(self, percent: int) -> Kpi:
        """Median over the suite's prompts of KL(final || norm) - KL(final || tuned), bits."""
        return self._kpi(bootstrap.median, self._delta(self.measured.suite, percent, np.median), self._suite_counts)

    def heldout_delta_kl(self, percent: int) -> Kpi:
        """Mean of the same over held-out positions."""
        return self._kpi(bootstrap.mean, self._delta(self.measured.heldout, percent, np.mean), self._heldout_counts)

    def _delta(self, curves: Curves, percent: int, centre: Centre) -> Floats:
        row = depth_row(self.measured.n_layers, percent)
        return curves.at(stronger(curves, row, centre), KL)[:, row] - curves.at(TUNED, KL)[:, row]

    def heldout_mean(self, lens: str, quantity: str, row: int) -> Kpi:
        """Mean of any quantity over held-out positions at one row."""
        return self._kpi(bootstrap.mean, self.measured.heldout.at(lens, quantity)[:, row], self._heldout_counts)

    def heldout_kl(self, lens: str, percent: int) -> float:
        """Mean KL(final || lens) over held-out positions, bits."""
        return _mean(self.measured.heldout.at(lens, KL)[:, depth_row(self.measured.n_layers, percent)])

    def heldout_kl_mean(self, lens: str) -> float:
        """The same over all blocks but the last, where every lens is the model itself."""
        return _mean(self.measured.heldout.at(lens, KL)[:, 1 : max(self.measured.n_layers, 2)])

    def earliness(self, k: int) -> Earliness:
        """First rows within rank k, against the norm baseline that gets there earlier on average."""
        suite, never = self.measured.suite, self.measured.n_layers + 1
        ranks = {lens: suite.at(lens, "answer_token_rank")[self.aligned] for lens in LENSES}
        first = {lens: first_rows(ranks[lens], k) for lens in LENSES}
        baseline = min(NORMS, key=lambda lens: _centre(first[lens], np.mean))
        shift = first[baseline] - first[TUNED]
        reached = (first[baseline] < never) | (first[TUNED] < never)
        return Earliness(baseline, shift, reached | ~np.isfinite(shift), first)  # a missing rank must be seen

    def earliness_shift(self, k: int) -> Kpi:
        """Median over prompts, in layers; prompts that get there under neither lens are left out."""
        early = self.earliness(k)
        return self._kpi(bootstrap.median, early.shift[early.reached], self._reached_counts(early))

    def earliness_share(self, k: int, layers: float) -> Kpi:
        """Share of these prompts whose shift is at least `layers`."""
        shift = (early := self.earliness(k)).shift[early.reached]
        hits = np.where(np.isfinite(shift), (shift >= layers).astype(np.float64), np.nan)
        return self._kpi(bootstrap.mean, hits, self._reached_counts(early))

    def _reached_counts(self, early: Earliness) -> bootstrap.Counts:
        return self._suite_counts[:, self.aligned][:, early.reached]

    def coverage_gain(self) -> tuple[str, Kpi]:
        """Share of (prompt, block) where the answer is at rank 1, tuned minus the better norm baseline."""
        suite = self.measured.suite
        top = {lens: _share_at_top(suite.at(lens, "answer_token_rank")[self.aligned]) for lens in LENSES}
        baseline = min(NORMS, key=lambda lens: _centre(-top[lens], np.mean))
        return baseline, self._kpi(bootstrap.mean, top[TUNED] - top[baseline], self._suite_counts[:, self.aligned])

    def last_layer_kl(self) -> Kpi:
        """KL(model || norm lens at the last block after one scalar temperature), bits."""
        by_seq = self.measured.run["last_layer_consistency"]["kl_final_lens_after_temp_bits_by_seq"]
        values = np.array([np.nan if v is None else v for v in by_seq], dtype=np.float64)
        return self._kpi(bootstrap.mean, values, self._draws("bootstrap-last-layer", range(len(values))))

    def identity_kl(self) -> Kpi:
        """The largest KL(final || tuned) at the last block, over suite and held-out text. An exact number."""
        last = [np.ravel(c.at(TUNED, KL)[:, -1]) for c in (self.measured.heldout, self.measured.suite)]
        joined = np.concatenate(last)
        value = float(joined.max()) if joined.size and np.isfinite(joined).all() else float("nan")
        return Kpi(value, value, value, len(joined))

    def earliness_limit(self, k: int) -> float:
        """The plan's limit in layers, scaled to this model's depth."""
        limit = {10: self.limits.earliness_le_10_layers, 5: self.limits.earliness_le_5_layers}[k]
        return scaled_layers(limit, self.measured.n_layers)


def stronger(curves: Curves, row: int, centre: Centre) -> str:
    """The norm baseline with the lower KL to the model at a row; the final norm where they are equal."""
    return min(NORMS, key=lambda lens: _centre(curves.at(lens, KL)[:, row], centre))


def _centre(values: Floats, centre: Centre) -> float:
    # NaN compares false with everything: a baseline without numbers would stand for the stronger one.
    return float(centre(values)) if values.size and np.isfinite(values).all() else float("inf")


def first_rows(ranks: Floats, k: int) -> Floats:
    """The first row from 1 on where the answer is within rank k: (n, L + 1) to (n,); L + 1 where it never is.

    NaN where a rank is missing. Row 0 is left out: the tuned lens has none there.
    """
    blocks = ranks[:, 1:]
    within = blocks < k
    first = np.where(within.any(axis=1), within.argmax(axis=1) + 1.0, ranks.shape[1])
    return np.where(np.isfinite(blocks).all(axis=1), first, np.nan)


def _share_at_top(ranks: Floats) -> Floats:
    blocks = ranks[:, 1:]
    return np.where(np.isfinite(blocks).all(axis=1), (blocks < 1).mean(axis=1), np.nan)


def _mean(values: Floats) -> float:
    return float(values.mean()) if values.size and np.isfinite(values).all() else float("nan")

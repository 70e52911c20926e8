"""The KPIs of the reference recipe, each with its interval, over the suite's prompts and over held-out positions.

Everything compares the tuned lens with baselines, most often with the *stronger* of two norm lenses: the model's final
norm at every layer, and the next block's input norm. W_U was trained against the final norm's gain, so that the other
is often nearly uniform, and beating it says little. Which one is stronger is settled once for each KPI, on all units,
and reported. On held-out text "the answer" is the model's own most likely token.

Signs: a positive number is in favour of the tuned lens. "Rank k" counts from 1: the answer is within rank k where its
token_rank is below k.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lensmith.judge import bootstrap
from lensmith.judge.bootstrap import Draws, Statistic
from lensmith.judge.judgement import MISSING, Estimate
from lensmith.judge.rows import Curves, Measured
from lensmith.judge.tables import NORMS, RANKS, TUNED, Floats
from lensmith.lens.depth import PERCENTILES, depth_layer
from lensmith.process.draws import Stream
from lensmith.settings.sections import GatesParams

Centre = Callable[[Floats], Any]  # np.mean or np.median

KL = "kl_final_lens_bits"
# Below this many templates a resample of templates says more about their number than about the prompts.
MIN_CLUSTERS = 8


@dataclass(frozen=True)
class Earliness:
    """How much earlier the tuned lens has the answer within rank k, unit by unit."""

    baseline: str
    shift: Floats  # layers, (n,): first row under the baseline minus first row under the tuned lens
    reached: NDArray[np.bool_]  # (n,): units where at least one of the two gets there
    first: Mapping[str, Floats]  # lens -> first row, L + 1 where it never does


@dataclass(frozen=True)
class Units:
    """What was measured of n prompts, or of n held-out positions, by lens."""

    n_layers: int
    confidence: float
    draws: Draws  # of all n
    kl: Mapping[str, Mapping[int, Floats]]  # percent of depth -> KL(final || lens) in bits, (n,)
    answered: NDArray[np.bool_]  # (n,): has an answer; the two below are of those alone
    first: Mapping[str, Mapping[int, Floats]]  # k -> first row within rank k, L + 1 where never
    share_at_top: Mapping[str, Floats]  # share of blocks that have the answer at rank 1

    def delta(self, percent: int, baselines: Sequence[str], centre: Centre) -> tuple[str, Floats]:
        """The strongest of some baselines at a depth, and its KL minus that of the tuned lens."""
        strongest = min(baselines, key=lambda lens: _centre(self.kl[lens][percent], centre))
        return strongest, self.kl[strongest][percent] - self.kl[TUNED][percent]

    def median_delta_kl(self, percent: int, baselines: Sequence[str] = NORMS) -> Estimate:
        """Median over units of KL(final || baseline) - KL(final || tuned), bits."""
        return self._kpi(bootstrap.median, self.delta(percent, baselines, np.median)[1], self.draws)

    def mean_delta_kl(
        self, percent: int, baselines: Sequence[str] = NORMS, kept: NDArray[np.bool_] | None = None
    ) -> Estimate:
        """Mean of the same, over all units or over some. The baseline is the strongest on those it is taken over."""
        if kept is None:
            return self._kpi(bootstrap.mean, self.delta(percent, baselines, np.mean)[1], self.draws)
        strongest = min(baselines, key=lambda lens: _centre(self.kl[lens][percent][kept], np.mean))
        values = (self.kl[strongest][percent] - self.kl[TUNED][percent])[kept]
        return self._kpi(bootstrap.mean, values, self.draws.only(kept))

    def earliness(self, k: int, baselines: Sequence[str] = NORMS) -> Earliness:
        """First rows within rank k, against the baseline that gets there earlier on average."""
        first = {lens: by_rank[k] for lens, by_rank in self.first.items()}
        baseline = min(baselines, key=lambda lens: _centre(first[lens], np.mean))
        shift = first[baseline] - first[TUNED]
        reached = np.minimum(first[baseline], first[TUNED]) <= self.n_layers
        return Earliness(baseline, shift, reached | ~np.isfinite(shift), first)  # a missing rank must be seen

    def earliness_shift(self, k: int, baselines: Sequence[str] = NORMS) -> Estimate:
        """Median over units, in layers; units that get there under neither lens are left out."""
        early = self.earliness(k, baselines)
        return self._kpi(bootstrap.median, early.shift[early.reached], self._reached(early))

    def earliness_share(self, k: int, layers: float, baselines: Sequence[str] = NORMS) -> Estimate:
        """Share of these units whose shift is at least `layers`."""
        shift = (early := self.earliness(k, baselines)).shift[early.reached]
        hits = np.where(np.isfinite(shift), (shift >= layers).astype(np.float64), np.nan)
        return self._kpi(bootstrap.mean, hits, self._reached(early))

    def coverage_gain(self, baselines: Sequence[str] = NORMS) -> tuple[str, Estimate]:
        """Share of (unit, block) where the answer is at rank 1, tuned minus the best baseline."""
        baseline = min(baselines, key=lambda lens: _centre(-self.share_at_top[lens], np.mean))
        gain = self.share_at_top[TUNED] - self.share_at_top[baseline]
        return baseline, self._kpi(bootstrap.mean, gain, self.draws.only(self.answered))

    def _reached(self, early: Earliness) -> Draws:
        return self.draws.only(self.answered).only(early.reached)

    def _kpi(self, statistic: Statistic, values: Floats, draws: Draws) -> Estimate:
        return bootstrap.estimate(statistic, values, draws, self.confidence)


@dataclass(frozen=True)
class Book:
    """Everything about one model that KPIs are computed from."""

    measured: Measured
    limits: GatesParams

    @cached_property
    def templates(self) -> tuple[str, ...]:
        """The template of each prompt."""
        return tuple(f"{row['domain']}\n{row['template']}" for row in self.measured.prompts)

    @property
    def clusters(self) -> tuple[str, ...]:
        """The unit of resampling of each prompt: its template, or itself where there are few templates."""
        return self.templates if len(set(self.templates)) >= MIN_CLUSTERS else self.measured.suite.units

    @cached_property
    def aligned(self) -> NDArray[np.bool_]:
        """Prompts whose answer has a first token, (n,)."""
        return np.array([row["aligned"] == "1" for row in self.measured.prompts], dtype=bool)

    @cached_property
    def suite(self) -> Units:
        curves = self.measured.suite
        ranks = {lens: curves.at(lens, "answer_token_rank")[self.aligned] for lens in curves.lenses}
        rows = {percent: depth_layer(self.measured.n_layers, percent) for percent in PERCENTILES}
        return Units(
            self.measured.n_layers,
            self.limits.confidence,
            self.draw("bootstrap-suite", self.clusters),
            {lens: {p: curves.at(lens, KL)[:, row] for p, row in rows.items()} for lens in curves.lenses},
            self.aligned,
            {lens: {k: first_rows(ranks[lens], k) for k in RANKS} for lens in curves.lenses},
            {lens: _share_at_top(ranks[lens]) for lens in curves.lenses},
        )

    @cached_property
    def heldout(self) -> Units:
        found = self.measured.positions
        lenses = found.values
        return Units(
            self.measured.n_layers,
            self.limits.confidence,
            self.draw("bootstrap-heldout", self.blocks(found.seq)),
            {lens: {p: found.at(lens, f"{KL}_{p}") for p in PERCENTILES} for lens in lenses},
            np.ones(len(found.seq), dtype=bool),
            {lens: {k: found.at(lens, f"first_rank_le_{k}") for k in RANKS} for lens in lenses},
            {lens: found.at(lens, "rank1_share") for lens in lenses},
        )

    @property
    def block_seqs(self) -> int:
        """Neighbouring sequences that are drawn together: as many as a document of the mean length is long."""
        return self.measured.run.heldout.block_seqs

    def blocks(self, seq: NDArray[np.int64]) -> list[int]:
        """The block of each sequence number."""
        return list((seq // self.block_seqs).tolist())

    def draw(self, stream: str, clusters: Sequence[object]) -> Draws:
        return bootstrap.draw(clusters, self.limits.bootstrap_samples, Stream(self.limits.seed, stream))

    def heldout_mean(self, lens: str, quantity: str, row: int) -> Estimate:
        """Mean of any quantity over held-out positions at one row."""
        values = self.measured.heldout.at(lens, quantity)[:, row]
        return bootstrap.estimate(bootstrap.mean, values, self._heldout_draws, self.limits.confidence)

    @cached_property
    def _heldout_draws(self) -> Draws:
        """The resamples of `heldout`, here of sequences."""
        return self.draw("bootstrap-heldout", self.blocks(np.array(self.measured.heldout.units, dtype=np.int64)))

    def heldout_kl(self, lens: str, percent: int) -> Estimate:
        """Mean KL(final || lens) over held-out positions at one depth, bits."""
        return self._heldout_mean(self.measured.heldout.at(lens, KL)[:, depth_layer(self.measured.n_layers, percent)])

    def heldout_kl_mean(self, lens: str) -> Estimate:
        """The same over all layers but the last, where every lens is the model itself."""
        return self._heldout_mean(self.measured.heldout.at(lens, KL)[:, 1 : max(self.measured.n_layers, 2)])

    def _heldout_mean(self, values: Floats) -> Estimate:
        by_seq = values.reshape(len(values), -1).mean(axis=1)
        around = bootstrap.estimate(bootstrap.mean, by_seq, self._heldout_draws, self.limits.confidence)
        return around.model_copy(update={"value": float(values.mean())}) if around.finite else around

    def last_layer_kl(self) -> Estimate:
        """KL(model || norm lens at the last block after one scalar temperature), bits."""
        by_seq = self.measured.run.last_layer_consistency.kl_final_lens_after_temp_bits_by_seq
        values = np.array([np.nan if v is None else v for v in by_seq], dtype=np.float64)
        draws = self.draw("bootstrap-last-layer", self.blocks(np.arange(len(values))))
        return bootstrap.estimate(bootstrap.mean, values, draws, self.limits.confidence)

    def artifact_score_increase(self) -> Estimate:
        """Artefact score of the tuned lens minus that of the norm lens, mean over the probes' texts.

        A prompt is resampled together with its form without filler words. MISSING without probes.
        """
        checks, prompts = self.measured.run.raw_lens_check, self.measured.run.prompts
        if self.start not in checks or TUNED not in checks:
            return MISSING
        tuned, norm = (np.array(checks[lens].score_by_prompt, dtype=np.float64) for lens in (TUNED, self.start))
        draws = self.draw("bootstrap-probes", [f"{text.fact_key}\n{text.prompt_id}" for text in prompts])
        return bootstrap.estimate(bootstrap.mean, tuned - norm, draws, self.limits.confidence)

    def final_rank1_share(self) -> Estimate:
        """Share of aligned prompts where the model itself has the answer on top."""
        ranks = [row["final_answer_token_rank"] for row in self.measured.prompts if row["aligned"] == "1"]
        hits = np.array([rank == "0" for rank in ranks], dtype=np.float64)
        draws = self.suite.draws.only(self.aligned)
        return bootstrap.estimate(bootstrap.mean, hits, draws, self.limits.confidence)

    @property
    def start(self) -> str:
        """The norm lens that the tuned lens starts from."""
        return NORMS[0] if self.measured.run.lens.norm == "final" else NORMS[1]


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

"""KPIs, those of the reference recipe and ours, each with its interval, over prompts and over held-out positions.

Everything compares the tuned lens with baselines, most often with the *stronger* of two norm lenses: the model's final
norm at every layer, and the next block's input norm. W_U was trained against the final norm's gain, so the next block's
norm often gives nearly uniform readings, and beating it says little. Which one is stronger is chosen once for each KPI,
on the units that the KPI is over, and reported. On held-out text "the answer" is the model's own most likely token.

Signs: of differences and shifts, a positive number is in favour of the tuned lens; `artifact_score_increase` is one the
lens should not have. "Rank k" counts from 1: the answer is within rank k where its token_rank is below k.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lensmith.judge import bootstrap
from lensmith.judge.bootstrap import Draws, Statistic
from lensmith.judge.facts import HeldoutFacts
from lensmith.judge.judgement import MISSING, Estimate
from lensmith.judge.rows import Curves, Measured, Positions
from lensmith.judge.tables import NORM_LENS, NORMS, RANKS, TUNED, Floats
from lensmith.lens.depth import PERCENTILES, depth_layer
from lensmith.process.draws import Stream
from lensmith.settings.sections import GatesParams

Centre = Callable[[Floats], Any]  # np.mean or np.median

KL = "kl_final_lens_bits"
COMMON = ("principal", "random")  # directions of changes that no lens chose: entries of a model share them
# Below this many templates a resample of templates says more about their number than about the prompts.
MIN_CLUSTERS = 8
ALL = slice(None)


@dataclass(frozen=True)
class Earliness:
    """How much earlier the tuned lens has the answer within rank k, unit by unit."""

    baseline: str
    shift: Floats  # layers, (n,): first layer under the baseline minus first layer under the tuned lens
    reached: NDArray[np.bool_]  # (n,): units where at least one of the two gets there


@dataclass(frozen=True)
class Units:
    """What was measured of n prompts, or of n held-out positions, by lens."""

    n_layers: int
    confidence: float
    draws: Draws  # of all n
    kl: Mapping[str, Mapping[int, Floats]]  # percent of depth -> KL(final || lens) in bits, (n,)
    aligned: NDArray[np.bool_]  # (n,): has an answer; the two below are of those alone
    first: Mapping[str, Mapping[int, Floats]]  # k -> first layer within rank k, L + 1 where never
    share_at_top: Mapping[str, Floats]  # share of the layers that the tuned lens reads that have the answer at rank 1

    def estimate(self, statistic: Statistic, values: Floats, draws: Draws | None = None) -> Estimate:
        """A statistic of values (n, ...) and its interval; `draws` where the values are of some units alone."""
        return bootstrap.estimate(statistic, values, draws or self.draws, self.confidence)

    def delta(
        self, percent: int, baselines: Sequence[str], centre: Centre, kept: slice | NDArray[np.bool_] = ALL
    ) -> tuple[str, Floats]:
        """The strongest of some baselines at a depth on the units that are kept, and its KL minus the tuned lens's."""
        kl = {lens: self.kl[lens][percent][kept] for lens in (*baselines, TUNED)}
        strongest = min(baselines, key=lambda lens: _centre(kl[lens], centre))
        return strongest, kl[strongest] - kl[TUNED]

    def median_delta_kl(self, percent: int, baselines: Sequence[str] = NORMS) -> Estimate:
        """Median over units of KL(final || baseline) - KL(final || tuned), bits."""
        return self.estimate(bootstrap.median, self.delta(percent, baselines, np.median)[1])

    def median_delta_kl_share(self, percent: int) -> Estimate:
        """Median KL that the tuned lens saves as a share of the stronger norm lens's median KL."""
        norm, saved = self.delta(percent, NORMS, np.median)
        both = np.stack([saved, self.kl[norm][percent]], axis=1)
        return self.estimate(partial(bootstrap.ratio, centre=bootstrap.median), both)

    def mean_delta_kl(
        self, percent: int, baselines: Sequence[str] = NORMS, kept: slice | NDArray[np.bool_] = ALL
    ) -> Estimate:
        """Mean of the same over the units that are kept."""
        saved = self.delta(percent, baselines, np.mean, kept)[1]
        return self.estimate(bootstrap.mean, saved, self.draws.only(kept))

    def earliness(self, k: int, baselines: Sequence[str] = NORMS) -> Earliness:
        """Layers gained until rank k, against the baseline that gets there earlier on average."""
        baseline = min(baselines, key=lambda lens: _centre(self.first[lens][k], np.mean))
        before, tuned = self.first[baseline][k], self.first[TUNED][k]
        shift = before - tuned
        reached = np.minimum(before, tuned) <= self.n_layers
        return Earliness(baseline, shift, reached | ~np.isfinite(shift))  # a missing rank must be seen

    def earliness_shift(self, k: int, baselines: Sequence[str] = NORMS) -> Estimate:
        """Median over units, in layers; units that get there under neither lens are left out."""
        early = self.earliness(k, baselines)
        return self.estimate(bootstrap.median, early.shift[early.reached], self._reached(early))

    def earliness_share(self, k: int, layers: float, baselines: Sequence[str] = NORMS) -> Estimate:
        """Share of these units whose shift is at least `layers`."""
        early = self.earliness(k, baselines)
        shift = early.shift[early.reached]
        hits = np.where(np.isfinite(shift), (shift >= layers).astype(np.float64), np.nan)
        return self.estimate(bootstrap.mean, hits, self._reached(early))

    def _reached(self, early: Earliness) -> Draws:
        return self.draws.only(self.aligned).only(early.reached)

    def crossing(self, lens: str, k: int) -> int | None:
        """The first layer by which half of the units have the answer within rank k; None where they never do."""
        first = np.sort(self.first[lens][k])
        if first.size == 0 or not np.isfinite(first).all():
            return None
        layer = int(first[(first.size - 1) // 2])
        return layer if layer <= self.n_layers else None

    def coverage_gain(self, baselines: Sequence[str] = NORMS) -> tuple[str, Estimate]:
        """The best baseline, and the share of (unit, layer) with the answer at rank 1: tuned minus that baseline."""
        baseline = min(baselines, key=lambda lens: _centre(-self.share_at_top[lens], np.mean))
        gain = self.share_at_top[TUNED] - self.share_at_top[baseline]
        return baseline, self.estimate(bootstrap.mean, gain, self.draws.only(self.aligned))


@dataclass(frozen=True)
class Book:
    """Everything about one model that KPIs are computed from."""

    measured: Measured
    limits: GatesParams

    @property
    def start(self) -> str:
        """The norm lens of the tuned lens's own norm."""
        return NORM_LENS[self.measured.run.lens.norm]

    @cached_property
    def templates(self) -> tuple[str, ...]:
        """The template of each prompt."""
        return tuple(f"{line['domain']}\n{line['template']}" for line in self.measured.prompts)

    @property
    def clusters(self) -> tuple[str, ...]:
        """The unit of resampling of each prompt: its template, or itself where there are few templates."""
        return self.templates if len(set(self.templates)) >= MIN_CLUSTERS else self.measured.suite.units

    @cached_property
    def aligned(self) -> NDArray[np.bool_]:
        """Prompts whose answer has a first token, (n,)."""
        return np.array([line["aligned"] == "1" for line in self.measured.prompts], dtype=bool)

    @cached_property
    def answered(self) -> NDArray[np.bool_]:
        """Prompts whose answer the model itself has on top, (n,)."""
        ranks = [line["final_answer_token_rank"] for line in self.measured.prompts]
        return np.array([rank == "0" for rank in ranks], dtype=bool)

    @cached_property
    def suite(self) -> Units:
        """The suite's prompts."""
        return self.suite_of(np.ones(len(self.aligned), dtype=bool))

    def suite_of(self, kept: NDArray[np.bool_]) -> Units:
        """Those prompts of the suite that are kept, (n,)."""
        curves = self.measured.suite
        ranks = {lens: curves.at(lens, "answer_token_rank")[kept & self.aligned] for lens in curves.lenses}
        at_layers = {lens: by_layer[:, self.measured.layers] for lens, by_layer in ranks.items()}
        at = {percent: depth_layer(self.measured.n_layers, percent) for percent in PERCENTILES}
        return Units(
            self.measured.n_layers,
            self.limits.confidence,
            self._draw("bootstrap-suite", self.clusters).only(kept),
            {lens: {p: curves.at(lens, KL)[kept, layer] for p, layer in at.items()} for lens in curves.lenses},
            self.aligned[kept],
            {lens: {k: first_layers(ranks[lens], k, self.measured.layers) for k in RANKS} for lens in curves.lenses},
            {
                lens: np.where(np.isfinite(by_layer).all(axis=1), (by_layer < 1).mean(axis=1), np.nan)
                for lens, by_layer in at_layers.items()
            },
        )

    @cached_property
    def heldout(self) -> Units:
        """Held-out positions."""
        return self._of_positions(self.measured.positions, self.measured.run.heldout)

    @cached_property
    def also_heldout(self) -> dict[str, Units]:
        """Positions of the texts of corpus.also_heldout, by name."""
        facts = self.measured.run.also_heldout
        return {
            name: self._of_positions(text.positions, facts[name]) for name, text in self.measured.also_heldout.items()
        }

    def _of_positions(self, positions: Positions, facts: HeldoutFacts) -> Units:
        lenses = positions.values
        return Units(
            self.measured.n_layers,
            self.limits.confidence,
            self._draw("bootstrap-heldout", _runs(positions.seq, facts)),
            {lens: {p: positions.at(lens, f"{KL}_{p}") for p in PERCENTILES} for lens in lenses},
            np.ones(len(positions.seq), dtype=bool),
            {lens: {k: positions.at(lens, f"first_rank_le_{k}") for k in RANKS} for lens in lenses},
            {lens: positions.at(lens, "rank1_share") for lens in lenses},
        )

    def _draw(self, stream: str, clusters: Sequence[object]) -> Draws:
        return bootstrap.draw(clusters, self.limits.bootstrap_samples, Stream(self.limits.seed, stream))

    def _mean(self, values: Floats, draws: Draws) -> Estimate:
        return bootstrap.estimate(bootstrap.mean, values, draws, self.limits.confidence)

    @cached_property
    def _heldout_draws(self) -> Draws:
        """The resamples of `heldout`, here of sequences."""
        return self._draws_of(self.measured.heldout, self.measured.run.heldout)

    def _draws_of(self, curves: Curves, facts: HeldoutFacts) -> Draws:
        return self._draw("bootstrap-heldout", _runs(np.array(curves.units, dtype=np.int64), facts))

    def heldout_mean(self, lens: str, quantity: str, layer: int) -> Estimate:
        """Mean of any quantity over held-out positions at one layer."""
        return self._mean(self.measured.heldout.at(lens, quantity)[:, layer], self._heldout_draws)

    def heldout_kl(self, lens: str, layers: int | Sequence[int]) -> Estimate:
        """Mean KL(final || lens) over held-out positions and one or several layers, bits."""
        return self._kl(self.measured.heldout, self._heldout_draws, lens, layers)

    def other_kl(self, name: str, lens: str, layers: int | Sequence[int]) -> Estimate:
        """The same on a text of corpus.also_heldout."""
        curves, facts = self.measured.also_heldout[name].curves, self.measured.run.also_heldout[name]
        return self._kl(curves, self._draws_of(curves, facts), lens, layers)

    def causal_cosine(self, lens: str, layers: Collection[int], directions: Collection[str] = COMMON) -> Estimate:
        """Mean cosine of what a lens says that a change does with what it does, over some layers and directions."""
        changes = self.measured.changes
        cosines = [
            values
            for layer, by_direction in changes.cosine[lens].items() if layer in layers
            for direction, values in by_direction.items() if direction in directions
        ]  # fmt: skip
        draws = self._draw("bootstrap-heldout", _runs(changes.seqs, self.measured.run.heldout))
        return self._mean(np.mean(cosines, axis=0), draws) if cosines else MISSING

    def _kl(self, curves: Curves, draws: Draws, lens: str, layers: int | Sequence[int]) -> Estimate:
        values = curves.at(lens, KL)[:, layers]
        around = self._mean(values.reshape(len(values), -1).mean(axis=1), draws)
        return around.model_copy(update={"value": float(values.mean())}) if around.finite else around

    def last_layer_kl(self) -> Estimate:
        """KL(model || norm lens at the last block after one scalar temperature), bits."""
        by_seq = self.measured.run.last_layer_consistency.kl_final_lens_after_temp_bits_by_seq
        values = np.array([np.nan if v is None else v for v in by_seq], dtype=np.float64)
        return self._mean(
            values, self._draw("bootstrap-last-layer", _runs(np.arange(len(values)), self.measured.run.heldout))
        )

    def artifact_score_increase(self) -> Estimate:
        """Artefact score of the tuned lens minus that of the norm lens, mean over the probes' texts.

        A prompt is resampled together with its form without filler words. MISSING without probes.
        """
        checks, prompts = self.measured.run.raw_lens_check, self.measured.run.prompts
        if self.start not in checks or TUNED not in checks:
            return MISSING
        tuned, norm = (np.array(checks[lens].score_by_prompt, dtype=np.float64) for lens in (TUNED, self.start))
        clusters = [f"{text.fact_key}\n{text.prompt_id}" for text in prompts]
        return self._mean(tuned - norm, self._draw("bootstrap-probes", clusters))

    def final_rank1_share(self) -> Estimate:
        """Share of aligned prompts where the model itself has the answer on top."""
        return self._mean(self.answered[self.aligned].astype(np.float64), self.suite.draws.only(self.aligned))


def _runs(seq: NDArray[np.int64], facts: HeldoutFacts) -> list[int]:
    """The run of neighbouring sequences that each sequence number belongs to: runs are drawn as a whole."""
    return list((seq // facts.block_seqs).tolist())


def stronger(curves: Curves, layer: int, centre: Centre) -> str:
    """The norm baseline with the lower KL to the model at a layer; the final norm where they are equal."""
    return min(NORMS, key=lambda lens: _centre(curves.at(lens, KL)[:, layer], centre))


def _centre(values: Floats, centre: Centre) -> float:
    # NaN compares false with everything: a baseline without numbers would stand for the stronger one.
    return float(centre(values)) if values.size and np.isfinite(values).all() else float("inf")


def first_layers(ranks: Floats, k: int, layers: Sequence[int]) -> Floats:
    """The first of some layers where the answer is within rank k: (n, L + 1) to (n,); L + 1 where it never is.

    NaN where a rank is missing.
    """
    within = ranks[:, layers] < k
    first = np.where(within.any(axis=1), np.array(layers, dtype=float)[within.argmax(axis=1)], ranks.shape[1])
    return np.where(np.isfinite(ranks[:, layers]).all(axis=1), first, np.nan)

"""The names of all KPIs, and what each is: which units, which lens or baseline, at which depth."""

from collections.abc import Iterator, Sequence

import numpy as np

from lensmith.judge import gates, ladder, tables
from lensmith.judge.judgement import Estimate
from lensmith.judge.kpis import Book, Units
from lensmith.judge.tables import NORMS, RANKS
from lensmith.lens.depth import PERCENTILES, depth_layer


def every(book: Book, scope: gates.Scope) -> Iterator[tuple[str, Estimate]]:
    """Every KPI, by its name."""
    measured = book.measured
    answered = book.suite_of(book.answered)
    for prefix, units in (("", book.suite), ("answered_", answered), ("heldout_", book.heldout)):
        yield from _reference_kpis(units, scope, prefix, NORMS, "")
        if "temperature" in measured.rungs:  # the norm lens, calibrated
            yield from _reference_kpis(units, scope, prefix, ("temperature",), "_vs_temperature")
    for percent in PERCENTILES:
        yield f"median_delta_kl_share_{percent}", book.suite.median_delta_kl_share(percent)
        yield f"answered_median_delta_kl_share_{percent}", answered.median_delta_kl_share(percent)
        yield f"heldout_delta_kl_bits_{percent}", book.heldout.mean_delta_kl(percent)
        for rung in gates.BEATEN:
            if rung in measured.rungs:
                yield f"heldout_delta_kl_bits_{percent}_vs_{rung}", book.heldout.mean_delta_kl(percent, (rung,))
        for part in range(len(scope.parts)):
            saved = book.heldout.mean_delta_kl(percent, kept=measured.positions.part == part)
            yield f"position_delta_kl_bits_{percent}_part_{part}", saved
    for lens in measured.heldout.lenses:
        for percent in PERCENTILES:
            layer = depth_layer(measured.n_layers, percent)
            yield f"heldout_kl_{lens}_bits_{percent}", book.heldout_kl(lens, layer)
        # Without the last layer, where every lens is the model itself.
        yield f"heldout_kl_{lens}_bits_mean", book.heldout_kl(lens, measured.layers[:-1] or measured.layers)
    for name, units in book.also_heldout.items():
        yield from _other_kpis(book, name, units)
    yield from _causal_kpis(book)
    yield from ladder.kpis(book)
    yield "last_layer_kl_after_temp_bits", book.last_layer_kl()
    yield "artifact_score_increase", book.artifact_score_increase()
    yield "final_rank1_share", book.final_rank1_share()


def _reference_kpis(
    units: Units, scope: gates.Scope, prefix: str, baselines: Sequence[str], end: str
) -> Iterator[tuple[str, Estimate]]:
    """The KPIs of the reference recipe over prompts or held-out positions, against the strongest of some baselines."""
    for percent in PERCENTILES:
        yield f"{prefix}median_delta_kl_bits_{percent}{end}", units.median_delta_kl(percent, baselines)
    for k in RANKS:
        yield f"{prefix}earliness_shift_first_rank_le_{k}_layers{end}", units.earliness_shift(k, baselines)
    for k in (10, 5):
        share = units.earliness_share(k, scope.earliness_layers(k), baselines)
        yield f"{prefix}earliness_share_le_{k}{end}", share
    yield f"{prefix}rank1_coverage_gain{end}", units.coverage_gain(baselines)[1]


def _causal_kpis(book: Book) -> Iterator[tuple[str, Estimate]]:
    for lens in book.measured.changes.cosine:
        yield f"causal_cosine_{lens}", book.causal_cosine(lens, book.measured.layers)
        for direction in tables.DIRECTIONS:
            yield f"causal_cosine_{direction}_{lens}", book.causal_cosine(lens, book.measured.layers, (direction,))


def _other_kpis(book: Book, name: str, units: Units) -> Iterator[tuple[str, Estimate]]:
    """The KPIs of a text of corpus.also_heldout."""
    measured, parts = book.measured, book.measured.also_heldout[name].positions.part
    for percent in PERCENTILES:
        yield f"text_{name}_delta_kl_bits_{percent}", units.mean_delta_kl(percent)
        for part in np.unique(parts).tolist():
            yield f"text_{name}_delta_kl_bits_{percent}_part_{part}", units.mean_delta_kl(percent, kept=parts == part)
    for lens in tables.ALWAYS:
        for percent in PERCENTILES:
            layer = depth_layer(measured.n_layers, percent)
            yield f"text_{name}_kl_{lens}_bits_{percent}", book.other_kl(name, lens, layer)
        yield f"text_{name}_kl_{lens}_bits_mean", book.other_kl(name, lens, measured.layers[:-1] or measured.layers)


def baselines(book: Book) -> Iterator[tuple[str, str]]:
    """KPI -> the norm lens that it compares with, the stronger one of two."""
    for prefix, units, delta, centre in (
        ("", book.suite, "median_delta_kl_bits", np.median),
        ("heldout_", book.heldout, "delta_kl_bits", np.mean),
    ):
        for percent in PERCENTILES:
            yield f"{prefix}{delta}_{percent}", units.delta(percent, NORMS, centre)[0]
        for k in RANKS:
            yield f"{prefix}earliness_shift_first_rank_le_{k}_layers", units.earliness(k).baseline
        yield f"{prefix}rank1_coverage_gain", units.coverage_gain()[0]

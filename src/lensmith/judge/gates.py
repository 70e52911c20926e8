"""Rows and limits in, KPIs and verdicts out. No torch: this stage takes seconds.

Gates of the plan (section 6) are A to D, the others are ours:

    A  median_delta_kl_bits_{25,50,75} >= limits                     E  identity at the last block <= limit
    B  share of prompts with a shift of at least the limit in        F  held-out KL below that of the temperature and
       layers, for rank <= 10 and rank <= 5, >= limit                   of the bias lens, by at least the limit
    C  last_layer_kl_after_temp_bits <= limit                        G  held-out KL saved in each part of the context
    D  median_delta_kl_bits at no percentile below limit             H  raw-vs-norm risk tier, tuned minus norm

A gate has an interval for each number that it asks about, and a word:

    pass          every interval is on the right side of its limit
    fail          some interval is on the wrong side
    inconclusive  neither: some interval straddles its limit
    invalid       a number is missing or not finite, or fewer prompts than gates.min_prompts

`gate_X_point` is what the numbers alone would say, without their intervals.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lensmith.files import artifacts
from lensmith.judge import attribution
from lensmith.judge import rows as tables
from lensmith.judge.kpis import Book, Kpi, Units
from lensmith.judge.rows import RANKS
from lensmith.lens.depth import PERCENTILES, depth_layer
from lensmith.process.errors import IntegrityError
from lensmith.settings.sections import GatesParams, ModelParams

Verdict = Literal["pass", "fail", "inconclusive", "invalid"]
GATES = "ABCDEFGH"
BEATEN = ("temperature", "bias")  # gate F
TIERS = ("low", "medium", "high")
MISSING = Kpi(float("nan"), float("nan"), float("nan"), 0)
CURVE_COLUMNS = ("layer", "lens", "{quantity}", "crossing", "lo", "hi", "guide")


@dataclass(frozen=True)
class Check:
    """One number that a gate asks about."""

    kpi: Kpi
    limit: float
    at_least: bool  # else: at most
    min_units: int = 1

    @property
    def verdict(self) -> Verdict:
        # Finiteness first: NaN passes `not value < limit`.
        if not self.kpi.finite or self.kpi.units < self.min_units:
            return "invalid"
        worst, best = (self.kpi.lo, self.kpi.hi) if self.at_least else (self.kpi.hi, self.kpi.lo)
        if self._clears(worst):
            return "pass"
        return "inconclusive" if self._clears(best) else "fail"

    @property
    def point(self) -> Verdict:
        if not self.kpi.finite or self.kpi.units < self.min_units:
            return "invalid"
        return "pass" if self._clears(self.kpi.value) else "fail"

    def _clears(self, value: float) -> bool:
        return value >= self.limit if self.at_least else value <= self.limit


def verdict_of(verdicts: list[Verdict]) -> Verdict:
    """One word for several checks: the first of invalid, fail, inconclusive that occurs, else pass."""
    words: tuple[Verdict, ...] = ("invalid", "fail", "inconclusive")
    return next((word for word in words if word in verdicts), "pass")


def run(  # noqa: PLR0917 (a stage takes as many paths as it has)
    settings: ModelParams, sweep: Path, suite: Path, metrics: Path, kl: Path, cosine: Path
) -> None:
    """Judge one model: write its metrics (flat JSON) and its two plots (CSV).

    A failed gate is a result, not an error.

    Raises:
        IntegrityError: the rows are missing, cut short, of different lenses, or of another edition of the suite.
    """
    measured = tables.read(sweep, suite)
    _same_edition(settings, measured.about)
    artifacts.write_json(metrics, judge(measured, settings.gates))
    for path, quantity in ((kl, "kl_final_lens_bits"), (cosine, "cos_to_final")):
        columns = [name.format(quantity=quantity) for name in CURVE_COLUMNS]
        artifacts.write_csv(path, columns, depth_curve(measured, settings, quantity))


def judge(measured: tables.Measured, limits: GatesParams) -> dict[str, Any]:
    """Every KPI, fact and verdict under a flat key; a number that is not finite is left out and `<key>_finite` is 0."""
    book = Book(measured, limits)
    kpis = dict(_kpis(book))
    checks = gate_checks(kpis, book)
    flat: dict[str, Any] = {**_counts(book), **_baselines(book), **_limits(book), **_facts(book)}
    for name, kpi in kpis.items():
        interval = {name: kpi.value, f"{name}_lo": kpi.lo, f"{name}_hi": kpi.hi}
        flat |= interval if kpi.finite else {f"{name}_finite": 0}
    for name, value in _points(book):
        flat |= {name: value} if np.isfinite(value) else {f"{name}_finite": 0}
    verdicts = {gate: verdict_of([check.verdict for check in checks[gate]]) for gate in GATES}
    for gate, verdict in verdicts.items():
        flat[f"gate_{gate}"] = verdict
        flat[f"gate_{gate}_pass"] = int(verdict == "pass")
        flat[f"gate_{gate}_point"] = verdict_of([check.point for check in checks[gate]])
    return flat | {"preferred": int(all(verdict == "pass" for verdict in verdicts.values()))}


def gate_checks(kpis: dict[str, Kpi], book: Book) -> dict[str, list[Check]]:
    """What each gate asks."""
    limits, enough = book.limits, book.limits.min_prompts
    delta = {percent: kpis[f"median_delta_kl_bits_{percent}"] for percent in PERCENTILES}
    least = {25: limits.delta_kl_bits_25, 50: limits.delta_kl_bits_50, 75: limits.delta_kl_bits_75}
    shares = [kpis["earliness_share_le_10"], kpis["earliness_share_le_5"]]
    beaten = [kpis.get(f"heldout_delta_kl_bits_{p}_vs_{rung}", MISSING) for rung in BEATEN for p in PERCENTILES]
    parts = [kpi for name, kpi in kpis.items() if name.startswith("position_delta_kl_bits_")]
    return {
        "A": [Check(delta[percent], limit, True, enough) for percent, limit in least.items()],
        "B": [Check(share, limits.earliness_share, True, enough) for share in shares],
        "C": [Check(kpis["last_layer_kl_after_temp_bits"], limits.last_layer_kl_bits, False)],
        "D": [Check(kpi, limits.worst_delta_kl_bits, True, enough) for kpi in delta.values()],
        "E": [Check(kpis["identity_kl_bits"], limits.identity_kl_bits, False)],
        "F": [Check(kpi, limits.ladder_gain_bits, True) for kpi in beaten],
        "G": [Check(kpi, limits.position_delta_kl_bits, True) for kpi in parts],
        "H": [Check(kpis["risk_tier_steps"], limits.risk_tier_steps, False)],
    }


def _kpis(book: Book) -> Iterator[tuple[str, Kpi]]:
    yield from _plan_kpis(book.suite, book, "", tables.NORMS, "")
    yield from _plan_kpis(book.heldout, book, "heldout_", tables.NORMS, "")
    if "temperature" in book.measured.rungs:  # the norm lens, calibrated
        yield from _plan_kpis(book.suite, book, "", ("temperature",), "_vs_temperature")
        yield from _plan_kpis(book.heldout, book, "heldout_", ("temperature",), "_vs_temperature")
    for percent in PERCENTILES:
        yield f"heldout_delta_kl_bits_{percent}", book.heldout.mean_delta_kl(percent)
        for rung in BEATEN:
            if rung in book.measured.rungs:
                kpi = book.heldout.mean_delta_kl(percent, (rung,))
                yield f"heldout_delta_kl_bits_{percent}_vs_{rung}", kpi
        for part in range(len(book.measured.run["heldout"]["parts"])):
            kpi = book.heldout.mean_delta_kl(percent, kept=book.measured.positions.part == part)
            yield f"position_delta_kl_bits_{percent}_part_{part}", kpi
    yield from attribution.attribution(book)
    yield "last_layer_kl_after_temp_bits", book.last_layer_kl()
    yield "identity_kl_bits", book.identity_kl()
    yield "risk_tier_steps", _risk_tier_steps(book)


def _plan_kpis(
    units: Units, book: Book, prefix: str, baselines: tuple[str, ...], end: str
) -> Iterator[tuple[str, Kpi]]:
    """The plan's KPIs of prompts or of held-out positions, against the strongest of some baselines."""
    for percent in PERCENTILES:
        yield f"{prefix}median_delta_kl_bits_{percent}{end}", units.median_delta_kl(percent, baselines)
    for k in RANKS:
        yield f"{prefix}earliness_shift_first_rank_le_{k}_layers{end}", units.earliness_shift(k, baselines)
    for k in (10, 5):
        share = units.earliness_share(k, book.earliness_limit(k), baselines)
        yield f"{prefix}earliness_share_le_{k}{end}", share
    yield f"{prefix}rank1_coverage_gain{end}", units.coverage_gain(baselines)[1]


def _risk_tier_steps(book: Book) -> Kpi:
    """Tiers of the raw-vs-norm risk between the norm lens and the tuned one: positive where the tuned one is worse."""
    check = book.measured.run["raw_lens_check"]
    tiers = [TIERS.index(check[lens]["risk_tier"]) for lens in (attribution.start(book), tables.TUNED) if lens in check]
    return Kpi.exact(float(tiers[1] - tiers[0]), len(book.measured.run["prompts"])) if len(tiers) == 2 else MISSING


def _points(book: Book) -> Iterator[tuple[str, float]]:
    for lens in book.measured.heldout.lenses:
        for percent in PERCENTILES:
            yield f"heldout_kl_{lens}_bits_{percent}", book.heldout_kl(lens, percent)
        yield f"heldout_kl_{lens}_bits_mean", book.heldout_kl_mean(lens)
    deltas = [book.suite.median_delta_kl(percent).value for percent in PERCENTILES]
    yield "worst_delta_kl_bits", min(deltas) if np.isfinite(deltas).all() else float("nan")
    ranks = [row["final_answer_token_rank"] for row in book.measured.prompts if row["aligned"] == "1"]
    yield "final_rank1_share", sum(rank == "0" for rank in ranks) / len(ranks) if ranks else float("nan")


def _counts(book: Book) -> dict[str, Any]:
    early = {k: book.suite.earliness(k) for k in RANKS}
    aligned = int(book.aligned.sum())
    return {
        "n_layers": book.measured.n_layers,
        "n_prompts": len(book.aligned),
        "n_prompts_unaligned": len(book.aligned) - aligned,
        "n_prompts_in_training_text": len(book.measured.about["in_training_text"]),
        "n_heldout_seqs": len(book.measured.heldout.units),
        "n_heldout_positions": book.measured.run["heldout"]["n_positions"],
        "n_suite_clusters": len(set(book.clusters)),
        "suite_resampled_by": "prompt" if book.clusters == book.measured.suite.units else "template",
        "heldout_resampled_by": "sequence" if book.block_seqs == 1 else f"run of {book.block_seqs} sequences",
        **{f"earliness_never_le_{k}_prompts": aligned - int(early[k].reached.sum()) for k in RANKS},
    }


def _baselines(book: Book) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for prefix, units, centre in (("", book.suite, np.median), ("heldout_", book.heldout, np.mean)):
        flat[f"{prefix}baseline_rank1_coverage"] = units.coverage_gain()[0]
        flat |= {f"{prefix}baseline_earliness_le_{k}": units.earliness(k).baseline for k in RANKS}
        flat |= {f"{prefix}baseline_{p}": units.delta(p, tables.NORMS, centre)[0] for p in PERCENTILES}
    return flat | {f"layer_{percent}": depth_layer(book.measured.n_layers, percent) for percent in PERCENTILES}


def _facts(book: Book) -> dict[str, Any]:
    """What is said beside the numbers: the ladder, the parts of the context, the risk tiers, what ended at a bound."""
    run = book.measured.run
    flat: dict[str, Any] = {
        "ladder": " ".join(attribution.rungs(book)),
        "n_position_parts": len(run["heldout"]["parts"]),
    }
    for place, part in enumerate(run["heldout"]["parts"]):
        flat |= {f"position_part_{place}_{name}": part[name] for name in ("first", "last")}
    for lens, check in run["raw_lens_check"].items():
        flat |= {f"risk_tier_{lens}": check["risk_tier"], f"lens_artifact_score_{lens}": check["lens_artifact_score"]}
    return flat | {"last_layer_temp_at_bound": int(run["last_layer_consistency"]["temp_at_bound"])}


def _limits(book: Book) -> dict[str, Any]:
    given = book.limits.model_dump(exclude={"inputs", "bootstrap_samples", "seed"})
    scaled = {f"earliness_le_{k}_layers": book.earliness_limit(k) for k in (10, 5)}
    return {f"limit_{name}": limit for name, limit in {**given, **scaled}.items()}


def depth_curve(measured: tables.Measured, settings: ModelParams, quantity: str) -> list[tuple[object, ...]]:
    """CURVE_COLUMNS of each lens: the mean over held-out positions by layer, and its interval. Empty: not finite.

    `crossing` names the ranks that half of the suite's answers have reached by that layer, at the layer where they do;
    `guide` the depths that the gates read, once for all lenses.
    """
    book = Book(measured, settings.gates)
    rows: list[tuple[object, ...]] = []
    guides = {depth_layer(measured.n_layers, percent): f"{percent} %" for percent in PERCENTILES}
    for lens in measured.heldout.lenses:
        crossings = _crossings(book, lens) if lens in (tables.NORMS[0], tables.TUNED) else {}
        for layer in range(tables.first_row(lens), measured.n_layers + 1):
            mean = book.heldout_mean(lens, quantity, layer)
            value, lo, hi = (mean.value, mean.lo, mean.hi) if mean.finite else (None, None, None)
            guide = guides.get(layer, "") if lens == tables.TUNED else ""
            rows.append((layer, lens, value, crossings.get(layer, ""), lo, hi, guide))
    return rows


def _crossings(book: Book, lens: str) -> dict[int, str]:
    """Row -> label. The first row by which at least half of the aligned prompts have the answer within rank k."""
    labels: dict[int, str] = {}
    for k in RANKS:
        first = np.sort(book.suite.first[lens][k])
        if first.size == 0 or not np.isfinite(first).all():
            continue
        row = int(first[(first.size - 1) // 2])
        if row <= book.measured.n_layers:
            labels[row] = f"{labels[row]}/{k}" if row in labels else f"rank<={k}"
    return labels


def _same_edition(settings: ModelParams, about: Any) -> None:
    """Refuse rows of a suite that has been edited since."""
    for name, sha256 in settings.suite.inputs.items():
        if (measured := about["files"].get(name, "none")) != sha256:
            raise IntegrityError(
                f"{name}: not the edition that suite-eval measured (sha256 is {sha256[:12]}, measured was "
                f"{measured[:12]}). `dvc repro` measures it again. No metrics were written."
            )

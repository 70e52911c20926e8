"""Stage `gates`: rows in; KPIs, verdicts and curves out. No torch: this stage takes seconds."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lensmith.files import artifacts
from lensmith.judge import gates, holds, kpi_table, ladder, rows, side_by_side, tables
from lensmith.judge.judgement import VERDICTS, ArtifactScore, Counts, Estimate, Judgement, OtherText, Verdict
from lensmith.judge.kpis import KL, Book
from lensmith.judge.tables import NORMS, RANKS, TUNED
from lensmith.lens.depth import PERCENTILES, depth_layer
from lensmith.process.errors import IntegrityError
from lensmith.settings.sections import ModelParams

ROUNDING = 1e-6  # of numbers that are computed from float32 logits
VERDICT_COLUMNS = ("gate", "verdict", "check", "kpi", "value", "lo", "hi", "limit")
ByLayer = Mapping[str, Mapping[int, Estimate]]  # lens -> layer -> a mean
CURVE_COLUMNS = ("layer", "lens", "{quantity}", "crossing", "lo", "hi", "guide")


@dataclass(frozen=True)
class Outputs:
    """The files that stage `gates` writes."""

    judgement: Path
    metrics: Path
    kl: Path
    cosine: Path
    causal: Path
    verdicts: Path
    lenses: Path


def run(settings: ModelParams, sweep: Path, suite: Path, outputs: Outputs) -> None:
    """Judge one model. A failed gate is a result, not an error.

    Raises:
        IntegrityError: the rows are missing, cut short, of different lenses, or of another edition of the suite.
    """
    measured = rows.read(sweep, suite)
    for name, sha256 in settings.suite.inputs.items():
        if (other := measured.suite_facts.files.get(name, "none")) != sha256:
            raise IntegrityError(
                f"{name}: not the edition that suite-eval measured (sha256 is {sha256[:12]}, measured was "
                f"{other[:12]}). `dvc repro` measures it again. No metrics were written."
            )
    book = Book(measured, settings.gates)
    judged = judge(book, settings)
    judged.write(outputs.judgement)
    artifacts.write_json(outputs.metrics, metrics(judged))
    causal = {
        lens: {layer: book.causal_cosine(lens, [layer]) for layer in by_layer}
        for lens, by_layer in measured.changes.cosine.items()
    }
    for path, quantity, means in (
        (outputs.kl, KL, heldout_means(book, KL)),
        (outputs.cosine, "cos_to_final", heldout_means(book, "cos_to_final")),
        (outputs.causal, "causal_cosine", causal),
    ):
        columns = [name.format(quantity=quantity) for name in CURVE_COLUMNS]
        artifacts.write_csv(path, columns, depth_curve(book, means), digits=artifacts.TRACKED_DIGITS)
    artifacts.write_csv(outputs.verdicts, VERDICT_COLUMNS, verdicts(judged), digits=artifacts.TRACKED_DIGITS)
    lines = side_by_side.lines(judged)
    artifacts.write_csv(outputs.lenses, side_by_side.COLUMNS, lines, digits=artifacts.TRACKED_DIGITS)


def judge(book: Book, settings: ModelParams) -> Judgement:
    """Every KPI, and every gate of the table."""
    measured, run_facts = book.measured, book.measured.run
    scope = gates.Scope(
        settings.gates,
        measured.n_layers,
        run_facts.heldout.parts,
        texts=tuple(run_facts.also_heldout),
        absent=run_facts.lens.absent,
    )
    kpis = {name: without_rounding(kpi) for name, kpi in kpi_table.every(book, scope)}
    aligned, block_seqs = int(book.aligned.sum()), run_facts.heldout.block_seqs
    return Judgement(
        model_key=settings.key,
        model_id=settings.model_id,
        lens=run_facts.lens,
        n_layers=measured.n_layers,
        layers={percent: depth_layer(measured.n_layers, percent) for percent in PERCENTILES},
        confidence=settings.gates.confidence,
        earliness_layers={rank: scope.earliness_layers(rank) for rank in (10, 5)},
        counts=Counts(
            prompts=len(book.aligned),
            unaligned=len(book.aligned) - aligned,
            in_training_text=len(measured.suite_facts.in_training_text),
            templates=len(set(book.templates)),
            never_in_rank={k: aligned - int(book.suite.earliness(k).reached.sum()) for k in RANKS},
            heldout_seqs=len(measured.heldout.units),
            heldout_positions=run_facts.heldout.n_positions,
            probes=len(run_facts.prompts),
            suite_resampled_by="template" if book.clusters == book.templates else "prompt",
            heldout_resampled_by="sequence" if block_seqs == 1 else f"run of {block_seqs} sequences",
        ),
        kpis=kpis,
        baselines=dict(kpi_table.baselines(book)),
        gates=gates.judge(kpis, scope),
        ladder=tuple(ladder.rungs(book)),
        parts=scope.parts,
        tokens_per_byte=run_facts.heldout.tokens_per_byte,
        texts={
            name: OtherText(positions=text.n_positions, tokens_per_byte=text.tokens_per_byte)
            for name, text in run_facts.also_heldout.items()
        },
        artifact_scores={
            lens: ArtifactScore(score=check.lens_artifact_score, risk_tier=check.risk_tier)
            for lens, check in run_facts.raw_lens_check.items()
        },
        last_layer_temp_at_bound=run_facts.last_layer_consistency.temp_at_bound,
        holds=tuple(holds.holdings(book, np.ones_like(book.answered))),
        holds_answered=tuple(holds.holdings(book, book.answered)),
    )


# Metric -> the KPI that it repeats. Names are short so that the table of two models fits into 160 columns.
METRIC_KPIS = {
    **{f"kl{percent}": f"heldout_kl_tuned_bits_{percent}" for percent in PERCENTILES},
    "kl": f"heldout_kl_{TUNED}_bits_mean",
    "norm": f"heldout_kl_{NORMS[0]}_bits_mean",
    "bias": "heldout_kl_bias_bits_mean",
    **{f"d{percent}": f"median_delta_kl_bits_{percent}" for percent in PERCENTILES},
    "le10": "earliness_share_le_10",
    "le5": "earliness_share_le_5",
    "last": "last_layer_kl_after_temp_bits",
}


def metrics(judged: Judgement) -> dict[str, float | int | str]:
    """metrics/<key>.json: the few numbers that `dvc metrics show` and `dvc metrics diff` print, a column each.

        kl25 kl50 kl75   mean KL(final || tuned) on held-out text at 25, 50 and 75 % of depth, bits
        kl norm bias     the same over layers 1..L-1: of the tuned lens, the norm lens, the bias lens
        d25 d50 d75      median KL that the tuned lens saves on prompts, bits (gates A and D)
        le10 le5         share of prompts whose answer is that much earlier within rank 10, 5 (gate B)
        last             KL of the norm lens after the last layer, with one temperature, bits (gate C)
        gates            the gates that do not pass, by verdict; `?` stands for inconclusive, as on the report
        preferred        the lens that summaries should read
        n                prompts

    A number that is missing has no key.
    """
    numbers = {name: value for name, kpi in METRIC_KPIS.items() if (value := judged.number(kpi)) is not None}
    letters = {word: "".join(gate.letter for gate in judged.gates if gate.verdict == word) for word in VERDICTS}
    marks: dict[Verdict, str] = {"fail": "fail", "inconclusive": "?", "invalid": "invalid"}
    open_gates = [f"{mark} {letters[word]}" for word, mark in marks.items() if letters[word]]
    words = {"gates": ", ".join(open_gates) or "pass", "preferred": judged.preferred}
    return {**artifacts.rounded(numbers, artifacts.TRACKED_DIGITS), **words, "n": judged.counts.prompts}


def verdicts(judged: Judgement) -> Iterator[tuple[object, ...]]:
    """VERDICT_COLUMNS of each check that readers see: what was measured, its interval, and what was asked."""
    for gate in judged.gates:
        for check in gate.shown:
            interval = check.measured.value, check.measured.lo, check.measured.hi
            yield gate.letter, check.verdict, check.label, check.kpi, *interval, check.limit_text


def without_rounding(estimate: Estimate) -> Estimate:
    """The same, with zero for what is only the rounding of float32 logits: another on another kind of CPU."""
    numbers = {"value": estimate.value, "lo": estimate.lo, "hi": estimate.hi}
    return estimate.model_copy(
        update={
            name: 0.0 if number is not None and abs(number) < ROUNDING else number for name, number in numbers.items()
        }
    )


def heldout_means(book: Book, quantity: str) -> ByLayer:
    """The mean of a quantity over held-out positions, of each lens at each layer that it reads."""
    n_layers, absent = book.measured.n_layers, book.measured.run.lens.absent
    return {
        lens: {layer: book.heldout_mean(lens, quantity, layer) for layer in tables.layers(lens, n_layers, absent)}
        for lens in book.measured.heldout.lenses
    }


def depth_curve(book: Book, means: ByLayer) -> Iterator[tuple[object, ...]]:
    """CURVE_COLUMNS of each lens: a mean by layer, and its interval. Empty: not finite.

    `crossing` names the ranks that half of the suite's answers have reached by that layer, at the layer where they do;
    `guide` the depths that the gates read, once for all lenses.
    """
    guides = {depth_layer(book.measured.n_layers, percent): f"{percent} %" for percent in PERCENTILES}
    for lens, by_layer in means.items():
        crossings: dict[int, str] = {}
        for k in RANKS if lens in (NORMS[0], TUNED) else ():
            if (first := book.suite.crossing(lens, k)) is not None:
                crossings[first] = f"{crossings[first]}/{k}" if first in crossings else f"rank<={k}"
        for layer, measured in by_layer.items():
            mean = without_rounding(measured)
            guide = guides.get(layer, "") if lens == TUNED else ""
            yield layer, lens, mean.value, crossings.get(layer, ""), mean.lo, mean.hi, guide

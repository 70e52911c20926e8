"""Held-out KL of two lenses on the same text, compared sequence by sequence.

A sequence that is hard for one lens is hard for the other. That widens the interval of each lens, and cancels in the
paired difference.
"""

import re
from collections.abc import Sequence

from lensmith.judge import bootstrap, rows
from lensmith.judge.facts import RunFacts
from lensmith.judge.judgement import MISSING, Estimate
from lensmith.judge.judging import METRIC_KPIS
from lensmith.judge.kpis import KL
from lensmith.judge.rows import Curves
from lensmith.judge.tables import Floats
from lensmith.lab.experiments import LabVariant
from lensmith.lens.depth import depth_layer, layers
from lensmith.process.draws import Stream
from lensmith.process.errors import IntegrityError

HELDOUT_KL = re.compile(r"heldout_kl_(\w+)_bits_(mean|\d+)")
# Settings that choose the positions. Rows of two variants are pairs if these, model and text are the same.
POSITIONS = ("sweep.positions_per_seq", "sweep.seed")


def is_heldout_kl(kpi: str) -> bool:
    """Whether a KPI, by its name in metrics/ or in a judgement, is a held-out KL. Only those can be paired."""
    return HELDOUT_KL.fullmatch(METRIC_KPIS.get(kpi, kpi)) is not None


def kl_difference(variant: LabVariant, base: LabVariant, model: str, kpi: str) -> Estimate:
    """A held-out KL of a variant minus that of another, bits, with the interval of the paired difference.

    MISSING if they differ in model, text or positions, or if DVC's cache lacks the rows of one.
    """
    match = HELDOUT_KL.fullmatch(METRIC_KPIS.get(kpi, kpi))
    if match is None or _population(variant, model) != _population(base, model):
        return MISSING
    try:
        (ours, run), (theirs, base_run) = _rows(variant, model), _rows(base, model)
    except (IntegrityError, KeyError):
        return MISSING
    lens, depth = match.groups()
    if ours.units != theirs.units or lens not in ours.lenses or lens not in theirs.lenses:
        return MISSING
    if run.lens.absent != base_run.lens.absent:
        return MISSING
    # The mean leaves out the last layer, where every lens is the model itself.
    read = layers(ours.n_layers, run.lens.absent)
    at = read[:-1] or read if depth == "mean" else (depth_layer(ours.n_layers, int(depth)),)
    by_seq = _mean_of(ours, lens, at) - _mean_of(theirs, lens, at)
    limits = {name: base.settings[model][f"gates.{name}"] for name in ("bootstrap_samples", "seed", "confidence")}
    runs = [int(seq) // run.heldout.block_seqs for seq in ours.units]
    draws = bootstrap.draw(runs, limits["bootstrap_samples"], Stream(limits["seed"], "bootstrap-heldout"))
    return bootstrap.estimate(bootstrap.mean, by_seq, draws, limits["confidence"])


def _population(variant: LabVariant, model: str) -> tuple[object, ...]:
    """What two variants must share for their rows to be pairs: model, text, positions. Unknown text equals none."""
    settings = variant.settings.get(model, {})
    source = {name: value for name, value in settings.items() if name.startswith("source.")}
    text = variant.files.get(model, {}).get("corpus/heldout.safetensors", object())
    return text, source, *(settings.get(name) for name in POSITIONS)


def _rows(variant: LabVariant, model: str) -> tuple[Curves, RunFacts]:
    """The KL in heldout.csv, and what the sweep says beside it."""
    files = variant.files[model]
    run = RunFacts.read(files["sweep/run.json"])
    n_layers, absent = run.model_stats.num_layers, run.lens.absent
    return rows.curves(files["sweep/heldout.csv"], "seq", (KL,), n_layers, run.lenses, absent=absent), run


def _mean_of(curves: Curves, lens: str, at: Sequence[int]) -> Floats:
    """The mean over some layers of each sequence's KL, (n_seqs,)."""
    means: Floats = curves.at(lens, KL)[:, at].mean(axis=1)
    return means

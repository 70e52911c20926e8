"""Held-out KL of two lenses on the same text, compared sequence by sequence.

A sequence that is hard for one lens is hard for the other. That widens the interval of each lens, and cancels in the
paired difference.
"""

import re

from lensmith.judge import bootstrap, rows
from lensmith.judge.facts import RunFacts
from lensmith.judge.judgement import MISSING, Estimate
from lensmith.judge.judging import METRIC_KPIS
from lensmith.judge.kpis import KL
from lensmith.judge.rows import Curves
from lensmith.judge.tables import Floats
from lensmith.lab.experiments import LabVariant
from lensmith.lens.depth import depth_layer
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
        (ours, block_seqs), (theirs, _) = _rows(variant, model), _rows(base, model)
    except (IntegrityError, KeyError):
        return MISSING
    lens, depth = match.groups()
    if ours.units != theirs.units or lens not in ours.lenses or lens not in theirs.lenses:
        return MISSING
    # The mean leaves out the last layer, where every lens is the model itself.
    layers = slice(1, max(ours.n_layers, 2)) if depth == "mean" else depth_layer(ours.n_layers, int(depth))
    by_seq = _mean_of(ours, lens, layers) - _mean_of(theirs, lens, layers)
    limits = {name: base.settings[model][f"gates.{name}"] for name in ("bootstrap_samples", "seed", "confidence")}
    runs = [int(seq) // block_seqs for seq in ours.units]
    draws = bootstrap.draw(runs, limits["bootstrap_samples"], Stream(limits["seed"], "bootstrap-heldout"))
    return bootstrap.estimate(bootstrap.mean, by_seq, draws, limits["confidence"])


def _population(variant: LabVariant, model: str) -> tuple[object, ...]:
    """What two variants must share for their rows to be pairs: model, text, positions. Unknown text equals none."""
    settings = variant.settings.get(model, {})
    source = {name: value for name, value in settings.items() if name.startswith("source.")}
    text = variant.files.get(model, {}).get("corpus/heldout.safetensors", object())
    return text, source, *(settings.get(name) for name in POSITIONS)


def _rows(variant: LabVariant, model: str) -> tuple[Curves, int]:
    """The KL in heldout.csv, and how many neighbouring sequences a bootstrap draws together."""
    files = variant.files[model]
    run = RunFacts.read(files["sweep/run.json"])
    curves = rows.curves(files["sweep/heldout.csv"], "seq", (KL,), run.model_stats.num_layers, run.lenses)
    return curves, run.heldout.block_seqs


def _mean_of(curves: Curves, lens: str, layers: int | slice) -> Floats:
    """The mean over layers of each sequence's KL, (n_seqs,)."""
    values = curves.at(lens, KL)[:, layers]
    means: Floats = values.reshape(len(values), -1).mean(axis=1)
    return means

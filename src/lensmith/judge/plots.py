"""Stage `plots`: rows as the tables that `dvc plots` draws, and what the report shows of single prompts.

    delta_kl.csv    KL(final || norm) - KL(final || tuned) by layer: percentiles over the suite's prompts
    earliness.csv   how many layers sooner the tuned lens has the answer within a rank: prompts by layers
    training.csv    fit_log.csv, a curve after another
    rank_curve.csv  the lens's rank_curve.csv, a curve after another
    detail.json     prompts, trajectories and provenance for the report

No torch, and no limit of a gate: a threshold that changes draws nothing anew.
"""

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lensmith.files import artifacts
from lensmith.judge import rows
from lensmith.judge.kpis import KL, Book, first_layers, stronger
from lensmith.judge.prompts import read_suite
from lensmith.judge.rows import Measured
from lensmith.judge.tables import RANKS, TRAJECTORIES, TUNED
from lensmith.lens.depth import depth_layer
from lensmith.lens.lens_file import FIT_LOG, RANK_CURVE
from lensmith.lens.provenance import PROVENANCE, Provenance
from lensmith.process.errors import IntegrityError
from lensmith.settings.sections import ModelParams

PERCENTILES = (10, 25, 50, 75, 90)
DELTA_COLUMNS = ("layer", "percentile", "delta_kl_bits")
EARLINESS_COLUMNS = ("shift_layers", "rank", "prompts", "share_pct")
TRAINING_COLUMNS = ("positions", "curve", "kl_bits", "best")
RANK_COLUMNS = ("rank", "curve", "kl_bits")
CURVES = {
    "training": "train_kl_bits",
    "held out, 25 %": "val_kl_bits_25",
    "held out, 50 %": "val_kl_bits_50",
    "held out, 75 %": "val_kl_bits_75",
}
TRAINED, CLOSED_FORM = "trained", "closed form"
RANK_CURVES = {TRAINED: "kl_bits", CLOSED_FORM: "closed_form_kl_bits"}
# A row of the report's table of prompts. Layers are the first within the rank; null where the answer never gets there.
PROMPT_COLUMNS = (
    "id", "domain", "prompt", "answer", "final_rank", "norm_le_10", "tuned_le_10", "norm_le_1", "tuned_le_1", "norm_kl",
    "tuned_kl", "saved",
)  # fmt: skip

Row = Sequence[object]


def run(  # noqa: PLR0917 (a stage takes as many paths as it has)
    settings: ModelParams, lens: Path, sweep: Path, suite: Path, delta_kl: Path, earliness: Path, training: Path,
    rank_curve: Path, detail: Path,
) -> None:  # fmt: skip
    """Write the tables and the detail of one model.

    Raises:
        IntegrityError: rows, log, curve or provenance are missing or damaged, or the suite has been edited since.
    """
    measured = rows.read(sweep, suite)
    book = Book(measured, settings.gates)
    artifacts.write_csv(delta_kl, DELTA_COLUMNS, delta_rows(measured), digits=artifacts.TRACKED_DIGITS)
    artifacts.write_csv(earliness, EARLINESS_COLUMNS, earliness_rows(book), digits=artifacts.TRACKED_DIGITS)
    log = curve_rows(lens / FIT_LOG, CURVES, "positions", "best")
    artifacts.write_csv(training, TRAINING_COLUMNS, log, digits=artifacts.TRACKED_DIGITS)
    ranks = curve_rows(lens / RANK_CURVE, RANK_CURVES, "rank")
    artifacts.write_csv(rank_curve, RANK_COLUMNS, ranks, digits=artifacts.TRACKED_DIGITS)
    texts = {line.id: line.prompt for _, line in read_suite(settings.suite.files).lines}
    shown = [text for folder in (sweep, suite) for text in artifacts.read_json(folder / TRAJECTORIES)]
    data = {
        "columns": PROMPT_COLUMNS,
        "prompts": prompt_rows(measured, texts),
        "trajectories": shown,
        "provenance": Provenance.read(lens / PROVENANCE).data(),
    }
    artifacts.write_text(detail, artifacts.canonical_json(data) + "\n")


def delta_rows(measured: Measured) -> Iterator[Row]:
    """At each layer: percentiles, over the suite's prompts, of the KL saved against the stronger norm lens."""
    for layer in range(1, measured.n_layers + 1):
        norm = measured.suite.at(stronger(measured.suite, layer, np.median), KL)[:, layer]
        saved = norm - measured.suite.at(TUNED, KL)[:, layer]
        # A number that is not finite is left empty: a percentile of the others would look whole.
        whole = saved.size and np.isfinite(saved).all()
        for percentile in PERCENTILES:
            yield layer, percentile, float(np.percentile(saved, percentile)) if whole else None


def earliness_rows(book: Book) -> Iterator[Row]:
    """How many prompts have the answer within rank k so many layers sooner; every shift between the ends has a row."""
    for k in RANKS:
        early = book.suite.earliness(k)
        shifts = early.shift[early.reached]
        shifts = shifts[np.isfinite(shifts)].astype(int)
        if not shifts.size:
            continue
        for shift in range(int(shifts.min()), int(shifts.max()) + 1):
            prompts = int((shifts == shift).sum())
            yield shift, f"rank ≤ {k}", prompts, 100 * prompts / len(shifts)


def curve_rows(path: Path, curves: Mapping[str, str], x: str, *others: str) -> Iterator[tuple[Any, ...]]:
    """x, curve, KL and `others` of a table of stage `fit`, a curve after another; an empty cell gives no line.

    Args:
        curves: name of a curve -> its column. `x` and `others` are columns of whole numbers.

    Raises:
        IntegrityError: missing, or without a column.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            lines = list(csv.DictReader(file))
    except FileNotFoundError:
        raise IntegrityError(f"{path}: missing. `dvc repro` writes it.") from None
    for curve, column in curves.items():
        for number, line in enumerate(lines, 2):
            try:
                if line[column]:
                    yield int(line[x]), curve, float(line[column]), *(int(line[name]) for name in others)
            except (KeyError, TypeError, ValueError) as error:
                raise IntegrityError(f"{path}:{number}: no line of a fit ({error})") from None


def prompt_rows(measured: Measured, texts: dict[str, str]) -> list[list[object]]:
    """PROMPT_COLUMNS of every prompt of the suite.

    The norm lens is the one that is closer to the model at half of the depth.

    Raises:
        IntegrityError: a measured prompt is not in the suite any more.
    """
    suite, middle = measured.suite, depth_layer(measured.n_layers, 50)
    norm = stronger(suite, middle, np.median)
    kl = {lens: suite.at(lens, KL)[:, middle].tolist() for lens in (norm, TUNED)}
    # NaN (no first token of its own) compares false, as L + 1 (never there) does.
    first = [
        [int(layer) if layer <= measured.n_layers else None for layer in layers.tolist()]
        for k in (10, 1)
        for layers in (first_layers(suite.at(lens, "answer_token_rank"), k, measured.layers) for lens in (norm, TUNED))
    ]
    lines: list[list[object]] = []
    for number, prompt in enumerate(measured.prompts):
        if prompt["id"] not in texts:
            raise IntegrityError(f"{prompt['id']}: was measured, but is not in the suite. `dvc repro` measures anew.")
        rank = int(prompt["final_answer_token_rank"]) + 1 if prompt["final_answer_token_rank"] else None
        bits = (kl[norm][number], kl[TUNED][number], kl[norm][number] - kl[TUNED][number])
        shown = [round(value, 2) if np.isfinite(value) else None for value in bits]
        about = [prompt["id"], prompt["domain"], texts[prompt["id"]], prompt["answer"], rank]
        lines.append([*about, *(layers[number] for layers in first), *shown])
    return lines

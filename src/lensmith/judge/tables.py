"""What `sweep` and `suite` wrote, as arrays: one curve over depth for each unit, lens and quantity."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lensmith.edge import artifacts
from lensmith.errors import IntegrityError

Floats = NDArray[np.float64]

NORMS = ("norm", "norm_next")  # the model's final norm at every layer; the next block's input norm
TUNED = "tuned"
LENSES = (*NORMS, TUNED)

DISTANCES = ("kl_final_lens_bits", "kl_lens_final_bits", "entropy_bits", "cos_to_final")
HELDOUT_COLUMNS = ("seq", "layer", "lens", "n_positions", *DISTANCES, "top1_agree")
ANSWER = ("answer_token_rank", "p_answer", "top1", "top1_agree", "p_control")
ROW_COLUMNS = ("id", "domain", "template", "layer", "lens", *DISTANCES, *ANSWER)
FINAL = ("final_answer_token_rank", "final_p_answer")
TRAJECTORIES = "trajectories.json"  # in both folders: texts read at every position
PROMPT_COLUMNS = ("id", "domain", "template", "answer", "n_prompt_tokens", "answer_token", "aligned", *FINAL)


@dataclass(frozen=True)
class Curves:
    """Quantities of n units (prompts, sequences) at every row of every lens.

    `values[lens][quantity]` is (n, L + 1); NaN where the table has no number (a tuned lens has no row 0).
    """

    units: tuple[str, ...]
    n_layers: int
    values: Mapping[str, Mapping[str, Floats]]

    def at(self, lens: str, quantity: str) -> Floats:
        return self.values[lens][quantity]


@dataclass(frozen=True)
class Measured:
    """All that gates judge."""

    n_layers: int
    heldout: Curves
    suite: Curves
    prompts: tuple[Mapping[str, str], ...]  # rows of prompts.csv, in the order of suite.units
    run: Mapping[str, Any]  # run.json
    about: Mapping[str, Any]  # suite.json


def read(sweep: Path, suite: Path) -> Measured:
    """Both folders, checked against each other.

    Raises:
        IntegrityError: a file is missing or cut short, or the folders speak of different lenses.
    """
    run, about = artifacts.read_json(sweep / "run.json"), artifacts.read_json(suite / "suite.json")
    n_layers = run["model_stats"]["num_layers"]
    for name, ours, other in (
        ("num_layers", n_layers, about["n_layers"]),
        ("weights_sha256", run["lens"]["weights_sha256"], about["lens"]["weights_sha256"]),
    ):
        if ours != other:
            raise IntegrityError(
                f"{sweep / 'run.json'} and {suite / 'suite.json'} measured different lenses: {name} is {ours} "
                f"and {other}. Run `dvc repro` so that both measure the same. No metrics were written."
            )
    heldout = curves(sweep / "heldout.csv", "seq", DISTANCES, n_layers)
    rows = curves(suite / "rows.csv", "id", (*DISTANCES, "answer_token_rank"), n_layers)
    prompts = {row["id"]: row for row in _read_csv(suite / "prompts.csv")}
    if tuple(prompts) != rows.units:
        raise IntegrityError(f"{suite}: rows.csv and prompts.csv do not hold the same prompts")
    return Measured(n_layers, heldout, rows, tuple(prompts.values()), run, about)


def curves(path: Path, unit: str, quantities: Sequence[str], n_layers: int) -> Curves:
    """The curves of one CSV: one line for each unit, layer and lens.

    Raises:
        IntegrityError: missing, or not exactly one line for each.
    """
    rows = list(_read_csv(path))
    places = {name: place for place, name in enumerate(dict.fromkeys(row[unit] for row in rows))}
    # NaN marks both "no number here" and a lens that gave none: either is refused where a KPI needs it.
    filled = np.full((len(quantities), len(LENSES), len(places), n_layers + 1), np.nan)
    seen = np.zeros(filled.shape[1:], dtype=bool)
    for number, row in enumerate(rows, 2):
        try:
            cell = LENSES.index(row["lens"]), places[row[unit]], int(row["layer"])
            filled[:, *cell] = [float(row[quantity] or "nan") for quantity in quantities]
        except (TypeError, ValueError, IndexError) as error:
            raise IntegrityError(f"{path}:{number}: {error}") from None
        seen[cell] = True
    expected = len(places) * (len(NORMS) * (n_layers + 1) + n_layers)
    if seen.sum() != expected or len(rows) != expected:
        raise IntegrityError(
            f"{path}: {len(rows)} lines, but {len(places)} units at {n_layers} layers need {expected} different ones"
        )
    values = {lens: dict(zip(quantities, filled[:, i], strict=True)) for i, lens in enumerate(LENSES)}
    return Curves(tuple(places), n_layers, values)


def _read_csv(path: Path) -> Iterator[dict[str, str]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            yield from csv.DictReader(file)
    except FileNotFoundError:
        raise IntegrityError(f"{path}: missing") from None

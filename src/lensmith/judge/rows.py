"""What `sweep` and `suite` wrote, as arrays: one curve over depth for each unit, lens and quantity."""

import csv
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lensmith.judge import tables
from lensmith.judge.facts import RunFacts, SuiteFacts
from lensmith.judge.tables import (
    ALWAYS,
    DISTANCES,
    FIRST,
    OTHER_TEXT,
    POSITION_COLUMNS,
    RAW,
    RUNGS,
    TOKEN_RANKS,
    TUNED,
    Floats,
)
from lensmith.process.errors import IntegrityError


@dataclass(frozen=True)
class Curves:
    """Quantities of n units (prompts, sequences) at every row of every lens.

    `values[lens][quantity]` is (n, L + 1); NaN where the table has no number (a tuned lens has no row 0).
    """

    units: tuple[str, ...]
    n_layers: int
    values: Mapping[str, Mapping[str, Floats]]

    @property
    def lenses(self) -> tuple[str, ...]:
        return tuple(self.values)

    def at(self, lens: str, quantity: str) -> Floats:
        return self.values[lens][quantity]


@dataclass(frozen=True)
class Positions:
    """Held-out positions one by one: `values[lens]` is (n, len(POSITION_COLUMNS) - 4), in the order of its columns."""

    seq: NDArray[np.int64]  # (n,)
    part: NDArray[np.int64]  # (n,), of the context
    values: Mapping[str, Floats]

    def at(self, lens: str, column: str) -> Floats:
        return self.values[lens][:, POSITION_COLUMNS.index(column) - 4]


@dataclass(frozen=True)
class Changes:
    """What changes of a residual did to the answer, as far as the lenses said so: causal.csv."""

    seqs: NDArray[np.int64]  # (n,), of held-out text, one change a direction and layer
    cosine: Mapping[str, Mapping[int, Mapping[str, Floats]]]  # lens -> layer -> direction -> (n,)


class OtherText(NamedTuple):
    """What was measured of a text of corpus.also_heldout."""

    curves: Curves
    positions: Positions


@dataclass(frozen=True)
class Measured:
    """All that gates judge."""

    n_layers: int
    heldout: Curves
    positions: Positions
    also_heldout: Mapping[str, OtherText]  # by name
    changes: Changes
    suite: Curves
    prompts: tuple[Mapping[str, str], ...]  # rows of prompts.csv, in the order of suite.units
    run: RunFacts
    suite_facts: SuiteFacts

    @property
    def layers(self) -> list[int]:
        """The layers that the tuned lens reads: what is over layers is over these, for every lens."""
        return list(tables.layers(TUNED, self.n_layers, self.run.lens.absent))

    @property
    def rungs(self) -> tuple[str, ...]:
        """The smaller lenses that were measured on held-out text and on the suite."""
        return tuple(lens for lens in RUNGS if lens in self.heldout.lenses)


def read(sweep: Path, suite: Path) -> Measured:
    """Both folders, checked against each other.

    Raises:
        IntegrityError: a file is missing or cut short, or the folders speak of different lenses.
    """
    run, suite_facts = RunFacts.read(sweep / "run.json"), SuiteFacts.read(suite / "suite.json")
    n_layers, lenses = run.model_stats.num_layers, run.lenses
    for name, ours, other in (
        ("num_layers", n_layers, suite_facts.n_layers),
        ("lens", run.lens, suite_facts.lens),
        ("lenses", tuple(lens for lens in lenses if lens != RAW), suite_facts.lenses),  # the suite asks no raw lens
    ):
        if ours != other:
            raise IntegrityError(
                f"{sweep / 'run.json'} and {suite / 'suite.json'} measured different lenses: {name} is {ours} "
                f"and {other}. Run `dvc repro` so that both measure the same. No metrics were written."
            )
    absent = run.lens.absent
    heldout = curves(sweep / "heldout.csv", "seq", DISTANCES, n_layers, lenses, absent=absent)
    ranked = (*DISTANCES, *TOKEN_RANKS)
    rows = curves(suite / "rows.csv", "id", ranked, n_layers, suite_facts.lenses, absent=absent)
    prompts = {row["id"]: row for row in _read_csv(suite / "prompts.csv")}
    if tuple(prompts) != rows.units:
        raise IntegrityError(f"{suite}: rows.csv and prompts.csv do not hold the same prompts")
    found = positions(sweep / "positions.csv", run.heldout.n_positions, n_layers, lenses)
    others = {
        name: OtherText(
            curves(sweep / OTHER_TEXT[0].format(name), "seq", DISTANCES, n_layers, absent=absent),
            positions(sweep / OTHER_TEXT[1].format(name), text.n_positions, n_layers, ALWAYS),
        )
        for name, text in run.also_heldout.items()
    }
    changed = changes(sweep / "causal.csv")
    return Measured(n_layers, heldout, found, others, changed, rows, tuple(prompts.values()), run, suite_facts)


def curves(
    path: Path,
    unit: str,
    quantities: Sequence[str],
    n_layers: int,
    lenses: Sequence[str] = ALWAYS,
    *,
    absent: Collection[int],
) -> Curves:
    """The curves of one CSV: one line for each unit, layer and lens. `absent`: layers that the tuned lens lacks.

    Raises:
        IntegrityError: missing, or not exactly one line for each.
    """
    rows = list(_read_csv(path))
    places = {name: place for place, name in enumerate(dict.fromkeys(row[unit] for row in rows))}
    # NaN marks both "no number here" and a lens that gave none: either is refused where a KPI needs it.
    filled = np.full((len(quantities), len(lenses), len(places), n_layers + 1), np.nan)
    seen = np.zeros(filled.shape[1:], dtype=bool)
    for number, row in enumerate(rows, 2):
        try:
            cell = lenses.index(row["lens"]), places[row[unit]], int(row["layer"])
            filled[:, *cell] = [float(row[quantity] or "nan") for quantity in quantities]
        except (TypeError, ValueError, IndexError) as error:
            raise IntegrityError(f"{path}:{number}: {error}") from None
        seen[cell] = True
    expected = len(places) * sum(len(tables.layers(lens, n_layers, absent)) for lens in lenses)
    if seen.sum() != expected or len(rows) != expected:
        raise IntegrityError(
            f"{path}: {len(rows)} lines, but {len(places)} units at {n_layers} layers need {expected} different ones"
        )
    values = {lens: dict(zip(quantities, filled[:, i], strict=True)) for i, lens in enumerate(lenses)}
    return Curves(tuple(places), n_layers, values)


def positions(path: Path, n_positions: int, n_layers: int, lenses: Sequence[str]) -> Positions:
    """The lines of positions.csv; a row that is never reached becomes L + 1, a number that is missing NaN.

    Raises:
        IntegrityError: missing, or not one line for each position and lens.
    """
    where: dict[str, list[tuple[int, ...]]] = {lens: [] for lens in lenses}
    values: dict[str, list[list[float]]] = {lens: [] for lens in lenses}
    missing = {name: n_layers + 1 if name in FIRST else np.nan for name in POSITION_COLUMNS}
    for number, row in enumerate(_read_csv(path), 2):
        try:
            where[row["lens"]].append((int(row["seq"]), int(row["position"]), int(row["part"])))
            values[row["lens"]].append([float(row[name] or missing[name]) for name in POSITION_COLUMNS[4:]])
        except (TypeError, ValueError, KeyError) as error:
            raise IntegrityError(f"{path}:{number}: no line of a position ({error})") from None
    one = where[lenses[0]]
    if any(places != one for places in where.values()) or len(set(one)) != len(one) or len(one) != n_positions:
        raise IntegrityError(f"{path}: must hold each of {n_positions} positions once for each of {', '.join(lenses)}")
    seq, _, part = np.array(one, dtype=np.int64).reshape(-1, 3).T
    return Positions(seq, part, {lens: np.array(found) for lens, found in values.items()})


def changes(path: Path) -> Changes:
    """The lines of causal.csv. IntegrityError where it is missing, or not of the same sequences throughout."""
    cosine: dict[str, dict[int, dict[str, dict[int, float]]]] = {}
    for number, row in enumerate(_read_csv(path), 2):
        try:
            by_layer = cosine.setdefault(row["lens"], {}).setdefault(int(row["layer"]), {})
            by_layer.setdefault(row["direction"], {})[int(row["seq"])] = float(row["cosine"] or "nan")
        except (TypeError, ValueError, KeyError) as error:
            raise IntegrityError(f"{path}:{number}: no line of a change ({error})") from None
    by_seq = [values for by_layer in cosine.values() for cells in by_layer.values() for values in cells.values()]
    seqs = list(by_seq[0]) if by_seq else []
    if any(list(values) != seqs for values in by_seq):
        raise IntegrityError(f"{path}: must hold the same sequences for each lens, layer and direction")
    return Changes(
        np.array(seqs, dtype=np.int64),
        {
            lens: {
                layer: {direction: np.array(list(values.values())) for direction, values in cells.items()}
                for layer, cells in by_layer.items()
            }
            for lens, by_layer in cosine.items()
        },
    )


def _read_csv(path: Path) -> Iterator[dict[str, str]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            yield from csv.DictReader(file)
    except FileNotFoundError:
        raise IntegrityError(f"{path}: missing") from None

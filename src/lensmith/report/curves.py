"""Tables that `gates` and `plots` wrote for drawing: curves over depth, bars of earliness, curves of a fit."""

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lensmith.process import wording
from lensmith.process.errors import IntegrityError


@dataclass(frozen=True)
class Point:
    layer: int
    value: float | None  # None where it was not finite
    crossing: str = ""  # ranks that half of the answers reach here, such as "rank<=10/5"
    lo: float | None = None
    hi: float | None = None


@dataclass(frozen=True)
class Curves:
    """The curves of one quantity by lens, each in the order of its layers. Layers run from 0 to n_layers."""

    by_lens: dict[str, tuple[Point, ...]]

    @property
    def n_layers(self) -> int:
        return max((points[-1].layer for points in self.by_lens.values()), default=0)

    @property
    def lenses(self) -> list[str]:
        """The lenses that have a curve, in the order in which readers meet them."""
        return [lens for lens in wording.LENSES if lens in self.by_lens]

    def at(self, lens: str) -> tuple[Point, ...]:
        return self.by_lens.get(lens, ())

    def value(self, lens: str, layer: int) -> float | None:
        return next((point.value for point in self.at(lens) if point.layer == layer), None)


def read(path: Path, quantity: str) -> Curves:
    """A file of columns `layer,lens,<quantity>,crossing,lo,hi,guide`.

    Raises:
        IntegrityError: missing, other columns, or a line that is no point of a curve.
    """
    by_lens: dict[str, list[Point]] = {}
    for line, row in _rows(path, ("layer", "lens", quantity, "crossing", "lo", "hi", "guide")):
        if row["lens"] not in wording.LENSES:
            raise IntegrityError(f"{path}:{line}: lens is {row['lens']!r}, must be one of {', '.join(wording.LENSES)}")
        value, lo, hi = (_number(path, line, row[name]) for name in (quantity, "lo", "hi"))
        by_lens.setdefault(row["lens"], []).append(
            Point(_int(path, line, row["layer"]), value, row["crossing"], lo, hi)
        )
    return Curves({lens: tuple(sorted(points, key=lambda p: p.layer)) for lens, points in by_lens.items()})


def read_earliness(path: Path) -> dict[str, list[tuple[int, int]]]:
    """rank -> (layers earlier, prompts). Raises IntegrityError as `read` does."""
    found: dict[str, list[tuple[int, int]]] = {}
    for line, row in _rows(path, ("shift_layers", "rank", "prompts", "share_pct")):
        pair = _int(path, line, row["shift_layers"]), _int(path, line, row["prompts"])
        found.setdefault(row["rank"], []).append(pair)
    return found


def read_training(path: Path) -> dict[str, list[tuple[int, float | None]]]:
    """curve -> (positions trained on, KL in bits). Raises IntegrityError as `read` does."""
    found: dict[str, list[tuple[int, float | None]]] = {}
    for line, row in _rows(path, ("positions", "curve", "kl_bits", "best")):
        pair = _int(path, line, row["positions"]), _number(path, line, row["kl_bits"])
        found.setdefault(row["curve"], []).append(pair)
    return found


def _rows(path: Path, wanted: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            if tuple(reader.fieldnames or ()) != wanted:
                raise IntegrityError(f"{path}: its columns are {reader.fieldnames}, must be {list(wanted)}")
            for row in reader:
                if None in row.values() or None in row:
                    raise IntegrityError(f"{path}:{reader.line_num}: has not {len(wanted)} cells")
                yield reader.line_num, row
    except FileNotFoundError:
        raise IntegrityError(f"{path}: missing. `dvc repro` writes it.") from None


def _int(path: Path, line: int, text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise IntegrityError(f"{path}:{line}: {error}") from None


def _number(path: Path, line: int, text: str) -> float | None:
    """None for an empty cell, which stands for a number that was not finite."""
    try:
        value = float(text) if text else None
    except ValueError as error:
        raise IntegrityError(f"{path}:{line}: {error}") from None
    if value is not None and not math.isfinite(value):
        raise IntegrityError(f"{path}:{line}: is {text}, must be a finite number or empty")
    return value

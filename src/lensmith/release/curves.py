"""Curves over depth, as `gates` wrote them for plots: one value per layer and lens."""

import csv
import math
from dataclasses import dataclass
from pathlib import Path

from lensmith.errors import IntegrityError
from lensmith.release import wording

LENSES = tuple(wording.LENSES)


@dataclass(frozen=True)
class Point:
    layer: int
    value: float | None  # None where it was not finite
    crossing: str  # ranks that half of the answers reach here, such as "rank<=10/5"


@dataclass(frozen=True)
class Curves:
    """The curves of one quantity by lens, each in the order of its layers. Layers run from 0 to n_layers."""

    by_lens: dict[str, tuple[Point, ...]]

    @property
    def n_layers(self) -> int:
        return max((points[-1].layer for points in self.by_lens.values()), default=0)

    def at(self, lens: str) -> tuple[Point, ...]:
        return self.by_lens.get(lens, ())

    def value(self, lens: str, layer: int) -> float | None:
        return next((point.value for point in self.at(lens) if point.layer == layer), None)


def read(path: Path, quantity: str) -> Curves:
    """A file of columns `layer,lens,<quantity>,crossing`.

    Raises:
        IntegrityError: missing, other columns, or a line that is no point of a curve.
    """
    by_lens: dict[str, list[Point]] = {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            wanted = ["layer", "lens", quantity, "crossing"]
            if reader.fieldnames != wanted:
                raise IntegrityError(f"{path}: its columns are {reader.fieldnames}, must be {wanted}")
            for row in reader:
                by_lens.setdefault(row["lens"], []).append(_point(path, reader.line_num, row, quantity))
    except FileNotFoundError:
        raise IntegrityError(f"{path}: missing. `dvc repro` writes it.") from None
    return Curves({lens: tuple(sorted(points, key=lambda p: p.layer)) for lens, points in by_lens.items()})


def _point(path: Path, line: int, row: dict[str, str], quantity: str) -> Point:
    try:
        value = float(row[quantity]) if row[quantity] else None
        point = Point(int(row["layer"]), value, row["crossing"] or "")
    except (TypeError, ValueError) as error:
        raise IntegrityError(f"{path}:{line}: no point of a curve ({error})") from None
    if row["lens"] not in LENSES or (value is not None and not math.isfinite(value)):
        raise IntegrityError(f"{path}:{line}: no point of a curve (lens is {row['lens']!r}, {quantity} is {value})")
    return point

"""Tables that `gates` and `plots` wrote for drawing: curves over layers, of a fit and of ranks, bars of earliness."""

import csv
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lensmith.judge.rank_cost import RankCurves
from lensmith.process import wording
from lensmith.process.errors import IntegrityError

Earliness = dict[str, list[tuple[int, int]]]  # rank -> (layers by which the tuned lens is earlier, prompts)
Training = dict[str, list[tuple[int, float | None]]]  # curve -> (positions trained on, KL in bits)
Converter = Callable[[str], Any]  # of a cell; raises ValueError


@dataclass(frozen=True)
class Point:
    """One layer of a curve, with the interval around its value."""

    layer: int
    value: float | None  # None where it was not finite
    crossing: str = ""  # ranks that half of the answers reach here, such as "rank<=10/5"
    lo: float | None = None
    hi: float | None = None


@dataclass(frozen=True)
class LayerCurves:
    """One quantity over the layers, a curve for each lens. Layers run from 0 to n_layers."""

    by_lens: dict[str, tuple[Point, ...]]

    @property
    def n_layers(self) -> int:
        return max((points[-1].layer for points in self.by_lens.values()), default=0)

    @property
    def lenses(self) -> list[str]:
        """The lenses that have a curve, in the order in which the page shows them."""
        return [lens for lens in wording.LENSES if lens in self.by_lens]

    def points(self, lens: str) -> tuple[Point, ...]:
        """The lens's curve from its first layer up; empty where the lens was not measured."""
        return self.by_lens.get(lens, ())

    def value(self, lens: str, layer: int) -> float | None:
        """The lens's value at a layer; None where there is none."""
        return next((point.value for point in self.points(lens) if point.layer == layer), None)


def read_layers(path: Path, quantity: str) -> LayerCurves:
    """A file of columns `layer,lens,<quantity>,crossing,lo,hi,guide`.

    Raises:
        IntegrityError: missing, other columns, or a line that is no point of a curve.
    """
    columns: dict[str, Converter] = {
        "layer": int, "lens": _lens, quantity: _number, "crossing": str, "lo": _number, "hi": _number, "guide": str,
    }  # fmt: skip
    by_lens: dict[str, list[Point]] = {}
    for layer, lens, value, crossing, lo, hi, _ in _rows(path, columns):
        by_lens.setdefault(lens, []).append(Point(layer, value, crossing, lo, hi))
    return LayerCurves({lens: tuple(sorted(points, key=lambda p: p.layer)) for lens, points in by_lens.items()})


def read_earliness(path: Path) -> Earliness:
    """A file of columns `shift_layers,rank,prompts,share_pct`. Raises IntegrityError as `read_layers` does."""
    prompts_by_rank: Earliness = {}
    for shift, rank, prompts, _ in _rows(
        path, {"shift_layers": int, "rank": str, "prompts": int, "share_pct": _number}
    ):
        prompts_by_rank.setdefault(rank, []).append((shift, prompts))
    return prompts_by_rank


def read_training(path: Path) -> Training:
    """A file of columns `positions,curve,kl_bits,best`. Raises IntegrityError as `read_layers` does."""
    by_curve: Training = {}
    for positions, curve, bits, _ in _rows(path, {"positions": int, "curve": str, "kl_bits": _number, "best": str}):
        by_curve.setdefault(curve, []).append((positions, bits))
    return by_curve


def read_ranks(path: Path) -> RankCurves:
    """A file of columns `rank,curve,kl_bits`. Raises IntegrityError as `read_layers` does."""
    by_curve: dict[str, list[tuple[int, float]]] = {}
    for rank, curve, bits in _rows(path, {"rank": int, "curve": str, "kl_bits": float}):
        by_curve.setdefault(curve, []).append((rank, bits))
    return by_curve


def _rows(path: Path, columns: Mapping[str, Converter]) -> Iterator[tuple[Any, ...]]:
    """The lines of a CSV that has exactly these columns, each cell converted by its column's function."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.reader(file)
            header = next(reader, [])
            if header != list(columns):
                raise IntegrityError(f"{path}: its columns are {header}, must be {list(columns)}")
            for cells in reader:
                try:
                    yield tuple(convert(cell) for convert, cell in zip(columns.values(), cells, strict=True))
                except ValueError as error:
                    raise IntegrityError(f"{path}:{reader.line_num}: {error}") from None
    except FileNotFoundError:
        raise IntegrityError(f"{path}: missing. `dvc repro` writes it.") from None


def _lens(cell: str) -> str:
    if cell not in wording.LENSES:
        raise ValueError(f"lens is {cell!r}, must be one of {', '.join(wording.LENSES)}")
    return cell


def _number(cell: str) -> float | None:
    """None for an empty cell, which stands for a number that was not finite."""
    value = float(cell) if cell else None
    if value is not None and not math.isfinite(value):
        raise ValueError(f"is {cell}, must be a finite number or empty")
    return value

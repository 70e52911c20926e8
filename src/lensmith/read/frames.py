"""Tables that a lab and its commands write, as pandas frames: `lensmith.frames`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from lensmith.files import artifacts
from lensmith.lab import experiments
from lensmith.lab.layout import METRICS, PARAMS
from lensmith.process.errors import InputError

TABLES = (".csv", ".parquet")


def frames(path: str | Path) -> dict[str, pd.DataFrame]:
    """`lensmith.frames`, which says what the arguments and errors are."""
    place = Path(path)
    if place.is_file():
        return dict(_tables([place], place))
    if not place.is_dir():
        raise InputError(f"{place}: no such file or folder. Nothing was read.")
    if (place / PARAMS).exists():
        variants = [
            {"variant": variant.name, "model": model, **variant.settings.get(model, {}), **metrics}
            for variant in experiments.read(place).variants
            for model, metrics in variant.metrics.items()
        ]
        return {"metrics": _metrics(sorted((place / METRICS).glob("*.json"))), "experiments": pd.DataFrame(variants)}
    files = sorted(place.iterdir())
    if place.name == METRICS.name:
        return {"metrics": _metrics([file for file in files if file.suffix == ".json"])}
    return dict(_tables([file for file in files if file.suffix in TABLES], place))


def _tables(files: list[Path], place: Path) -> Iterator[tuple[str, pd.DataFrame]]:
    for file in files:
        if file.suffix == ".parquet":
            yield file.stem, pd.read_parquet(file)
        elif file.suffix == ".csv":
            # A token may be `null` or `NA`: only an empty cell is none.
            yield file.stem, pd.read_csv(file, keep_default_na=False, na_values=[""])
        elif file.suffix == ".json":
            yield file.stem, _metrics([file])
    if not any(file.suffix in (*TABLES, ".json") for file in files):
        raise InputError(f"{place}: holds no table, .csv, .parquet or metrics. Nothing was read.")


def _metrics(files: list[Path]) -> pd.DataFrame:
    """A row for each model."""
    rows: list[dict[str, Any]] = [{"model": file.stem, **artifacts.read_json(file)} for file in files]
    return pd.DataFrame(rows)

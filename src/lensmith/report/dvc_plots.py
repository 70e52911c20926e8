"""Puts the palette's colours and axes of bits into the chart templates that `dvc plots` reads.

    python -m lensmith.report.dvc_plots [FOLDER]

FOLDER is .dvc/plots by default. DVC reads static JSON: run this after an edit of the palette or of a template. A test
fails until it has run.
"""

import json
import sys
from pathlib import Path
from typing import Any

from lensmith.files import artifacts
from lensmith.report import palette

# Template -> (values in their order, colours) of its colour channel; no values: in the order of the data.
SCALES: dict[str, tuple[list[str], list[str]]] = {
    "depth": (list(palette.LENSES), list(palette.LENSES.values())),
    "bits": (list(palette.LENSES), list(palette.LENSES.values())),
    "earliness": ([f"rank ≤ {rank}" for rank in palette.ANSWER_RANKS], list(palette.ANSWER_RANKS.values())),
    "overview": ([], list(palette.SERIES)),
    "percentiles": ([str(percent) for percent in palette.PERCENTILES], list(palette.PERCENTILES.values())),
    "ranks": (list(palette.RANK_CURVES), list(palette.RANK_CURVES.values())),
    "training": (list(palette.TRAINING), list(palette.TRAINING.values())),
}


COPIES = {"bits": "depth"}  # template -> the one that it repeats, with an axis of bits
OF_BITS = ("bits", "overview")
TICKS = [0, 0.5, *(2**power for power in range(9))]  # bits


def coloured(name: str, template: dict[str, Any]) -> dict[str, Any]:
    """The template `name`, a Vega-Lite specification, with the palette's colours in it."""
    values, colours = SCALES[name]
    channel = template["encoding"]["color"]
    channel |= {"scale": {"range": colours}} | ({"sort": values} if values else {})
    for layer in template.get("layer", ()):
        if "color" in layer.get("encoding", ()):  # the guides at the depths that gates read
            layer["encoding"]["color"] = {"value": palette.GUIDE}
    return template


def with_bits(template: dict[str, Any]) -> dict[str, Any]:
    """The template with y drawn as log(1 + y): a lens can be a hundred bits off where others are a few, or at zero."""
    for part in (template, *template.get("layer", ())):
        if "field" in (y := part.get("encoding", {}).get("y", {})):
            y |= {"scale": {"type": "symlog", "constant": 1}, "axis": {"values": TICKS, "format": "~g"}}
    return template


def text(name: str, template: dict[str, Any]) -> str:
    """The template's file, from the one that stands there or that it copies."""
    drawn = coloured(name, template)
    return json.dumps(with_bits(drawn) if name in OF_BITS else drawn, indent=2) + "\n"


def main() -> None:
    """Write every template of a folder again."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".dvc/plots")
    for name in SCALES:
        template = artifacts.read_json(folder / f"{COPIES.get(name, name)}.json")
        artifacts.write_text(folder / f"{name}.json", text(name, template))


if __name__ == "__main__":
    main()

"""Trajectory heat maps: layer by position, the top token in each cell, its first five on hover.

`figure` draws both lenses in one Plotly figure for a notebook. The report page draws the same from the same packed
readings (`judge/readings.py`), the choices of colour and the labels below; its script only puts them in place.
"""

import html
import math
import unicodedata
from dataclasses import asdict, dataclass
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lensmith.process import wording
from lensmith.process.errors import InputError
from lensmith.report import palette

CELL, ROW = 64, 24  # pixels
SIGNS = {"\n": "⏎", "\t": "⇥", "\x7f": "␡", " ": " "}
UNSEEN = ("Cf", "Cc", "Co", "Cs", "Cn")  # Unicode's classes of signs that are no letters, and of none at all
SHORT, LONG = 9, 40  # characters of a token in a cell, and on hover


@dataclass(frozen=True)
class Colour:
    """What colours the cells. z = key's numbers / divisor, or log10(1 + number)."""

    title: str
    key: str  # in the packed readings
    divisor: int
    logarithmic: bool
    low_is_near: bool


COLOURS = {
    "kl": Colour("KL to the final answer, bits", "kl", 100, False, True),
    "entropy": Colour("entropy of the reading, bits", "entropy", 100, False, True),
    "rank": Colour("rank of the model's own answer", "rank", 1, True, True),
    "probability": Colour("probability of the model's own answer", "p_final", 1000, False, False),
}


def choices() -> dict[str, dict[str, Any]]:
    """The choices of colour as plain data for the page."""
    scale = [list(stop) for stop in palette.HEAT]
    turned = [[1 - place, colour] for place, colour in reversed(palette.HEAT)]
    return {name: asdict(c) | {"scale": turned if c.low_is_near else scale} for name, c in COLOURS.items()}


def label(word: str, limit: int) -> str:
    """A token as one short line: what cannot be seen is shown by a sign, and no sign changes what stands around it."""
    text = word.strip(" ") or "␣" * max(1, len(word))
    shown = "".join(_visible(c) for c in text.replace("\r\n", "\n"))
    if len(shown) > limit:
        shown = shown[: limit - 1] + "…"
    # Isolated: a token that is written from right to left would turn the line around it.
    turned = any(unicodedata.bidirectional(c) in ("R", "AL", "AN") for c in shown)
    return f"\u2068{shown}\u2069" if turned else shown


def _visible(char: str) -> str:
    if char in SIGNS:
        return SIGNS[char]
    if ord(char) < 0x20:
        return chr(0x2400 + ord(char))  # the escape of a terminal's colours becomes its sign
    if char.isspace():
        return "␣"
    return f"⟨{ord(char):X}⟩" if unicodedata.category(char) in UNSEEN else char


def labels(words: list[str], limit: int) -> list[str]:
    """Tokens for Plotly, which reads a few HTML tags: escaped."""
    return [html.escape(label(word, limit), quote=False) for word in words]


def figure(packed: dict[str, Any], colour: str) -> go.Figure:
    """Both lenses side by side, from packed readings.

    Raises:
        InputError: there is no such choice of colour.
    """
    if colour not in COLOURS:
        raise InputError(f"figure: colour is {colour!r}, must be one of {', '.join(COLOURS)}")
    choice, lenses = COLOURS[colour], packed["lenses"]
    names = [wording.lens(name) for name in lenses]
    drawn = make_subplots(cols=len(lenses), shared_yaxes=True, horizontal_spacing=0.03, subplot_titles=names)
    values = {name: _z(reading, choice) for name, reading in lenses.items()}
    top = max(max(row) for rows in values.values() for row in rows) or 1
    shared = {"zmin": 0, "zmax": top, "colorscale": choices()[colour]["scale"]}
    shared["colorbar"] = {"title": {"text": choice.title, "side": "right"}, **_ticks(choice, top)}
    for column, name in enumerate(lenses, 1):
        cells = _cells(packed, lenses[name])
        drawn.add_heatmap(z=values[name], showscale=column == len(lenses), **cells, **shared, row=1, col=column)
    short = labels(packed["words"], SHORT)
    tokens = [short[place] for place in packed["tokens"]]
    bare = {"showgrid": False, "zeroline": False}
    drawn.update_xaxes(tickvals=list(range(len(tokens))), ticktext=tokens, tickangle=-45, **bare)
    drawn.update_yaxes(dtick=1, **bare)
    drawn.update_yaxes(title="layer", col=1)
    width, rows = 160 + len(lenses) * max(4, len(tokens)) * CELL, max(len(rows) for rows in values.values())
    margin = {"l": 50, "r": 20, "t": 40, "b": 70}
    return drawn.update_layout(template="none", width=width, height=130 + rows * ROW, margin=margin)


def _cells(packed: dict[str, Any], reading: dict[str, Any]) -> dict[str, Any]:
    """What a heat map shows beside its colours."""
    short = labels(packed["words"], SHORT)
    return {
        "x": list(range(len(packed["tokens"]))),
        "y": _layers(reading),
        "text": [[short[cell[0]] for cell in row] for row in reading["top"]],
        "texttemplate": "%{text}",
        "textfont": {"size": 11},
        "hovertext": _hover(packed, reading),
        "hovertemplate": "%{hovertext}<extra></extra>",
        "xgap": 1,
        "ygap": 1,
    }


def _layers(reading: dict[str, Any]) -> list[int]:
    return [reading["first_row"] + row for row in range(len(reading["kl"]))]


def _z(reading: dict[str, Any], choice: Colour) -> list[list[float]]:
    def value(number: int) -> float:
        return math.log10(1 + number) if choice.logarithmic else number / choice.divisor

    return [[value(number) for number in row] for row in reading[choice.key]]


def _ticks(choice: Colour, top: float) -> dict[str, Any]:
    """Ranks count from 1 for readers, and their colours go by decades."""
    if not choice.logarithmic:
        return {}
    decades = range(math.floor(top) + 1)
    return {"tickvals": list(decades), "ticktext": [f"{10**decade:,}" for decade in decades]}


def _hover(packed: dict[str, Any], reading: dict[str, Any]) -> list[list[str]]:
    """Of each cell: where it is, the likeliest tokens, the numbers."""
    long = labels(packed["words"], LONG)
    answers = [long[cell[0]] for cell in reading["top"][-1]]  # both lenses are the model at the last layer
    tokens = [long[place] for place in packed["tokens"]]

    def cell(row: int, pos: int) -> str:
        pairs = zip(reading["top"][row][pos], reading["p"][row][pos], strict=True)
        rank, p_final = reading["rank"][row][pos] + 1, chance(reading["p_final"][row][pos])
        kl, entropy = reading["kl"][row][pos] / 100, reading["entropy"][row][pos] / 100
        lines = [f"layer {reading['first_row'] + row}, after {tokens[pos]}"]
        lines += [f"{long[token]}  {chance(p)}" for token, p in pairs]
        lines += [f"KL {kl:.2f} bits, entropy {entropy:.2f} bits"]
        return "<br>".join([*lines, f"the model's {answers[pos]}: rank {rank}, {p_final}"])

    return [[cell(row, pos) for pos in range(len(tokens))] for row in range(len(reading["top"]))]


def chance(per_mille: int) -> str:
    return f"{per_mille / 10:.1f} %" if per_mille else "&lt; 0.1 %"

"""Trajectory heat maps: layer by position, the top token in each cell, its first five on hover.

`figure` draws both lenses in one Plotly figure for a notebook. The report page draws the same from the same packed
readings (`Readings.packed` in judge), the choices of colour and the labels below; its script only puts them in place.
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

CELL_WIDTH, CELL_HEIGHT = 64, 24  # pixels
SIGNS = {"\n": "⏎", "\t": "⇥", "\x7f": "␡", " ": " "}
UNSEEN = ("Cf", "Cc", "Co", "Cs", "Cn")  # Unicode categories: format, control, private, surrogate, unassigned
SHORT, LONG = 9, 40  # characters of a token in a cell, and on hover


@dataclass(frozen=True)
class CellColour:
    """What colours the cells: `key`'s numbers / divisor, or the logarithm of one more than that."""

    title: str
    key: str  # in the packed readings
    divisor: int
    logarithmic: bool
    low_is_near: bool
    first: int = 0  # what readers count the packed zero as

    def value(self, number: int) -> float:
        """The number on the colour scale, from its packed form."""
        return math.log10(1 + number / self.divisor) if self.logarithmic else number / self.divisor

    def ticks(self, top: float) -> dict[float, str]:
        """Place on a logarithmic colour scale up to `top` -> the number that readers see: the first, and decades."""
        shown = sorted({self.first, *(10**decade for decade in range(math.floor(top) + 1))})
        return {place: f"{n:,}" for n in shown if (place := math.log10(1 + n - self.first)) <= top}

    @property
    def scale(self) -> list[tuple[float, str]]:
        """(share of the scale, colour), with yellow where a lens is near the model."""
        if self.low_is_near:
            return [(1 - share, colour) for share, colour in reversed(palette.HEAT)]
        return list(palette.HEAT)


CELL_COLOURS = {
    "kl": CellColour("KL to the final answer, bits", "kl", 100, True, True),
    "entropy": CellColour("entropy of the reading, bits", "entropy", 100, False, True),
    "rank": CellColour("rank of the model's own answer", "rank", 1, True, True, first=1),
    "probability": CellColour("probability of the model's own answer", "p_final", 1000, False, False),
}


def colours_as_data() -> list[tuple[str, dict[str, Any]]]:
    """(name, CELL_COLOURS as plain data) for the page's script."""
    return [
        (name, asdict(colour) | {"scale": colour.scale, "difference": palette.DIFFERENCE})
        for name, colour in CELL_COLOURS.items()
    ]


def label(word: str, limit: int) -> str:
    """A token as one short line: signs stand for invisible characters, and no character acts on the text around it."""
    text = word.strip(" ") or "␣" * max(1, len(word))
    visible = "".join(_visible(char) for char in text.replace("\r\n", "\n"))
    if len(visible) > limit:
        visible = visible[: limit - 1] + "…"
    # Isolated: a token that is written from right to left would turn the line around it.
    right_to_left = any(unicodedata.bidirectional(char) in ("R", "AL", "AN") for char in visible)
    return f"\u2068{visible}\u2069" if right_to_left else visible


def _visible(char: str) -> str:
    if char in SIGNS:
        return SIGNS[char]
    if ord(char) < 0x20:
        return chr(0x2400 + ord(char))  # the escape of a terminal's colours becomes its sign
    if char.isspace():
        return "␣"
    return f"⟨{ord(char):X}⟩" if unicodedata.category(char) in UNSEEN else char


def labels(words: list[str], limit: int) -> list[str]:
    """Tokens as labels for Plotly, which reads a few HTML tags: escaped."""
    return [html.escape(label(word, limit), quote=False) for word in words]


def figure(packed: dict[str, Any], colour: str) -> go.Figure:
    """Both lenses side by side, from packed readings.

    Args:
        packed: what `Readings.packed` gives.
        colour: a name in CELL_COLOURS.

    Raises:
        InputError: there is no such colour.
    """
    if colour not in CELL_COLOURS:
        raise InputError(f"figure: colour is {colour!r}, must be one of {', '.join(CELL_COLOURS)}")
    chosen, lenses, short = CELL_COLOURS[colour], packed["lenses"], labels(packed["words"], SHORT)
    values = {
        name: [[chosen.value(number) for number in layer] for layer in reading[chosen.key]]
        for name, reading in lenses.items()
    }
    top = max(max(layer) for layers in values.values() for layer in layers) or 1
    colourbar: dict[str, Any] = {"title": {"text": chosen.title, "side": "right"}}
    if chosen.logarithmic:
        ticks = chosen.ticks(top)
        colourbar |= {"tickvals": list(ticks), "ticktext": list(ticks.values())}

    tokens = [short[place] for place in packed["tokens"]]
    drawn = make_subplots(
        cols=len(lenses), shared_yaxes=True, horizontal_spacing=0.03, subplot_titles=[wording.lens(n) for n in lenses]
    )
    for column, (name, reading) in enumerate(lenses.items(), 1):
        drawn.add_heatmap(
            x=list(range(len(tokens))), y=reading["layers"],
            z=values[name],
            text=[[short[cell[0]] for cell in layer] for layer in reading["top"]], texttemplate="%{text}",
            textfont={"size": 11}, hovertext=_hover(packed, reading), hovertemplate="%{hovertext}<extra></extra>",
            xgap=1, ygap=1, zmin=0, zmax=top, colorscale=chosen.scale, colorbar=colourbar,
            showscale=column == len(lenses), row=1, col=column,
        )  # fmt: skip
    bare = {"showgrid": False, "zeroline": False}
    drawn.update_xaxes(tickvals=list(range(len(tokens))), ticktext=tokens, tickangle=-45, **bare)
    drawn.update_yaxes(dtick=1, **bare)
    drawn.update_yaxes(title="layer", col=1)
    n_layers = max(len(layers) for layers in values.values())
    return drawn.update_layout(
        template="none",
        width=160 + len(lenses) * max(4, len(tokens)) * CELL_WIDTH,
        height=130 + n_layers * CELL_HEIGHT,
        margin={"l": 50, "r": 20, "t": 40, "b": 70},
    )


def _hover(packed: dict[str, Any], reading: dict[str, Any]) -> list[list[str]]:
    """For each cell: its layer and token, the likeliest next tokens, the numbers."""
    long = labels(packed["words"], LONG)
    answers = [long[cell[0]] for cell in reading["top"][-1]]  # both lenses are the model at the last layer
    tokens = [long[place] for place in packed["tokens"]]

    def cell(index: int, pos: int) -> str:
        likeliest = zip(reading["top"][index][pos], reading["p"][index][pos], strict=True)
        kl, entropy = (reading[name][index][pos] / 100 for name in ("kl", "entropy"))
        rank, p_final = reading["rank"][index][pos] + 1, _percent(reading["p_final"][index][pos])
        return "<br>".join([
            f"layer {reading['layers'][index]}, after {tokens[pos]}",
            *(f"{long[token]}  {_percent(p)}" for token, p in likeliest),
            f"KL {kl:.2f} bits, entropy {entropy:.2f} bits",
            f"the model's {answers[pos]}: rank {rank}, {p_final}",
        ])  # fmt: skip

    return [[cell(index, pos) for pos in range(len(tokens))] for index in range(len(reading["top"]))]


def _percent(per_mille: int) -> str:
    return f"{per_mille / 10:.1f} %" if per_mille else "&lt; 0.1 %"

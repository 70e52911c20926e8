"""The page's charts, as Plotly figures in plain JSON.

Colours of lines are of middle lightness and read well on white and on black; those of text and grid follow the
reader's colour scheme, and are set by the page.
"""

import html
import json
from typing import Any

import plotly.graph_objects as go

from lensmith.judge.judgement import Estimate, Judgement
from lensmith.lens.depth import PERCENTILES
from lensmith.process import wording
from lensmith.report import palette
from lensmith.report.curves import Curves, Point

CROSSED = ("norm", "tuned")  # lenses whose first ranks are marked
DASHES = ("solid", "dash", "dot", "dashdot")
WIDE, HALF = 400, 320  # pixels

Bars = dict[str, list[tuple[int, int]]]
Training = dict[str, list[tuple[int, float | None]]]


def kl(curves: Curves, judgement: Judgement) -> dict[str, Any]:
    """KL(final, lens) over layers; where half of the answers reach a rank; guides at the depths that gates read."""
    figure = _depth(curves, judgement, "KL to the final answer, bits")
    top = max((p.value for lens in curves.lenses for p in curves.at(lens) if p.value is not None), default=1.0)
    figure.update_yaxes(
        range=[-0.12 * top, 1.05 * top], zeroline=False
    )  # room for the words below the last layers' diamonds
    return _plain(figure, WIDE)


def cosine(curves: Curves, judgement: Judgement) -> dict[str, Any]:
    """Cosine of the lens's and the final logits over layers."""
    # Five names in a narrow chart leave no room for the lines; they are the first chart's.
    return _plain(
        _depth(curves, judgement, "cosine with the final logits", words=False).update_layout(showlegend=False), HALF
    )


def gains(judgement: Judgement) -> dict[str, Any] | None:
    """Bars of KL(norm) - KL(tuned) with intervals and the limits of gate A. None where nothing was measured."""
    series = (
        ("suite prompts, median", "median", palette.LENSES["tuned"]),
        ("held-out text, mean", "heldout", palette.TUNED_PALE),
    )
    depths = [f"{p} %" for p in PERCENTILES]
    figure = go.Figure()
    for label, prefix, colour in series:
        estimates = [judgement.estimate(f"{prefix}_delta_kl_bits_{p}") for p in PERCENTILES]
        if any(e.value is not None for e in estimates):
            hover = f"{label}<br>%{{y:.3f}} bits at %{{x}}<extra></extra>"
            y, error_y = [e.value for e in estimates], whiskers(estimates)
            figure.add_bar(x=depths, y=y, error_y=error_y, name=label, marker={"color": colour}, hovertemplate=hover)
    if not figure.data:
        return None
    limits = [check.limit for check in judgement.gate("A").checks]
    marker = {"symbol": "line-ew", "size": 44, "line": {"width": 2.5, "color": palette.LIMIT}}
    hover = "limit %{y} bits<extra></extra>"
    figure.add_scatter(x=depths, y=limits, name="limit of gate A", mode="markers", marker=marker, hovertemplate=hover)
    figure.update_layout(bargap=0.35, bargroupgap=0.08, barcornerradius=3)
    figure.update_xaxes(title="depth", type="category")
    figure.update_yaxes(title="KL saved, bits", zeroline=True, rangemode="tozero")
    return _plain(figure, HALF)


def ladder(judgement: Judgement) -> dict[str, Any] | None:
    """Bars of the KL that each kind of lens leaves at three depths, with intervals. None where none was measured."""
    depths = [f"{p} %" for p in PERCENTILES]
    figure = go.Figure()
    for rung in judgement.rungs:
        # The lens that is judged has a kind of its own where it is not one that it is compared with.
        colour = palette.LENSES.get({"identity": "norm"}.get(rung.kind, rung.kind), palette.LENSES["tuned"])
        name = html.escape(rung.name, quote=False)
        hover = f"{name}<br>%{{y:.3f}} bits left at %{{x}}<extra></extra>"
        y, error_y = [e.value for e in rung.kl], whiskers(list(rung.kl))
        figure.add_bar(x=depths, y=y, error_y=error_y, name=name, marker={"color": colour}, hovertemplate=hover)
    if not figure.data:
        return None
    figure.update_layout(bargap=0.25, bargroupgap=0.08, barcornerradius=3)
    figure.update_xaxes(title="depth", type="category")
    figure.update_yaxes(title="KL to the final answer, bits", rangemode="tozero")
    return _plain(figure, HALF)


def earliness(bars: Bars) -> dict[str, Any] | None:
    """How many layers sooner the tuned lens has the answer within a rank: prompts by layers. None without prompts."""
    figure = go.Figure()
    for (rank, pairs), colour in zip(bars.items(), palette.ANSWER_RANKS.values(), strict=False):
        layers, prompts = zip(*pairs, strict=True)
        name = html.escape(rank, quote=False)
        hover = f"{name}<br>%{{y}} prompts, %{{x}} layers earlier<extra></extra>"
        figure.add_bar(x=layers, y=prompts, name=name, marker={"color": colour}, hovertemplate=hover)
    if not figure.data:
        return None
    figure.update_layout(bargap=0.2, bargroupgap=0.05, barcornerradius=2)
    figure.add_vline(x=0, line={"color": palette.GUIDE, "width": 1, "dash": "dot"}, opacity=0.55, layer="below")
    figure.update_xaxes(title="layers earlier than the norm lens (negative: later)")
    figure.update_yaxes(title="prompts")
    return _plain(figure, HALF)


def training(curves: Training) -> dict[str, Any] | None:
    """KL over the positions that the fit trained on. None where it logged nothing."""
    figure = go.Figure()
    for curve, pairs in curves.items():
        positions, bits = zip(*pairs, strict=True)
        name, is_training = html.escape(curve, quote=False), curve == "training"
        colour = palette.TRAINING.get(curve, palette.GUIDE)
        line = {"color": colour, "width": 2, "dash": "dot" if is_training else "solid"}
        figure.add_scatter(x=positions, y=bits, name=name, mode="lines+markers", line=line, marker={"size": 4},
                           hovertemplate=f"{name}<br>%{{y:.3f}} bits, %{{x:,}} positions<extra></extra>")  # fmt: skip
    if not figure.data:
        return None
    figure.update_xaxes(title="positions trained on")
    figure.update_yaxes(title="KL to the final answer, bits", rangemode="tozero")
    return _plain(figure, HALF)


def overview(models: dict[str, Curves]) -> dict[str, Any]:
    """Tuned curves of all models over relative depth."""
    figure = go.Figure()
    for place, (key, curves) in enumerate(models.items()):
        name = html.escape(key, quote=False)  # Plotly reads a few HTML tags in names
        dash = DASHES[place // len(palette.SERIES) % len(DASHES)]
        line = {"color": palette.SERIES[place % len(palette.SERIES)], "width": 2.5, "dash": dash}
        points = curves.at("tuned")
        x = [100 * point.layer / curves.n_layers for point in points]
        y = [point.value for point in points]
        figure.add_scatter(x=x, y=y, name=name, mode="lines+markers", line=line, marker={"size": 5},
                           hovertemplate=f"{name}<br>%{{y:.3f}} bits at %{{x:.0f}} % depth<extra></extra>")  # fmt: skip
    figure.update_xaxes(title="depth, % of layers", range=[0, 102])
    figure.update_yaxes(title="KL to the final answer, bits", rangemode="tozero")
    for percent in PERCENTILES:
        _guide(figure, percent, f"{percent} %")
    return _plain(figure, WIDE)


def _depth(curves: Curves, judgement: Judgement, title: str, *, words: bool = True) -> go.Figure:
    figure = go.Figure()
    for lens in curves.lenses:
        points, name, colour = curves.at(lens), wording.lens(lens), palette.LENSES[lens]
        _band(figure, points, colour)
        x, y = [p.layer for p in points], [p.value for p in points]
        figure.add_scatter(x=x, y=y, name=name, mode="lines+markers", line={"color": colour, "width": 2.5},
                           marker={"size": 5}, hovertemplate=_hover(name))  # fmt: skip
        if lens in CROSSED:
            _crossings(figure, lens, [p for p in points if p.crossing and p.value is not None], words=words)
    L = curves.n_layers
    for percent in PERCENTILES:
        # The layer that the gates read, not the exact share: a quarter of six layers is read at layer 2.
        _guide(figure, judgement.layers[percent], f"{percent} %")
    figure.update_xaxes(title="layer", range=[-0.02 * L, L + 0.5], tick0=0, dtick=_tick(L))
    figure.update_yaxes(title=title)
    return figure


def _band(figure: go.Figure, points: tuple[Point, ...], colour: str) -> None:
    """The interval around a curve."""
    known = [p for p in points if p.lo is not None and p.hi is not None]
    x = [p.layer for p in known]
    figure.add_scatter(x=x + x[::-1], y=[p.hi for p in known] + [p.lo for p in reversed(known)], fill="toself",
                       fillcolor=colour, opacity=0.18, line={"width": 0}, mode="lines", hoverinfo="skip",
                       showlegend=False)  # fmt: skip


def _crossings(figure: go.Figure, lens: str, points: list[Point], *, words: bool) -> None:
    """Diamonds where half of the answers have reached a rank; words on the side where the other curve is not."""
    ranks = [html.escape(p.crossing.replace("rank<=", "≤ ").replace("/", ", "), quote=False) for p in points]
    side: str | list[str] = "top right"
    if lens == "tuned":
        # The words spread out: on a narrow page neighbouring layers are closer than a word is wide.
        side = ["bottom left", *["bottom center"] * (len(points) - 2), "bottom right"][: len(points)]
    figure.add_scatter(
        x=[point.layer for point in points], y=[point.value for point in points], text=ranks, showlegend=False,
        mode="markers+text" if words else "markers", textposition=side,
        textfont={"color": palette.LENSES[lens], "size": 12}, cliponaxis=False,
        marker={"symbol": "diamond", "size": 12, "color": palette.LENSES[lens]},
        hovertemplate=f"{wording.lens(lens)}: half of the answers at rank %{{text}}<br>by layer %{{x}}<extra></extra>",
    )  # fmt: skip


def whiskers(estimates: list[Estimate]) -> dict[str, Any]:
    """Intervals as error bars; none where there is no interval."""
    above = [e.hi - e.value if e.hi is not None and e.value is not None else 0 for e in estimates]
    below = [e.value - e.lo if e.lo is not None and e.value is not None else 0 for e in estimates]
    return {"type": "data", "array": above, "arrayminus": below, "thickness": 1.5, "width": 5, "color": palette.WHISKER}


def _guide(figure: go.Figure, x: float, label: str) -> None:
    figure.add_vline(x=x, line={"color": palette.GUIDE, "width": 1, "dash": "dot"}, opacity=0.55, layer="below")
    figure.add_annotation(x=x, y=1, yref="paper", yanchor="bottom", text=label, showarrow=False, font={"size": 11})


def _tick(n_layers: int) -> int:
    """Layers between two labels: about ten labels, the last layer among them where that is possible."""
    enough = [step for step in range(1, n_layers + 1) if n_layers / step <= 12]
    return next((step for step in enough[:4] if n_layers % step == 0), enough[0] if enough else 1)


def _hover(name: str) -> str:
    return f"{name}<br>%{{y:.3f}} at layer %{{x}}<extra></extra>"


def _plain(figure: go.Figure, height: int) -> dict[str, Any]:
    figure.update_layout(
        template="none",
        height=height,
        autosize=True,
        margin={"l": 56, "r": 34, "t": 30, "b": 46},
        paper_bgcolor=palette.TRANSPARENT,
        plot_bgcolor=palette.TRANSPARENT,
        font={"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 13},
        legend={"orientation": "h", "x": 0, "xanchor": "left", "y": 1.07, "yanchor": "bottom"},
        dragmode=False,
        hovermode="closest",
    )
    figure.update_xaxes(
        showgrid=False, zeroline=False, ticks="outside", ticklen=4, title_font_size=12.5, title_standoff=8
    )
    figure.update_yaxes(showgrid=True, ticks="", title_font_size=12.5)
    plain: dict[str, Any] = json.loads(figure.to_json())
    return plain

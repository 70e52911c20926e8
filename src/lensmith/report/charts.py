"""The report page's charts, as Plotly figures in plain JSON.

Lines keep their colours in light and dark pages; the page's script sets those of text and grid.
"""

import html
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from lensmith.judge.judgement import Estimate, Judgement
from lensmith.judge.rank_cost import RankCurves
from lensmith.lens.depth import PERCENTILES
from lensmith.report import palette
from lensmith.report.curves import Earliness, LayerCurves, Point, Training

CROSSED = ("norm", "tuned")  # lenses whose first ranks are marked
DASHES = ("solid", "dash", "dot", "dashdot")
WIDE, HALF = 400, 320  # pixels
RIGHT_OF_WORDS = 64
DEPTHS = [f"{percent} %" for percent in PERCENTILES]
KL_AXIS = "KL to the final answer, bits"

PlainFigure = dict[str, Any]
Height = Callable[[float], float]  # where a number stands on the y axis


def kl(curves: LayerCurves, judgement: Judgement) -> PlainFigure:
    """KL(final, lens) over layers; diamonds where half of the answers reach a rank; guides at the gates' layers."""
    figure = _over_layers(curves, judgement, KL_AXIS, height=_log_height)
    _log_axis(figure, [point for lens in curves.lenses for point in curves.points(lens)])
    # Room for the words below and beside the last layers' diamonds.
    figure.update_layout(margin_r=RIGHT_OF_WORDS)
    return _plain(figure, WIDE)


def bits_by_layer(curves: Sequence[tuple[str, Sequence[Point]]], title: str) -> PlainFigure:
    """Named curves of bits over layers 1..L, each in the band of its interval."""
    figure = go.Figure()
    for (name, points), colour in zip(curves, palette.SERIES, strict=False):
        _curve(figure, html.escape(name, quote=False), colour, points, _log_height)
    points = [point for _, each in curves for point in each]
    _log_axis(figure, points)
    _layer_axis(figure, max(point.layer for point in points))
    figure.update_yaxes(title=title)
    return _plain(figure, HALF)


def cosine(curves: LayerCurves, judgement: Judgement) -> PlainFigure:
    """Cosine of the lens's and the final logits over layers. The legend is that of `kl`, for want of room."""
    figure = _over_layers(curves, judgement, "cosine with the final logits", words=False)
    return _plain(figure.update_layout(showlegend=False), HALF)


def causal(curves: LayerCurves, judgement: Judgement) -> PlainFigure | None:
    """Cosine of what a lens says that changes of a layer do with what they do. None where nothing was changed."""
    if not curves.lenses:
        return None
    figure = _over_layers(curves, judgement, "cosine of predicted and real change", words=False)
    return _plain(figure.update_layout(showlegend=False), HALF)


def gains(judgement: Judgement) -> PlainFigure | None:
    """Bars of KL(norm) - KL(tuned) with intervals and the limits of gate A. None where nothing was measured."""
    figure = go.Figure()
    for label, prefix, colour in (
        ("suite prompts, median", "median", palette.LENSES["tuned"]),
        ("held-out text, mean", "heldout", palette.TUNED_PALE),
    ):
        estimates = [judgement.estimate(f"{prefix}_delta_kl_bits_{percent}") for percent in PERCENTILES]
        if any(estimate.value is not None for estimate in estimates):
            _bars_at_depths(figure, label, colour, estimates, "bits")
    if not figure.data:
        return None
    limits = {check.kpi: check.limit for check in judgement.gate("A").checks}
    figure.add_scatter(
        x=DEPTHS, y=[limits[f"median_delta_kl_bits_{percent}"] for percent in PERCENTILES], name="limit of gate A",
        mode="markers",
        marker={"symbol": "line-ew", "size": 44, "line": {"width": 2.5, "color": palette.LIMIT}},
        hovertemplate="limit %{y} bits<extra></extra>",
    )  # fmt: skip
    figure.update_layout(bargap=0.35, bargroupgap=0.08, barcornerradius=3)
    figure.update_xaxes(title="depth", type="category")
    figure.update_yaxes(title="KL saved, bits", zeroline=True, rangemode="tozero")
    return _plain(figure, HALF)


def holds(judgement: Judgement) -> PlainFigure | None:
    """Share of prompts with the intermediate among the first ten tokens, over layers. None where no prompt has one."""
    if not judgement.holds:
        return None
    shares = {holding.lens: enumerate(holding.by_layer) for holding in judgement.holds}
    curves = LayerCurves({
        lens: tuple(Point(layer, share) for layer, share in by_layer if share is not None)
        for lens, by_layer in shares.items()
    })  # fmt: skip
    figure = _over_layers(curves, judgement, "prompts with the intermediate in the top 10", words=False)
    figure.update_yaxes(rangemode="tozero", tickformat=".0%")
    return _plain(figure, HALF)


def ladder(judgement: Judgement) -> PlainFigure | None:
    """Bars of the KL that each kind of lens leaves at three depths, with intervals. None where none was measured."""
    figure = go.Figure()
    for rung in judgement.rungs:
        # The judged lens has a kind of its own, for which the palette has no colour.
        lens = "norm" if rung.kind == "identity" else rung.kind if rung.kind in palette.LENSES else "tuned"
        _bars_at_depths(figure, html.escape(rung.name, quote=False), palette.LENSES[lens], rung.kl, "bits left")
    if not figure.data:
        return None
    figure.update_layout(bargap=0.25, bargroupgap=0.08, barcornerradius=3)
    figure.update_xaxes(title="depth", type="category")
    figure.update_yaxes(title=KL_AXIS, rangemode="tozero")
    return _plain(figure, HALF)


def earliness(by_rank: Earliness) -> PlainFigure | None:
    """Prompts by how many layers earlier the tuned lens has the answer within a rank. None without prompts."""
    figure = go.Figure()
    for (rank, bars), colour in zip(by_rank.items(), palette.ANSWER_RANKS.values(), strict=False):
        layers, prompts = zip(*bars, strict=True)
        name = html.escape(rank, quote=False)
        hover = f"{name}<br>%{{y}} prompts, %{{x}} layers earlier<extra></extra>"
        figure.add_bar(x=layers, y=prompts, name=name, marker={"color": colour}, hovertemplate=hover)
    if not figure.data:
        return None
    figure.update_layout(bargap=0.2, bargroupgap=0.05, barcornerradius=2)
    _guide(figure, 0)
    figure.update_xaxes(title="layers earlier than the norm lens (negative: later)")
    figure.update_yaxes(title="prompts")
    return _plain(figure, HALF)


def training(by_curve: Training) -> PlainFigure | None:
    """KL over the positions that the fit trained on. None where it logged nothing."""
    figure = go.Figure()
    for curve, points in by_curve.items():
        positions, bits = zip(*points, strict=True)
        name, dash = html.escape(curve, quote=False), "dot" if curve == "training" else "solid"
        figure.add_scatter(
            x=positions, y=bits, name=name, mode="lines+markers", marker={"size": 4},
            line={"color": palette.TRAINING.get(curve, palette.GUIDE), "width": 2, "dash": dash},
            hovertemplate=f"{name}<br>%{{y:.3f}} bits, %{{x:,}} positions<extra></extra>",
        )  # fmt: skip
    if not figure.data:
        return None
    figure.update_xaxes(title="positions trained on")
    figure.update_yaxes(title=KL_AXIS, rangemode="tozero")
    return _plain(figure, HALF)


def ranks(by_curve: RankCurves) -> PlainFigure | None:
    """KL of the lens and of its closed form by rank. None where no curve was measured."""
    figure = go.Figure()
    for curve, points in by_curve.items():
        widths, bits = zip(*points, strict=True)
        name = html.escape(curve, quote=False)
        figure.add_scatter(
            x=widths, y=bits, name=name, mode="lines+markers", marker={"size": 5},
            line={"color": palette.RANK_CURVES.get(curve, palette.GUIDE), "width": 2.5},
            hovertemplate=f"{name}<br>%{{y:.3f}} bits at rank %{{x}}<extra></extra>",
        )  # fmt: skip
    if not figure.data:
        return None
    figure.update_xaxes(title="rank", type="log", tickvals=[2**power for power in range(14)], minor_ticks="")
    figure.update_yaxes(title=KL_AXIS, rangemode="tozero")
    return _plain(figure, HALF)


def overview(models: Mapping[str, LayerCurves]) -> PlainFigure:
    """The tuned lens's KL of all models over relative depth; dashes tell models of one colour apart."""
    figure = go.Figure()
    n_colours = len(palette.SERIES)
    for number, (key, curves) in enumerate(models.items()):
        name = html.escape(key, quote=False)  # Plotly reads a few HTML tags in names
        points = curves.points("tuned")
        figure.add_scatter(
            x=[100 * point.layer / curves.n_layers for point in points], y=[point.value for point in points],
            name=name, mode="lines+markers", marker={"size": 5},
            line={"color": palette.SERIES[number % n_colours], "width": 2.5,
                  "dash": DASHES[number // n_colours % len(DASHES)]},
            hovertemplate=f"{name}<br>%{{y:.3f}} bits at %{{x:.0f}} % depth<extra></extra>",
        )  # fmt: skip
    figure.update_xaxes(title="depth, % of layers", range=[0, 102])
    figure.update_yaxes(title=KL_AXIS, rangemode="tozero")
    for percent in PERCENTILES:
        _guide(figure, percent, f"{percent} %")
    return _plain(figure, WIDE)


def whiskers(estimates: Sequence[Estimate]) -> dict[str, Any]:
    """Intervals as error bars; of no length where there is no interval."""
    above = [e.hi - e.value if e.hi is not None and e.value is not None else 0 for e in estimates]
    below = [e.value - e.lo if e.lo is not None and e.value is not None else 0 for e in estimates]
    return {"type": "data", "array": above, "arrayminus": below, "thickness": 1.5, "width": 5, "color": palette.WHISKER}


def _bars_at_depths(figure: go.Figure, name: str, colour: str, estimates: Sequence[Estimate], unit: str) -> None:
    figure.add_bar(
        x=DEPTHS, y=[estimate.value for estimate in estimates], error_y=whiskers(estimates), name=name,
        marker={"color": colour}, hovertemplate=f"{name}<br>%{{y:.3f}} {unit} at %{{x}}<extra></extra>",
    )  # fmt: skip


def _over_layers(
    curves: LayerCurves, judgement: Judgement, title: str, *, words: bool = True, height: Height = float
) -> go.Figure:
    """A line for each lens in the band of its interval; diamonds, with words or without, at the first ranks."""
    figure = go.Figure()
    for lens in curves.lenses:
        name = judgement.lens_name(lens)
        _curve(figure, name, palette.LENSES[lens], curves.points(lens), height)
        if lens in CROSSED:
            _crossings(figure, curves, lens, name, height, words=words)
    for percent in PERCENTILES:
        # The layer that the gates read, not the exact share: a quarter of six layers is read at layer 2.
        _guide(figure, judgement.layers[percent], f"{percent} %")
    _layer_axis(figure, curves.n_layers)
    figure.update_yaxes(title=title)
    return figure


def _curve(figure: go.Figure, name: str, colour: str, points: Sequence[Point], height: Height) -> None:
    """A line through the points in the band of their intervals."""

    def heights(values: Iterable[float | None]) -> list[float | None]:
        return [None if value is None else height(value) for value in values]

    known = [point for point in points if point.lo is not None and point.hi is not None]
    layers = [point.layer for point in known]
    figure.add_scatter(
        x=layers + layers[::-1],
        y=heights([*(point.hi for point in known), *(point.lo for point in reversed(known))]),
        fill="toself", fillcolor=colour, opacity=0.18, line={"width": 0}, mode="lines", hoverinfo="skip",
        showlegend=False,
    )  # fmt: skip
    figure.add_scatter(
        x=[point.layer for point in points], y=heights(point.value for point in points), name=name,
        customdata=[point.value for point in points], mode="lines+markers", marker={"size": 5},
        line={"color": colour, "width": 2.5},
        hovertemplate=f"{name}<br>%{{customdata:.3f}} at layer %{{x}}<extra></extra>",
    )  # fmt: skip


def _log_height(bits: float) -> float:
    """log2(1 + bits): one lens can be a hundred bits off where another is a few, and the last layer is zero."""
    return math.log2(1 + bits)


def _log_axis(figure: go.Figure, points: Iterable[Point]) -> None:
    """An axis of bits whose heights are `_log_height`."""
    top = _log_height(max((point.value for point in points if point.value is not None), default=1.0)) or 1.0
    ticks = [0.0]
    for bits in (2.0**power for power in range(-6, 12)):
        # Labels need room, and those near 0 stand close.
        if _log_height(ticks[-1]) + 0.12 * top <= _log_height(bits) <= top:
            ticks.append(bits)
    figure.update_yaxes(
        range=[-0.12 * top, 1.05 * top], zeroline=False,
        tickvals=[_log_height(bits) for bits in ticks], ticktext=[f"{bits:g}" for bits in ticks],
    )  # fmt: skip


def _layer_axis(figure: go.Figure, n_layers: int) -> None:
    """Layers from 0; about ten labels, the last layer among them where that is possible."""
    steps = [step for step in range(1, n_layers + 1) if n_layers / step <= 12]
    tick = next((step for step in steps[:4] if n_layers % step == 0), steps[0] if steps else 1)
    figure.update_xaxes(title="layer", range=[-0.02 * n_layers, 1.03 * n_layers + 0.2], tick0=0, dtick=tick)


def _crossings(figure: go.Figure, curves: LayerCurves, lens: str, name: str, height: Height, *, words: bool) -> None:
    """Diamonds where half of the answers have reached a rank; words on the side away from the other curve."""
    points = [point for point in curves.points(lens) if point.crossing]
    values = [None if point.value is None else height(point.value) for point in points]
    ranks = [html.escape(p.crossing.replace("rank<=", "≤ ").replace("/", ", "), quote=False) for p in points]
    # The words spread out, since neighbouring layers can be closer than a word is wide, and stay inside the chart.
    at_end = [point.layer > 0.9 * curves.n_layers for point in points]
    if lens == "tuned":
        side = ["bottom left", *("bottom left" if end else "bottom right" for end in at_end[1:])]
    else:
        side = ["middle right" if end else "top right" for end in at_end]
    figure.add_scatter(
        x=[point.layer for point in points], y=values, text=ranks, showlegend=False,
        mode="markers+text" if words else "markers", textposition=side,
        textfont={"color": palette.LENSES[lens], "size": 12}, cliponaxis=False,
        marker={"symbol": "diamond", "size": 12, "color": palette.LENSES[lens]},
        hovertemplate=f"{name}: half of the answers at rank %{{text}}<br>by layer %{{x}}<extra></extra>",
    )  # fmt: skip


def _guide(figure: go.Figure, x: float, label: str = "") -> None:
    figure.add_vline(x=x, line={"color": palette.GUIDE, "width": 1, "dash": "dot"}, opacity=0.55, layer="below")
    if label:
        figure.add_annotation(x=x, y=1, yref="paper", yanchor="bottom", text=label, showarrow=False, font={"size": 11})


def _plain(figure: go.Figure, height: int) -> PlainFigure:
    figure.update_layout(
        template="none",
        height=height,
        autosize=True,
        margin={"l": 56, "r": figure.layout.margin.r or 34, "t": 30, "b": 46},
        paper_bgcolor=palette.TRANSPARENT,
        plot_bgcolor=palette.TRANSPARENT,
        font={"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 13},
        legend={"orientation": "h", "x": 0, "xanchor": "left", "y": 1.07, "yanchor": "bottom"},
        dragmode=False,
        hovermode="closest",
    )
    axis = {"ticks": "outside", "ticklen": 4, "title_font_size": 12.5, "title_standoff": 8}
    figure.update_xaxes(showgrid=False, zeroline=False, **axis)
    figure.update_yaxes(showgrid=True, ticks="", title_font_size=12.5)
    plain: PlainFigure = json.loads(figure.to_json())
    return plain

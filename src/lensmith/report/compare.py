"""Variants side by side: the settings and KPIs that differ between them, as a table or as one curve.

`dvc exp show` has a column for every number of every model; this has the few that a choice is made by.
"""

import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
from rich import box
from rich.table import Table
from rich.text import Text

from lensmith.judge.judgement import MISSING, Estimate
from lensmith.lab.experiments import LabVariant
from lensmith.process import wording
from lensmith.process.errors import InputError
from lensmith.report import charts, palette

KPIS = ("kl25", "kl50", "kl75", "d50", "le10")
TITLE_WIDTH = 12  # as wide as most intervals


@dataclass(frozen=True)
class Comparison:
    """One model's variants, and what tells them apart."""

    model: str
    variants: list[LabVariant]
    settings: list[str]  # names of settings that differ
    kpis: list[str]  # names of metrics that differ, in the digits that are shown


def compare(variants: Sequence[LabVariant], model: str, kpis: Sequence[str] = ()) -> Comparison:
    """The variants of one model.

    Args:
        kpis: metrics to compare; none for KPIS.

    Raises:
        InputError: no variant has this model, or a metric that none of them has.
    """
    own = [one for one in variants if model in one.metrics]
    if not own:
        known = ", ".join(sorted({name for one in variants for name in one.metrics})) or "none"
        raise InputError(f"compare: no finished variant has metrics of {model!r}; models with metrics: {known}")
    names = sorted({name for one in own for name in one.metrics[model]})
    for name in kpis:
        if name not in names:
            raise InputError(f"compare: {name!r} is no metric of {model}; metrics/{model}.json has them all")
    settings = sorted({name for one in own for name in one.settings.get(model, {})})
    differing = [name for name in settings if _differ(_values(own, model, name))]
    asked = kpis or [name for name in KPIS if _differ([_kpi(one.metrics[model], name).plain for one in own])]
    return Comparison(model, own, differing, list(asked))


def _values(variants: Sequence[LabVariant], model: str, name: str) -> list[Any]:
    """Of the variants that have this setting: an older commit lacks newer ones, or has no resolved/ at all."""
    return [one.settings[model][name] for one in variants if name in one.settings.get(model, {})]


def _differ(values: list[Any]) -> bool:
    return any(value != values[0] for value in values)


def table(found: Comparison) -> Table:
    """A line for each variant; an interval stands below its number."""
    drawn = Table(title=f"{found.model}: what differs between {len(found.variants)} variants", box=box.SIMPLE_HEAD,
                  padding=(0, 1, 0, 0))  # fmt: skip
    drawn.add_column("variant", overflow="fold")
    for name in found.settings:
        drawn.add_column(name.replace(".", "\n", 1), justify="right", no_wrap=True)
    for name in found.kpis:
        drawn.add_column(_title(name), justify="right", no_wrap=True)
    drawn.add_column("gates", no_wrap=True)
    for one in found.variants:
        settings, metrics = one.settings.get(found.model, {}), one.metrics[found.model]
        cells = [_setting(settings, name) for name in found.settings]
        drawn.add_row(Text(one.name), *cells, *(_kpi(metrics, name) for name in found.kpis), _gates(metrics))
    return drawn


def _title(name: str) -> str:
    """A metric's name in lines: heldout_kl_tuned_bits_25 is long, its number is short."""
    return textwrap.fill(name.replace("_bits", "").replace("_", " "), TITLE_WIDTH)


def _setting(settings: dict[str, Any], name: str) -> Text:
    """A value as params.yaml writes it; a dash where the variant has no such setting."""
    if name not in settings:
        return Text("–")  # noqa: RUF001, a dash in a table
    return Text(_written(settings[name]))


def _written(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _kpi(metrics: dict[str, Any], name: str) -> Text:
    estimate = estimate_of(metrics, name)
    if estimate.value is None:
        return Text(str(metrics.get(name, "n/a")))
    return Text((wording.percent if name.startswith("le") else wording.number)(estimate.value))


def estimate_of(metrics: dict[str, Any], name: str) -> Estimate:
    """A metric as it stands in metrics/<key>.json, without its interval; MISSING where it is no number."""
    value = metrics.get(name)
    return Estimate(value=float(value), lo=None, hi=None, units=0) if isinstance(value, int | float) else MISSING


def _gates(metrics: dict[str, Any]) -> Text:
    """The gates that a variant does not pass."""
    words = str(metrics.get("gates", "n/a"))
    return Text(words, palette.VERDICTS_IN_A_TERMINAL.get(words.split(maxsplit=1)[0], ""))


def curve(found: Comparison, setting: str, kpis: Sequence[str] = ()) -> go.Figure:
    """KPIs over one setting, a point for each variant that differs in nothing else from the first.

    Args:
        setting: its dotted name, or the last part of it: rank for fit.rank.
        kpis: what is drawn; none for held-out KL at three depths.

    Raises:
        InputError: no setting of that name, or the variants do not differ in it.
    """
    names = settings_named(found, setting)
    if len(names) != 1:
        raise InputError(
            f"compare: {setting!r} must be one setting in which the variants of {found.model} differ; they differ in: "
            f"{', '.join(found.settings) or 'none'}"
        )
    (name,) = names
    points = sorted(_alike(found, name), key=lambda pair: _order(pair[0]))
    x = [_written(value) for value, _ in points]
    figure = go.Figure()
    for kpi, colour in zip(kpis or KPIS[:3], palette.SERIES, strict=False):
        estimates = [estimate_of(one.metrics[found.model], kpi) for _, one in points]
        figure.add_scatter(
            x=x, y=[e.value for e in estimates], error_y=charts.whiskers(estimates), name=kpi, mode="lines+markers",
            line={"color": colour, "width": 2.5}, marker={"size": 8}, text=[one.name for _, one in points],
            hovertemplate=f"{kpi}<br>%{{y:.3f}} at {name} %{{x}}<br>%{{text}}<extra></extra>",
        )  # fmt: skip
    # As words: variants double a rank or a budget, and the last of them may be `auto`.
    figure.update_xaxes(title=name, type="category")
    figure.update_yaxes(rangemode="tozero")
    return figure.update_layout(
        template="none",
        title=f"{found.model}: {len(points)} variants",
        height=460,
        legend={"orientation": "h", "y": 1.0, "yanchor": "bottom"},
    )


def _alike(found: Comparison, name: str) -> list[tuple[Any, LabVariant]]:
    """(value, variant) of those that have this setting and are as the first of them in all others."""
    own = [one for one in found.variants if name in one.settings.get(found.model, {})]
    first = own[0].settings[found.model]
    return [
        (settings[name], one)
        for one in own
        for settings in [one.settings[found.model]]
        if all(settings.get(other, first.get(other)) == first.get(other) for other in found.settings if other != name)
    ]


def _order(value: object) -> tuple[bool, float, str]:
    """Numbers first, in their order; then words and what else a setting may be."""
    if isinstance(value, int | float):
        return False, float(value), ""
    return True, 0.0, _written(value)


def settings_named(found: Comparison, setting: str) -> list[str]:
    """The settings in which the variants differ, and which are called so."""
    return [name for name in found.settings if setting in (name, name.rpartition(".")[2])]

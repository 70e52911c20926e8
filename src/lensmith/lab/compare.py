"""Variants side by side: the settings and KPIs that differ between them, as a table or as one curve.

`dvc exp show` has a column for every number of every model; this has the few that a choice is made by. KPIs go by the
names of metrics/<model>.json (`METRIC_KPIS`) or of the judgement, which has their intervals. A variant whose judgement
is not in DVC's cache has the metrics alone. Differences of held-out KL are paired, sequence by sequence (`paired`).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
from rich import box
from rich.table import Table
from rich.text import Text

from lensmith.judge.judgement import MISSING, Estimate
from lensmith.judge.judging import METRIC_KPIS
from lensmith.lab import paired
from lensmith.lab.experiments import LabVariant
from lensmith.process import wording
from lensmith.process.errors import InputError
from lensmith.report import charts, palette

KPIS = ("kl25", "kl50", "kl75", "d50", "le10")
PLOTTED = ("kl25", "kl50", "kl75")
MEANINGS = {
    "kl": "bits that the tuned lens leaves on held-out text, at 25, 50, 75 % of depth (kl: the mean of all layers)",
    "d": "bits that it saves on the median prompt",
    "le": "prompts whose answer is early enough within that rank",
}


@dataclass(frozen=True)
class Comparison:
    """One model's variants, and what tells them apart."""

    model: str
    variants: list[LabVariant]
    settings: list[str]  # names of settings that differ
    kpis: list[str]  # names of KPIs that differ in the digits that are shown

    def settings_of(self, variant: LabVariant) -> dict[str, Any]:
        """setting -> value; an older commit lacks newer settings, or has none at all."""
        return variant.settings.get(self.model, {})


def compare(variants: Sequence[LabVariant], model: str, kpis: Sequence[str] = ()) -> Comparison:
    """The variants of one model.

    Args:
        kpis: what to compare; KPIS by default.

    Raises:
        InputError: no variant has this model, or a KPI that none of them has.
    """
    compared = Comparison(model, [variant for variant in variants if model in variant.metrics], [], [])
    if not compared.variants:
        known = ", ".join(sorted({name for variant in variants for name in variant.metrics})) or "none"
        raise InputError(f"compare: no finished variant has metrics of {model!r}; models with metrics: {known}")
    for name in kpis:
        if all(name not in v.metrics[model] and estimate(v, model, name) == MISSING for v in compared.variants):
            raise InputError(
                f"compare: {name!r} is no metric of {model}; metrics/{model}.json and the kpis of "
                f"plots/judgement/{model}.json have them all"
            )
    for name in sorted({name for variant in compared.variants for name in compared.settings_of(variant)}):
        values = [settings[name] for v in compared.variants if name in (settings := compared.settings_of(v))]
        if any(value != values[0] for value in values):
            compared.settings.append(name)
    for name in kpis or KPIS:
        shown = {_kpi_text(variant, model, name).plain.split("\n")[0] for variant in compared.variants}
        if kpis or len(shown) > 1:
            compared.kpis.append(name)
    return compared


def estimate(variant: LabVariant, model: str, kpi: str) -> Estimate:
    """A KPI with its interval from the judgement; else the metric alone; MISSING where there is neither."""
    judgement, metric = variant.judgements.get(model), variant.metrics[model].get(kpi)
    judged = judgement.estimate(METRIC_KPIS.get(kpi, kpi)) if judgement else MISSING
    if judged != MISSING:
        return judged
    return Estimate(value=float(metric), lo=None, hi=None, units=0) if isinstance(metric, int | float) else MISSING


def table(comparison: Comparison) -> Table:
    """A line for each variant: what differs, with intervals below the numbers, and the gates that do not pass."""
    families = dict.fromkeys(name.rstrip("0123456789") for name in comparison.kpis)
    drawn = Table(
        title=f"{comparison.model}: what differs between {len(comparison.variants)} variants",
        caption="; ".join(f"{name}: {MEANINGS[name]}" for name in families if name in MEANINGS),
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    drawn.add_column("variant", overflow="fold")
    for name in comparison.settings:
        drawn.add_column(name.replace(".", "\n", 1), justify="right", no_wrap=True)
    for name in comparison.kpis:
        drawn.add_column(name.replace("_", " "), justify="right")
    drawn.add_column("gates", no_wrap=True)
    for variant in comparison.variants:
        settings = comparison.settings_of(variant)
        gates = str(variant.metrics[comparison.model].get("gates", "n/a"))
        drawn.add_row(
            Text(variant.name),
            *(Text(_written(settings[name]) if name in settings else "–") for name in comparison.settings),  # noqa: RUF001
            *(_kpi_text(variant, comparison.model, name) for name in comparison.kpis),
            Text(gates, palette.VERDICTS_IN_A_TERMINAL.get(gates.split(maxsplit=1)[0], "")),
        )
    return drawn


def differences(comparison: Comparison, kpis: Sequence[str] = ()) -> Table | None:
    """Held-out KL of each other variant minus that of the first, in pairs of sequences, and whether it is better.

    None if none can be paired.

    Args:
        kpis: what to compare; PLOTTED by default. KPIs that are not held-out KLs are left out.
    """
    base, *others = comparison.variants
    names = [name for name in kpis or PLOTTED if paired.is_heldout_kl(name)]
    by_variant = {
        other.name: [paired.kl_difference(other, base, comparison.model, name) for name in names] for other in others
    }
    if all(difference == MISSING for line in by_variant.values() for difference in line):
        return None
    units = max(difference.units for line in by_variant.values() for difference in line)
    drawn = Table(
        title=f"{comparison.model}: held-out KL minus that of {base.name}, bits, over the same {units} sequences",
        caption="with the interval of the paired difference; better or worse: all of it is below or above 0; same: it "
        "holds 0; n/a: another model, text or choice of positions, or rows that are not in DVC's cache",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    drawn.add_column("variant", overflow="fold")
    for name in names:
        drawn.add_column(name, justify="right")
    for variant, line in by_variant.items():
        drawn.add_row(Text(variant), *map(_judged, line))
    return drawn


def _judged(difference: Estimate) -> Text:
    """A difference of KL, and what its interval says of the variant."""
    if difference.value is None or difference.lo is None or difference.hi is None:
        return Text("n/a")
    verdict, colour = "same", ""
    if difference.hi < 0 or difference.lo > 0:
        verdict, gate = ("better", "pass") if difference.hi < 0 else ("worse", "fail")
        colour = palette.VERDICTS_IN_A_TERMINAL[gate]
    return Text.assemble(difference.text(wording.signed), " ", (verdict, colour))


def _written(value: object) -> str:
    """A value as params.yaml writes it."""
    return value if isinstance(value, str) else json.dumps(value)


def _kpi_text(variant: LabVariant, model: str, name: str) -> Text:
    kpi = estimate(variant, model, name)
    if kpi.value is None:
        return Text(str(variant.metrics[model].get(name, "n/a")))
    share = name.startswith("le") or "share" in name or "coverage" in name
    form = wording.percent if share else wording.number
    return Text.assemble(form(kpi.value), (f"\n{form(kpi.lo)} to {form(kpi.hi)}" if kpi.has_interval else "", "dim"))


def curve(comparison: Comparison, setting: str, kpis: Sequence[str] = ()) -> go.Figure:
    """KPIs over one setting, a point for each variant that differs in nothing else from the first.

    Args:
        setting: its dotted name, or the last part of it: rank for fit.rank.
        kpis: what is drawn; PLOTTED by default.

    Raises:
        InputError: no setting of that name, or the variants do not differ in it.
    """
    names = settings_named(comparison, setting)
    if len(names) != 1:
        raise InputError(
            f"compare: {setting!r} must be one setting in which the variants of {comparison.model} differ; they differ "
            f"in: {', '.join(comparison.settings) or 'none'}"
        )
    (name,) = names
    having = [variant for variant in comparison.variants if name in comparison.settings_of(variant)]
    first, others = comparison.settings_of(having[0]), [other for other in comparison.settings if other != name]
    alike = [
        variant
        for variant in having
        for settings in [comparison.settings_of(variant)]
        if all(settings.get(other, first.get(other)) == first.get(other) for other in others)
    ]
    points = sorted(alike, key=lambda variant: _order(comparison.settings_of(variant)[name]))
    figure = go.Figure()
    for kpi, colour in zip(kpis or PLOTTED, palette.SERIES, strict=False):
        estimates = [estimate(variant, comparison.model, kpi) for variant in points]
        figure.add_scatter(
            x=[_written(comparison.settings_of(variant)[name]) for variant in points],
            y=[e.value for e in estimates], error_y=charts.whiskers(estimates), name=kpi, mode="lines+markers",
            line={"color": colour, "width": 2.5}, marker={"size": 8}, text=[variant.name for variant in points],
            hovertemplate=f"{kpi}<br>%{{y:.3f}} at {name} %{{x}}<br>%{{text}}<extra></extra>",
        )  # fmt: skip
    # As words: variants double a rank or a budget, and the last of them may be `auto`.
    figure.update_xaxes(title=name, type="category")
    figure.update_yaxes(rangemode="tozero")
    return figure.update_layout(
        template="none",
        title=f"{comparison.model}: {len(points)} variants",
        height=460,
        legend={"orientation": "h", "y": 1.0, "yanchor": "bottom"},
    )


def _order(value: object) -> tuple[bool, float, str]:
    """Numbers first, in their order; then words and what else a setting may be."""
    if isinstance(value, int | float):
        return False, float(value), ""
    return True, 0.0, _written(value)


def settings_named(comparison: Comparison, setting: str) -> list[str]:
    """The settings in which the variants differ that have this name, in full or as its last part."""
    return [name for name in comparison.settings if setting in (name, name.rpartition(".")[2])]
